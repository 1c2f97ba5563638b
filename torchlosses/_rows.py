"""Rows of classes, and what is made of their losses: shapes, dtypes, the logarithm that keeps its digits, the mean.

A loss on classes sees them along dimension 1 and at most three dimensions: (N, C), or (N, C, M) with the dimensions
behind the classes flattened into one. A row is one sample: a vector of C classes. Everything here is a view or
differentiable as it stands, and nothing is checked.

A mean is a sum over a denominator:

    mean = Σ_n s_n loss_n / D,     D = Σ_n s_n w_{y_n} over the rows that count   (class indices)
                                   D = Σ_n s_n                                    (class probabilities, elements)
                                   D = normalizer                                 (where the caller gives one)

with s the weights of the samples and w those of the classes, 1 where they are not given. A row counts unless it is
ignored. A row of weight 0 is as if it were not there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where an argument is float64, else float32."""
    wide = any(tensor is not None and tensor.dtype is torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def to_rows(input: Tensor) -> Tensor:
    """(C) -> (1, C); (N, C) as it is; (N, C, d1, ...) -> (N, C, d1·…)."""
    if input.dim() == 1:
        return input.unsqueeze(0)
    return input.flatten(2) if input.dim() > 3 else input


def indices_to_rows(target: Tensor) -> Tensor:
    """Class indices without the class dimension: () -> (1); (N) as it is; (N, d1, ...) -> (N, d1·…)."""
    if target.dim() == 0:
        return target.unsqueeze(0)
    return target.flatten(1) if target.dim() > 2 else target


def row_shape(input: Tensor) -> torch.Size:
    """The shape of the input without its class dimension."""
    return torch.Size(() if input.dim() == 1 else (*input.shape[:1], *input.shape[2:]))


def from_rows(losses: Tensor, input: Tensor) -> Tensor:
    """One loss a row, back to the shape of the input without its class dimension."""
    if input.dim() == 1:
        return losses.reshape(())
    return losses.unflatten(1, input.shape[2:]) if input.dim() > 3 else losses


def per_class(rows: Tensor) -> Tensor:
    """One number a row, or one for all rows, so that it broadcasts along the class dimension."""
    return rows if rows.dim() == 0 else rows.unsqueeze(1)


def along_classes(weight: Tensor, like: Tensor) -> Tensor:
    """One number a class, so that it broadcasts along dimension 1."""
    return weight.unsqueeze(1) if like.dim() == 3 else weight


def wide_sum(weights: Tensor) -> Tensor:
    """Their sum; with the digits of float64 where its copy costs nothing."""
    if torch.compiler.is_compiling() or weights.device.type != "cpu" or weights.numel() > 1 << 18:
        return weights.sum()
    return weights.sum(dtype=torch.float64)


def mean_of(total: Tensor, denominator: Tensor, empty: float) -> Tensor:
    """total / denominator, and where there is nothing to average over, `empty`, with gradient 0."""
    denominator = denominator.to(total.dtype)
    nothing = denominator == 0
    mean = total / denominator.masked_fill(nothing, 1)
    # Something divided by nothing stays what it is, inf or nan; only 0 / 0 has no value of its own.
    without_value = total.detach() / denominator.detach()
    without_value = without_value.masked_fill(total.detach() == 0, empty)
    # Not `where`, whose own backward makes a tensor that is not fake where these are, outside of their mode.
    return mean.masked_fill(nothing, 0) + without_value.masked_fill(nothing.logical_not(), 0)


def part_of_mean(grad_output: Tensor, denominator: Tensor) -> Tensor:
    """The gradient of a mean by one of its losses: in float32 at least, and 0 in a mean over nothing."""
    wide = torch.promote_types(grad_output.dtype, torch.float32)
    if denominator.is_floating_point():
        wide = torch.promote_types(wide, denominator.dtype)
    nothing = denominator == 0
    part = grad_output.to(wide) / denominator.to(wide).masked_fill(nothing, 1)
    return part.masked_fill(nothing, 0)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """The capped logits, c tanh(x / c)."""
    return cap * torch.tanh(x / cap)


def soft_cap_slope(x: Tensor, cap: float) -> Tensor:
    """dy/dx = 1 - tanh² = 4 σ(2 x / c) σ(-2 x / c), which keeps its digits where tanh is close to 1."""
    u = x * (2 / cap)
    return 4 * torch.sigmoid(u) * torch.sigmoid(-u)
