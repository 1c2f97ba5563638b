"""Rows of classes, and what is made of their losses: shapes, dtypes, the logits that are looked at, weights, the mean.

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

from typing import Any

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where an argument is float64, else float32."""
    wide = any(tensor is not None and tensor.dtype is torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for `device`; meta tensors know no autocast, and torch raises when asked."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def result_dtype(asked: torch.dtype | None, computed: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype a loss is returned in: the one asked for, or that of its arguments, at least float32 under autocast."""
    if asked is not None:
        return asked
    return torch.promote_types(computed, torch.float32) if autocast_enabled(device) else computed


def with_classes_second(input: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Views in which dimension `classes` stands where it is looked for; class indices have no such dimension."""
    if input.dim() < 2:
        return input, target
    return input.movedim(classes, 1), target.movedim(classes, 1) if target.shape == input.shape else target


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


def probabilities_denominator(classes: int, sample_weight: Tensor | None) -> Tensor | None:
    """Σ_n s_n; None where rows have no weights. Without classes there is no row."""
    if sample_weight is None:
        return None
    return wide_sum(sample_weight) if classes else sample_weight.new_zeros(())


def class_indices_denominator(
    target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, ignore_index: int, compute: torch.dtype
) -> Tensor | None:
    """Σ_n s_n w_{y_n} over the rows that are not ignored; None where rows have no weights."""
    if weight is None and sample_weight is None:
        return None
    ignored = target == ignore_index
    of_rows: Tensor | None = None
    if weight is not None:
        # Without a class there is no row that could take its weight.
        wide = weight.to(compute)
        # An index out of range is the operator's to name.
        safe = target.masked_fill(ignored, 0).clamp(0, max(0, wide.shape[0] - 1))
        of_rows = wide[safe] if wide.shape[0] else wide.sum()
    if sample_weight is not None:
        of_rows = sample_weight if of_rows is None else of_rows * sample_weight
    assert of_rows is not None
    return wide_sum(of_rows.masked_fill(ignored, 0))


def dot(factor: Tensor, values: Tensor) -> Tensor:
    """Σ_c factor_c values_c of each row."""
    return (factor * finite_where(factor, values)).sum(1, keepdim=True)


def finite_where(factor: Tensor, values: Tensor) -> Tensor:
    """0 in place of ±inf where the factor is 0: 0 · ∞ = 0. Where the values are finite, the factor has a derivative."""
    return values.masked_fill((factor == 0) & values.isinf(), 0)


def scaled_and_capped(x: Tensor, options: Any) -> Tensor:
    """y = k x, or c tanh(k x / c)."""
    x = _scaled(x, options)
    return x if options.logit_softcap is None else soft_cap(x, options.logit_softcap)


def times_slope(gradient: Tensor, x: Tensor, options: Any) -> Tensor:
    """The gradient by x of what has this gradient by y: dy/dx = k (1 - tanh²)."""
    if options.logit_softcap is not None:
        gradient = gradient * soft_cap_slope(_scaled(x, options), options.logit_softcap)
    return gradient if options.logit_scale == 1 else gradient * options.logit_scale


def _scaled(x: Tensor, options: Any) -> Tensor:
    return x if options.logit_scale == 1 else x * options.logit_scale


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """The capped logits, c tanh(x / c)."""
    return cap * torch.tanh(x / cap)


def soft_cap_slope(x: Tensor, cap: float) -> Tensor:
    """dy/dx = 1 - tanh² = 4 σ(2 x / c) σ(-2 x / c), which keeps its digits where tanh is close to 1."""
    u = x * (2 / cap)
    return 4 * torch.sigmoid(u) * torch.sigmoid(-u)


def weighted(losses: Tensor, sample_weight: Tensor | None, hidden: Tensor | None = None) -> Tensor:
    """Times s; 0 where s is and there is no loss, or the row is hidden."""
    if sample_weight is None:
        return losses
    # The derivative by a weight of 0 is the loss, if there is one.
    without = (sample_weight == 0) & losses.isfinite().logical_not()
    return losses.masked_fill(without if hidden is None else without | hidden, 0) * sample_weight


class RowWeights:
    """The weights s of the rows, and which rows leave no trace. What there is one of a row is (rows, 1).

    Attributes:
        sample_weight: s, or None.
        ignored: Which rows are ignored, or None.

    `total` is the share of all classes together, and `hidden` says which rows leave no trace and are not finite.
    """

    sample_weight: Tensor | None
    ignored: Tensor | None

    def without_trace(self, total: Tensor) -> Tensor:
        """Rows that are ignored or have no weight."""
        without = total == 0
        if self.sample_weight is not None:
            without = without | (self.sample_weight == 0)
        return without if self.ignored is None else without | self.ignored

    def weighted(self, losses: Tensor, total: Tensor, hidden: Tensor | None) -> Tensor:
        """Times s; 0 where a row leaves no trace."""
        losses = weighted(losses, self.sample_weight, hidden)
        without = (total == 0) & losses.isfinite().logical_not()
        return losses.masked_fill(without if self.ignored is None else without | self.ignored, 0)

    def incoming(self, g: Tensor, total: Tensor, hidden: Tensor | None) -> Tensor:
        """g s; 0 where a row leaves no trace."""
        g = g.masked_fill(self.without_trace(total) & g.isfinite().logical_not(), 0)
        if self.sample_weight is not None:
            g = g * self.sample_weight
        if hidden is not None:
            g = g.masked_fill(hidden, 0)
        return g if self.ignored is None else g.masked_fill(self.ignored, 0)
