"""What a loss knows of its rows beside their losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchlosses._validation import Empty, Gradient


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


class FurtherOptions(TypedDict, total=False):
    """What the modules of the cross-entropies take beside the options of torch's, for their type."""

    empty: Empty
    z_loss: float
    logit_scale: float
    logit_softcap: float | None
    loss_dtype: torch.dtype | None
    gradient: Gradient


_new_of_fields: Any = RowStatistics.__new__


def _new(cls: type[RowStatistics], *fields: Any, **named: Any) -> RowStatistics:
    """Also of one iterable, as any other sequence: so `type(x)(f(y) for y in x)` works, as libraries write it."""
    if len(fields) == 1 and not named and not isinstance(fields[0], Tensor) and isinstance(fields[0], Iterable):
        fields = tuple(fields[0])
    return _new_of_fields(cls, *fields, **named)


RowStatistics.__new__ = _new  # type: ignore[method-assign]
# So that torch.load takes them as it takes tensors.
torch.serialization.add_safe_globals([RowStatistics])


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
    correct = correct & rest.isfinite()
    entropy = log_rest - (probability * shifted).masked_fill(probability == 0, 0).sum(1)
    return maximum + log_rest, log_probability, correct, entropy


def statistics_of(fields: Iterable[Tensor]) -> RowStatistics:
    """Of the fields as numbers, without a derivative."""
    log_sum_exp, target_log_probability, correct, entropy = (field.detach() for field in fields)
    return RowStatistics(log_sum_exp, target_log_probability, correct != 0, entropy)
