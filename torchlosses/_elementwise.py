"""What the losses of single elements share: weights, and the way from the function's arguments to the operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchlosses import _validation
from torchlosses._declare import Loss
from torchlosses._rows import compute_dtype, result_dtype, wide_sum


class Elementwise(Loss, abstract=True):
    """A loss of elements: `forward` gives w s loss, `backward` g w s d loss / d input.

    Attributes:
        weight_in_mean: Whether a mean divides by the sum of the weights w, as torch's namesake does or does not.
    """

    tensors = ("input", "target", "weight?", "sample_weight?")
    elementwise = True
    weight_in_mean = True

    @classmethod
    def denominator(cls, input: Tensor, target: Tensor, weight: Any, sample_weight: Any, *_: Any) -> Tensor | None:
        """Σ w s; each with all its digits, so that its gradient is rounded once."""
        if weight is None or not cls.weight_in_mean:
            return None if sample_weight is None else wide_sum(sample_weight)
        if sample_weight is None:
            return wide_sum(weight)
        # An element of sample weight 0 is as if it were not there.
        hidden = (sample_weight == 0) & weight.isfinite().logical_not()
        return wide_sum(weight.masked_fill(hidden, 0) * sample_weight)


def elements(input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None) -> Any:
    """x and t in the dtype of the computation, with zeros where a sample weight of 0 hides what is not finite."""
    compute = compute_dtype(input, target, weight)
    x, t = input.to(compute), target.to(compute)
    if sample_weight is None:
        return x, t
    hidden = (sample_weight == 0) & (x - t).isfinite().logical_not()
    return x.masked_fill(hidden, 0), t.masked_fill(hidden, 0)


def weighted(losses: Tensor, weight: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """Times w and s, and 0 where s is 0."""
    if weight is not None:
        losses = losses * weight.to(losses.dtype)
    if sample_weight is not None:
        hidden = (sample_weight == 0) & losses.isfinite().logical_not()
        losses = losses.masked_fill(hidden, 0) * sample_weight.to(losses.dtype)
    return losses


def call(
    loss: type[Elementwise],
    input: Tensor,
    target: Tensor,
    *own: Any,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: str,
    broadcast: _validation.Broadcast,
    normalizer: Tensor | float | None,
    empty: str,
    gradient: str,
) -> Tensor:
    """Check, bring the tensors to one shape, and call the loss; `own` are its options behind those of all losses."""
    name = loss.name
    if reduction not in _validation.REDUCTIONS:
        _validation.check_reduction(reduction)
    if gradient not in _validation.GRADIENTS:
        _validation.check_gradient_option(gradient)
    if broadcast not in _validation.BROADCASTS:
        _validation.check_broadcast_option(broadcast)
    along = int(gradient == "forward")
    if weight is sample_weight is normalizer is None and empty == "nan":
        found = of_alike(loss, input, target, reduction, along, own)
        if found is not None:
            return found
    normalizer = _validation.check_normalizer(normalizer, reduction)
    empty = _validation.check_empty(empty)
    _validation.check_tensors(name, input=input, target=target)
    _validation.check_same_device(name, input, target=target, weight=weight, sample_weight=sample_weight)
    _validation.check_elementwise_dtypes(name, input, target)
    if weight is not None:
        _validation.check_element_weight(name, input, weight)
    if input.shape != target.shape:
        _validation.check_broadcast(name, input, target, broadcast, stacklevel=3)
        input, target = torch.broadcast_tensors(input, target)
    if weight is not None and weight.shape != input.shape:
        weight = weight.expand(input.shape)
    dtype = torch.promote_types(input.dtype, target.dtype)
    if input.dtype != target.dtype:
        input, target = input.to(dtype), target.to(dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    compute = compute_dtype(input, target, weight)
    if weight is not None:
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        weight = weight.to(compute)
    if sample_weight is not None:
        sample_weight = _validation.check_leading_sample_weight(name, sample_weight, input.shape)
        sample_weight = sample_weight.to(compute).expand(input.shape)
    nothing = 0.0 if empty == "zero" else math.nan
    options = loss.options(reduction, nothing, result_dtype(None, dtype, input.device), along, *own)
    return loss.apply(input, target, weight, sample_weight, normalizer=normalizer, options=options)[0]


def of_alike(
    loss: type[Elementwise], input: Tensor, target: Tensor, reduction: str, gradients: int, own: tuple[Any, ...]
) -> Tensor | None:
    """The commonest call, for which nothing is left to check or to convert; None where it is not that."""
    found = loss.of_few(input, target, reduction, gradients, own)
    if found is None and _are_alike(input, target):
        options = loss.options(reduction, math.nan, input.dtype, gradients, *own)
        others = (None,) * (len(loss.tensors) - 2)
        found, _ = loss.apply(input, target, *others, normalizer=None, options=options)
    return found


def _are_alike(input: Tensor, target: Tensor) -> bool:
    """Two tensors of one shape, dtype and device."""
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.device == target.device
        and (input.dtype is torch.float32 or input.dtype is torch.float64)
        and input.dtype is target.dtype
        and not (input.is_nested or target.is_nested)
        and input.shape == target.shape
    )
