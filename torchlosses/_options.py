"""What the options `normalizer`, `sample_weight`, `empty` and `return_stats` mean, the same in every loss.

A mean is a sum over a denominator:

    mean = Σ_n s_n loss_n / D,     D = Σ_n s_n w_{y_n} over the rows that count   (class indices)
                                   D = Σ_n s_n                                    (class probabilities)
                                   D = normalizer                                 (where the caller gives one)

with s the weights of the samples and w those of the classes, 1 where they are not given. A row counts unless it is
ignored. A row of weight 0 is as if it were not there. The quotient is taken outside of the losses' Functions, by
operations that PyTorch differentiates itself, so that the derivatives by s, w and the normalizer follow from the
quotient rule.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowStatistics(NamedTuple):
    """What a loss knows of each row beside its loss; not differentiable, and 0 (False) where a row is ignored.

    Attributes:
        log_sum_exp: log Σ_j exp(x_j), in nats.
        target_log_probability: log p_y for a class index y, Σ_c t_c log p_c for probabilities t, in nats.
        correct: Whether the largest logit is the target's: at the class index, or where t is largest.
        entropy: -Σ_c p_c log p_c of the softmax p, in nats.
    """

    log_sum_exp: Tensor
    target_log_probability: Tensor
    correct: Tensor
    entropy: Tensor


def class_indices_denominator(
    target: Tensor, ignore_index: int, weight: Tensor | None, sample_weight: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Σ_n s_n w_{y_n} over the rows that are not ignored: what a mean over class indices divides by."""
    ignored = target == ignore_index
    if weight is None and sample_weight is None:
        return ignored.logical_not().sum().to(dtype)
    of_rows: Tensor | None = None
    if weight is not None:
        # Without a class there is no row that could take its weight.
        of_rows = weight.to(dtype)[target.masked_fill(ignored, 0)] if weight.numel() else weight.to(dtype).sum()
    if sample_weight is not None:
        of_rows = sample_weight.to(dtype) if of_rows is None else of_rows * sample_weight.to(dtype)
    assert of_rows is not None
    return of_rows.masked_fill(ignored, 0).sum()


def rows_denominator(rows: Tensor, sample_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Σ_n s_n, or the number of rows: what a mean over class probabilities divides by; `rows` has one entry a row."""
    if sample_weight is not None:
        return sample_weight.to(dtype).expand(rows.shape).sum()
    return torch.full((), rows.numel(), dtype=dtype, device=rows.device)


def mean_of(total: Tensor, denominator: Tensor | float, empty: str) -> Tensor:
    """total / denominator, and where there is nothing to average over, what `empty` says, with gradient 0."""
    # A number as a tensor of float32 would have lost digits.
    denominator = denominator.to(total) if isinstance(denominator, Tensor) else total.new_full((), denominator)
    nothing = denominator == 0
    mean = total / denominator.masked_fill(nothing, 1)
    # Something divided by nothing stays what it is, inf or nan; only 0 / 0 has no value of its own.
    without_value = total.detach() / denominator.detach()
    if empty == "zero":
        without_value = without_value.masked_fill(total.detach() == 0, 0)
    return torch.where(nothing, without_value, mean)


class Change(NamedTuple):
    """First and second derivative of one quantity by another."""

    slope: Tensor
    curvature: Tensor


def soft_cap(x: Tensor, logit_softcap: float) -> tuple[Tensor, Change]:
    """y = c tanh(x / c), and its derivatives by x; differentiable as they stand."""
    tanh = torch.tanh(x / logit_softcap)
    slope = 1 - tanh.square()
    return logit_softcap * tanh, Change(slope, -2 / logit_softcap * tanh * slope)


def drawn(log_sum_exp: Tensor, total: Tensor, z_loss: float) -> Change:
    """The derivatives of λ l² by l, 0 in rows whose target has no share, A = 0."""
    curvature = torch.full_like(total, 2 * z_loss).masked_fill(total == 0, 0)
    return Change(curvature * log_sum_exp, curvature)


def row_statistics(logits: Tensor, target: Tensor, maximum: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
    """The fields of `RowStatistics` of (rows, classes) logits, where log Σ exp(x_j - maximum) = log1p(rest).

    Class indices must be in range; the caller sets the rows that are ignored to 0.
    """
    log_rest = torch.log1p(rest)
    shifted = logits.to(maximum.dtype) - maximum.unsqueeze(1)
    largest = shifted.argmax(1)
    if target.dim() < logits.dim():
        log_probability = shifted.gather(1, target.unsqueeze(1)).squeeze(1) - log_rest
        correct = largest == target
    else:
        share = target.to(shifted.dtype)
        # 0 · log 0 = 0, here and in the entropy.
        log_probability = (share * shifted).masked_fill(share == 0, 0).sum(1) - share.sum(1) * log_rest
        correct = largest == target.argmax(1)
    probability = torch.exp(shifted - log_rest.unsqueeze(1))
    # Which of nan or infinite logits is the largest says nothing.
    correct &= rest.isfinite()
    entropy = log_rest - (probability * shifted).masked_fill(probability == 0, 0).sum(1)
    return maximum + log_rest, log_probability, correct, entropy
