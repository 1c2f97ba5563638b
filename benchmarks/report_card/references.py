"""What the losses of the report card have to equal, in plain differentiable operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The logits in full, then torch's cross-entropy: what every fused form has to equal."""
    logits = nn.functional.linear(input, linear_weight, linear_bias)
    return nn.functional.cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def textbook_cross_entropy(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """-Σ t log(p + 1e-7), one loss a row."""
    if not target.is_floating_point():
        target = nn.functional.one_hot(target, input.shape[1]).to(input.dtype)
    return _reduced(-(target * torch.log(input + 1e-7)).sum(1), reduction)


def smoothed_cross_entropy(input: Tensor, target: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """torch's cross-entropy with timm's default for the smoothing."""
    return nn.functional.cross_entropy(input, target, label_smoothing=label_smoothing)


def sigmoid_focal(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The focal loss of Lin et al. (2017), exponent 2, on logits, from pieces that do not cancel."""
    miss = target * torch.sigmoid(-input) + (1 - target) * torch.sigmoid(input)
    # binary_cross_entropy_with_logits would lose the small losses of confident negatives.
    hit = target * nn.functional.logsigmoid(input) + (1 - target) * nn.functional.logsigmoid(-input)
    return _reduced(-(miss**2) * hit, reduction)


def sigmoid_focal_unreduced(input: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """The same with torchvision's default for the reduction."""
    return sigmoid_focal(input, target, reduction)


def focal_map(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "none"
) -> Tensor:
    """kornia's documented convention, exponent 2: a (rows, classes) map, the focal loss at the target's class."""
    negative_log_probability = nn.functional.cross_entropy(input, target, reduction="none", ignore_index=ignore_index)
    loss = (-torch.expm1(-negative_log_probability)) ** 2 * negative_log_probability
    ignored = (target == ignore_index).unsqueeze(1)
    here = nn.functional.one_hot(target.masked_fill(target == ignore_index, 0), input.shape[1]).bool() & ~ignored
    entries = torch.where(here, loss.unsqueeze(1), 0.0)
    return _reduced(entries if weight is None else entries * weight, reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[reduction]()
