"""What the operators read from a target: class indices that are safe to gather with, and each class's share."""

from __future__ import annotations

import torch
from torch import Tensor

from torchlosses import _validation


def class_indices(target: Tensor, classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Indices safe to gather with, and which rows are ignored; None where it is known that none is."""
    on_cpu = target.device.type == "cpu"
    if on_cpu and target.numel():
        lowest, highest = (int(value) for value in target.aminmax())
        if lowest >= 0 and highest < classes and not (ignore_index is not None and lowest <= ignore_index <= highest):
            return target, None
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target == ignore_index
    indices = target.masked_fill(ignored, 0)
    # On an accelerator a check would wait for the device; there the gather itself asserts the bounds.
    if on_cpu and bool(((indices < 0) | (indices >= classes)).logical_and_(~ignored).any()):
        _validation.raise_target_out_of_bounds(target, classes, ignore_index)
    return indices, ignored


def without_weight(
    ignored: Tensor | None, indices: Tensor, weight: Tensor | None, label_smoothing: float
) -> Tensor | None:
    """Rows that must leave no trace: ignored ones and, without smoothing, those whose class weighs 0."""
    if weight is None or label_smoothing or not weight.numel():
        return ignored
    weightless = weight[indices] == 0
    return weightless if ignored is None else weightless | ignored


def effective_target(t: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
    """a_c = w_c ((1 - ε) t_c + ε / C)."""
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / t.shape[1]
    return t if weight is None else t * along_classes(weight, t)


def along_classes(weight: Tensor, like: Tensor) -> Tensor:
    """A view of `weight` that broadcasts along dimension 1."""
    return weight.unsqueeze(1) if like.dim() == 3 else weight
