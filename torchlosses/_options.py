"""What a loss knows of its rows beside their losses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchlosses._validation import Empty, Gradient

_Fields = TypeVar("_Fields")


def of_tensors(cls: type[_Fields]) -> type[_Fields]:
    """Make a NamedTuple of tensors what libraries take every sequence of tensors for.

    It can be made of one iterable, so that `type(x)(f(y) for y in x)` works, and torch.load takes it as it takes
    tensors.
    """
    new_of_fields: Any = cls.__new__

    def new(cls: Any, *fields: Any, **named: Any) -> Any:
        if len(fields) == 1 and not named and not isinstance(fields[0], Tensor) and isinstance(fields[0], Iterable):
            fields = tuple(fields[0])
        return new_of_fields(cls, *fields, **named)

    cls.__new__ = new  # type: ignore[method-assign]
    torch.serialization.add_safe_globals([cls])
    return cls


@of_tensors
class RowStatistics(NamedTuple):
    """What a loss knows of each row beside its loss; not differentiable, and 0 (False) where a row is ignored.

    Attributes:
        log_sum_exp: log Σ_j exp(x_j), in nats.
        target_log_probability: log p_y for a class index y, Σ_c t_c log p_c for probabilities t, in nats.
        correct: Whether the largest logit is the target's: at the class index, or where t is largest.
        entropy: -Σ_c p_c log p_c of the softmax p, in nats.
        z_loss: λ (log Σ_j exp(x_j))², times the sample weight: what the z-loss adds to the row's loss, in nats.
    """

    log_sum_exp: Tensor
    target_log_probability: Tensor
    correct: Tensor
    entropy: Tensor
    z_loss: Tensor


# The fields that are found with the losses; the z-loss follows from the first.
FOUND = len(RowStatistics._fields) - 1


class FurtherOptions(TypedDict, total=False):
    """What the modules of the cross-entropies take beside the options of torch's, for their type."""

    empty: Empty
    z_loss: float
    logit_scale: float
    logit_softcap: float | None
    loss_dtype: torch.dtype | None
    gradient: Gradient


class CallOptions(FurtherOptions, total=False):
    """What their functions take beside these, for their type."""

    normalizer: Tensor | float | None
    sample_weight: Tensor | None


def row_statistics(logits: Tensor, target: Tensor, maximum: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
    """The first fields of `RowStatistics` of (rows, classes) logits, where log Σ exp(x_j - maximum) = log1p(rest).

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


def with_z_loss(state: Tensor, sample_weight: Tensor | None, factor: float) -> Tensor:
    """All fields of `RowStatistics`, from a state that ends in those that are found."""
    found = state[-FOUND:]
    log_sum_exp = found[:1]
    # An infinite one is not in the sum where there is no z-loss.
    z_loss = factor * log_sum_exp.square() if factor else torch.zeros_like(log_sum_exp)
    if sample_weight is not None:
        z_loss = (z_loss * sample_weight.detach()).masked_fill(log_sum_exp == 0, 0)
    return torch.cat([found, z_loss])


def statistics_of(fields: Iterable[Tensor]) -> RowStatistics:
    """Of the fields as numbers, without a derivative."""
    log_sum_exp, target_log_probability, correct, entropy, z_loss = (field.detach() for field in fields)
    return RowStatistics(log_sum_exp, target_log_probability, correct != 0, entropy, z_loss)
