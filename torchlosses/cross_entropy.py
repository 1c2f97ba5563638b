"""Cross-entropy on logits.

What it computes, for a row of logits x over C classes and the target's share a_c of each class, in nats:

    p_c  = exp(x_c) / Σ_j exp(x_j)                        (softmax)
    loss = Σ_c a_c (-log p_c)                             (index target y: a_y = 1, the others 0, so loss = -log p_y)

How the gradient follows. With l = log Σ_j exp(x_j), -log p_c = l - x_c and dl/dx_j = exp(x_j) / Σ exp = p_j, so with
A = Σ_c a_c

    d loss / dx_j = A p_j - a_j                           (index target: p - onehot(y))
    d loss / da_c = -log p_c
    Hessian · v   = A (p∘v - p (p·v)) = A p∘u             with u = v - p·v
    directional derivative along x' = A (p·x') - a·x'     = -a·u'  with u' = x' - p·x'

A class weight w and label smoothing ε enter through the shares only: a_c = w_c ((1-ε) t_c + ε/C), t the target's
probabilities. The losses of the rows are then averaged, summed, or kept.

What a row's loss may have beside. A sample weight s multiplies it. The z-loss adds λ l², whose gradient is 2 λ l p
since dl/dx = p: with B = A + 2 λ l,

    gradient              = B p - a
    Hessian · v           = p∘(B u + 2 λ (p·v))           since dB along v is 2 λ (p·v)

The soft cap puts y = c tanh(x / c) in place of x, before everything else: all of the above holds by y, and by the chain
rule the gradient takes the factor k = dy/dx = 1 - (y/c)², and the Hessian-vector product, with v' = k v, is
k p∘(B u' + 2 λ (p·v')) + v (B p - a) dk/dx, dk/dx = -2 (y/c²) k.

How it stays right in the corners. With m = max x, the sum s = Σ exp(x_j - m) is 1 + rest: the maximum's own term is 1,
and rest is what the other classes add. Then -log p_c = log1p(rest) - (x_c - m): no 1 is added and rounded, so that a
loss of 1e-30 is 1e-30. The gradient's entry for a target at the maximum is -rest / s, not p_y - 1, for the same reason.
The backward recomputes the softmax from the logits; m and rest, two numbers a row, are all that the forward keeps. A
batch that fits a core's cache has its gradient computed along with the loss instead (`_transforms.with_gradient`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torchlosses import _validation
from torchlosses._numerics import compute_dtype
from torchlosses._options import (
    Change,
    RowStatistics,
    class_indices_denominator,
    drawn,
    mean_of,
    rows_denominator,
    soft_cap,
)
from torchlosses._reduction import reduce_rows, reduce_samples, rows_in_mean, scale_gradient
from torchlosses._shapes import from_rows, indices_to_rows, per_class, row_shape, to_rows
from torchlosses._transforms import (
    Variants,
    autocast_enabled,
    batched,
    batched_gradient,
    forward_ad_rule,
    is_small_training,
    loop,
    result_dtype,
    save,
    with_gradient,
)
from torchlosses.kernels import (
    cross_entropy_backward,
    cross_entropy_backward_,
    cross_entropy_extended_backward,
    cross_entropy_extended_backward_,
    cross_entropy_extended_forward,
    cross_entropy_forward,
    cross_entropy_with_gradient,
)


class _CrossEntropy(Function):
    """loss = s (Σ_c a_c (-log p_c) + λ l²) for each row, reduced; what the backward needs; statistics if asked for."""

    @staticmethod
    def forward(  # type: ignore[override]
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
        dtype: torch.dtype,
        inplace_backward: bool,
        z_loss: float,
        logit_softcap: float | None,
        statistics: bool,
    ) -> tuple[Tensor, ...]:
        if sample_weight is None and not z_loss and logit_softcap is None and not statistics:
            return cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, dtype)
        arguments = (input, target, weight, sample_weight, reduction, ignore_index, label_smoothing)
        results = cross_entropy_extended_forward(*arguments, z_loss, logit_softcap, statistics, dtype)
        return results if statistics else results[:3]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[4:]
        save(ctx, *inputs[:4], *output[1:3])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_output is None:
            return (None,) * 12
        saved = ctx.saved_tensors
        reduction, ignore_index, label_smoothing, _dtype, inplace_backward, z_loss, logit_softcap, _ = ctx.options
        needs_input, needs_target, needs_weight, needs_sample_weight = ctx.needs_input_grad[:4]
        options = (ignore_index, label_smoothing, z_loss, logit_softcap)
        grad_input = grad_target = grad_weight = grad_sample_weight = None
        if needs_target or needs_weight or needs_sample_weight:
            input, target, weight, sample_weight = saved[:4]
            grad_rows = _of_row(grad_output, input, target, reduction, ignore_index)
            if needs_sample_weight:
                losses = _losses_without_sample_weight(input, target, weight, sample_weight, *options)
                grad_sample_weight = (grad_rows * losses).to(sample_weight.dtype)
            grad_rows = per_class(grad_rows if sample_weight is None else grad_rows * sample_weight)
            rows = _rows(input, target, weight, sample_weight, *options)
            if sample_weight is not None:
                # Not even an infinite cost counts where the weight is 0.
                uncounted = rows.hidden | (per_class(sample_weight == 0) & rows.negative_log_probability.isinf())
                costs = rows.negative_log_probability.masked_fill(uncounted, 0)
                rows = rows._replace(negative_log_probability=costs)
            if needs_target:
                grad_target = (grad_rows * rows.d_share_d_target * rows.negative_log_probability).to(target.dtype)
            if needs_weight:
                grad_weight = _over_classes(grad_rows * _finite_where(rows.smoothed, rows)).to(weight.dtype)
        if needs_input:
            gradient = _gradient_in_place if inplace_backward else _GRADIENT.apply
            grad_input = gradient(grad_output, *saved, reduction, *options)
        return grad_input, grad_target, grad_weight, grad_sample_weight, *(None,) * 8

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
        dtype: torch.dtype,
        inplace_backward: bool,
        *extras: Any,
    ) -> Any:
        if in_dims[2] is not None:
            options = (reduction, ignore_index, label_smoothing, dtype, inplace_backward, *extras)
            return loop(_LOSS, info, in_dims, input, target, weight, sample_weight, *options)
        input, target = (
            batched(tensor, dimension, info.batch_size)
            for tensor, dimension in zip((input, target), in_dims, strict=False)
        )
        if sample_weight is not None:
            sample_weight = batched(sample_weight, in_dims[3], info.batch_size).flatten(0, 1)
        row_dtype = dtype if reduction == "none" else compute_dtype(input, target, weight)
        tensors = (input.flatten(0, 1), target.flatten(0, 1), weight, sample_weight)
        results = _LOSS.apply_for_all(*tensors, "none", ignore_index, label_smoothing, row_dtype, False, *extras)
        losses, maximum, rest = (row.unflatten(0, input.shape[:2]) for row in results[:3])
        statistics = tuple(found.unflatten(1, input.shape[:2]) for found in results[3:])
        count = _rows_of_samples(input, target, ignore_index) if reduction == "mean" else 1
        loss = reduce_samples(losses, reduction, count).to(dtype)
        return (loss, maximum, rest, *statistics), (0, 0, 0, *(1 for _ in statistics))


class _CrossEntropyForwardAD(_CrossEntropy):
    """The same, with the directional derivative s' loss + s (Σ_c a'_c (-log p_c) - a_c u'_c + 2 λ l (p·y'))."""

    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any,
        saved: tuple[Tensor, ...],
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        sample_weight_tangent: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        input, target, weight, sample_weight = saved[:4]
        reduction, ignore_index, label_smoothing, dtype, _, z_loss, logit_softcap, statistics = ctx.options
        options = (ignore_index, label_smoothing, z_loss, logit_softcap)
        rows = _rows(input, target, weight, sample_weight, *options)
        tangent = _directional_derivative(rows, input_tangent, target_tangent, weight_tangent).squeeze(1)
        if sample_weight is not None:
            tangent = tangent.masked_fill((sample_weight == 0) & tangent.isfinite().logical_not(), 0) * sample_weight
        if sample_weight_tangent is not None:
            losses = _losses_without_sample_weight(input, target, weight, sample_weight, *options)
            tangent = tangent + sample_weight_tangent * losses
        count = rows_in_mean(input, target, ignore_index) if reduction == "mean" else 1
        return reduce_rows(tangent, reduction, count).to(dtype), *(None,) * (3 if statistics else 2)


class _CrossEntropyGradient(Function):
    """gradient = g s (A p - a + 2 λ l p) dy/dx, with 'mean' g/n for g.

    A Function of its own, so that the gradient can be differentiated again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        maximum: Tensor,
        rest: Tensor,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
        z_loss: float,
        logit_softcap: float | None,
    ) -> Tensor:
        options = (ignore_index, label_smoothing)
        if sample_weight is None and not z_loss and logit_softcap is None:
            return cross_entropy_backward(grad, input, target, weight, maximum, rest, reduction, *options)
        tensors = (input, target, weight, sample_weight, maximum, rest)
        grad = _of_row(grad, input, target, reduction, ignore_index)
        return cross_entropy_extended_backward(grad, *tensors, *options, z_loss, logit_softcap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.reduction, *ctx.options = inputs[7:]
        # The rows' statistics are functions of the input: their part in the derivative is contained in the input's.
        save(ctx, *inputs[:5])

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # v·gradient is g s times the directional derivative of a row's loss along v. Its own derivatives, with
        # k = dy/dx, v' = k v, u = v' - p·v' and B = A + 2 λ l:
        #   by g: s (-a·u + 2 λ l (p·v')), and by s with g in its place;   by a: -g s u
        #   by y: g s p∘(B u + 2 λ (p·v')), and so by x: k times that, and g s v (B p - a) dk/dx
        grad, input, target, weight, sample_weight = ctx.saved_tensors
        reduced = (input, target, ctx.reduction, ctx.options[0])
        rows = _rows(input, target, weight, sample_weight, *ctx.options)
        v = v.to(rows.share.dtype).masked_fill(rows.hidden, 0)
        grad_rows = per_class(_of_row(grad, *reduced)).masked_fill(rows.excluded, 0)
        grad_weighted = grad_rows if sample_weight is None else grad_rows * per_class(sample_weight)
        along = v if rows.capping is None else rows.capping.slope * v
        mean = (rows.probability * along).sum(1, keepdim=True)
        u = along - mean
        grad_share = -grad_weighted * u
        grad_grad = grad_input = grad_target = grad_weight = grad_sample_weight = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[4]:
            derivative = -(rows.share * u).sum(1)
            if rows.drawing is not None:
                derivative = derivative + (rows.drawing.slope * mean).squeeze(1)
            if ctx.needs_input_grad[4] and sample_weight is not None:
                of_rows = derivative * _of_row(grad, *reduced)
                grad_sample_weight = of_rows.masked_fill(rows.excluded.squeeze(1), 0).to(sample_weight.dtype)
            if sample_weight is not None:
                derivative = derivative * sample_weight
            grad_grad = _of_row(derivative.sum_to_size(grad.shape), *reduced).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_input = _change_of_gradient(rows, grad_weighted, u, mean)
            if rows.capping is not None:
                grad_input = grad_input * rows.capping.slope
                grad_input = grad_input + grad_weighted * v * _by_logits(rows) * rows.capping.curvature
            grad_input = grad_input.to(input.dtype)
        if ctx.needs_input_grad[2]:
            grad_target = (rows.d_share_d_target * grad_share).to(target.dtype)
        if ctx.needs_input_grad[3]:
            grad_weight = _over_classes(rows.smoothed * grad_share).to(weight.dtype)
        return grad_grad, grad_input, grad_target, grad_weight, grad_sample_weight, *(None,) * 7

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], grad: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        if in_dims[3] is not None:
            return loop(_GRADIENT, info, in_dims, grad, *arguments)
        input, target, weight, sample_weight, maximum, rest, reduction, *options = arguments
        input, target, maximum, rest = (
            batched(tensor, in_dims[position], info.batch_size)
            for position, tensor in ((1, input), (2, target), (5, maximum), (6, rest))
        )
        if sample_weight is not None:
            sample_weight = batched(sample_weight, in_dims[4], info.batch_size).flatten(0, 1)
        grad = batched_gradient(grad, in_dims[0], maximum.shape)
        if reduction == "mean":
            # Each sample's mean has a count of its own.
            count = batched_gradient(_rows_of_samples(input, target, options[0]), 0, maximum.shape)
            grad = scale_gradient(grad, reduction, count)
        grad, rows, target, maximum, rest = (tensor.flatten(0, 1) for tensor in (grad, input, target, maximum, rest))
        gradient = _GRADIENT.apply(grad, rows, target, weight, sample_weight, maximum, rest, "sum", *options)
        return gradient.unflatten(0, input.shape[:2]), 0


class _CrossEntropyGradientForwardAD(_CrossEntropyGradient):
    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any,
        saved: tuple[Tensor, ...],
        grad_tangent: Tensor | None,
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        sample_weight_tangent: Tensor | None,
        *_: None,
    ) -> Tensor:
        grad, input, target, weight, sample_weight = saved
        reduced = (input, target, ctx.reduction, ctx.options[0])
        rows = _rows(input, target, weight, sample_weight, *ctx.options)
        grad_rows = per_class(_of_row(grad, *reduced)).masked_fill(rows.excluded, 0)
        of_sample: Tensor | float = 1.0 if sample_weight is None else per_class(sample_weight)
        grad_weighted = grad_rows if sample_weight is None else grad_rows * of_sample
        tangent = torch.zeros_like(rows.share)
        if grad_tangent is not None:
            of_row = per_class(_of_row(grad_tangent, *reduced)).masked_fill(rows.excluded, 0)
            tangent = tangent + of_row * of_sample * _by_logits(rows)
        if sample_weight_tangent is not None:
            of_row = per_class(sample_weight_tangent).masked_fill(rows.hidden, 0)
            tangent = tangent + grad_rows * of_row * _by_logits(rows)
        if input_tangent is not None:
            along = _along(rows, input_tangent)
            mean = (rows.probability * along).sum(1, keepdim=True)
            tangent = tangent + _change_of_gradient(rows, grad_weighted, along - mean, mean)
        if target_tangent is not None or weight_tangent is not None:
            share_tangent = _share_tangent(rows, target_tangent, weight_tangent)
            total_tangent = share_tangent.sum(1, keepdim=True)
            tangent = tangent + grad_weighted * (total_tangent * rows.probability - share_tangent)
        if rows.capping is not None:
            tangent = tangent * rows.capping.slope
            if input_tangent is not None:
                direction = input_tangent.to(tangent.dtype).masked_fill(rows.hidden, 0)
                tangent = tangent + grad_weighted * _by_logits(rows) * rows.capping.curvature * direction
        return tangent.to(input.dtype)


_LOSS = Variants(_CrossEntropy, _CrossEntropyForwardAD, tensors=4)
_GRADIENT = Variants(_CrossEntropyGradient, _CrossEntropyGradientForwardAD, tensors=7)


def _gradient_again(
    grad: Tensor, input: Tensor, target: Tensor, reduction: str, ignore_index: int, label_smoothing: float
) -> Tensor:
    """The gradient of a small batch of which nothing but the arguments is kept."""
    options = (reduction, ignore_index, label_smoothing)
    _, maximum, rest = cross_entropy_forward(input.detach(), target, None, *options, input.dtype)
    return _GRADIENT.apply(grad, input, target, None, None, maximum, rest, *options, 0.0, None)


_loss_with_gradient = with_gradient("_CrossEntropy", cross_entropy_with_gradient, _gradient_again)


def _gradient_in_place(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    *extras: Any,
) -> Tensor:
    """The gradient, written over the logits, of which nothing is left."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "cross_entropy: inplace_backward=True writes the gradient over the logits, so it cannot be differentiated "
            "again (create_graph=True). Leave inplace_backward at False for second derivatives."
        )
    options = (ignore_index, label_smoothing)
    if sample_weight is None and extras == (0.0, None):
        cross_entropy_backward_(grad, input, target, weight, maximum, rest, reduction, *options)
    else:
        tensors = (input, target, weight, sample_weight, maximum, rest)
        grad = _of_row(grad, input, target, reduction, ignore_index)
        cross_entropy_extended_backward_(grad, *tensors, *options, *extras)
    # Autograd's own check then stops a second backward, and whoever else has kept the logits.
    torch.autograd.graph.increment_version(input)
    return input.detach()


def _of_row(grad: Tensor, input: Tensor, target: Tensor, reduction: str, ignore_index: int) -> Tensor:
    """The gradient of one row's loss; a mean has divided it by the number of rows."""
    return scale_gradient(grad, reduction, rows_in_mean(input, target, ignore_index) if reduction == "mean" else 1)


def _rows_of_samples(input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The number of rows in each sample's mean, where the first dimension is mapped over."""
    if target.dim() < input.dim():
        return (target != ignore_index).flatten(1).sum(1)
    return torch.full((len(input),), math.prod((input.shape[1], *input.shape[3:])), device=input.device)


def _losses_without_sample_weight(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
) -> Tensor:
    """The derivative by the samples' weights, itself differentiable; 0 where a row of weight 0 has no value."""
    counted = (sample_weight != 0) | _without_value(input, logit_softcap).squeeze(1).logical_not()
    dtype = compute_dtype(input, target, weight)
    options = ("none", ignore_index, label_smoothing, dtype, False, z_loss, logit_softcap, False)
    return _LOSS.apply(input, target, weight, counted.to(dtype), *options)


class _Rows(NamedTuple):
    """The quantities of the derivation, spelled out as (rows, classes) tensors for derivatives beyond the gradient."""

    negative_log_probability: Tensor
    probability: Tensor
    smoothed: Tensor  # (1-ε) t + ε/C
    share: Tensor  # a = w ((1-ε) t + ε/C)
    total: Tensor  # A = Σ a
    d_share_d_target: Tensor | float  # w (1-ε)
    excluded: Tensor  # rows that leave no trace in any derivative: ignored and hidden ones
    hidden: Tensor  # rows without a weight whose logits are nan or infinite; they are computed as if they held zeros
    drawing: Change | None  # of λ l² by l
    capping: Change | None  # of y by x


def _rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
) -> _Rows:
    compute = compute_dtype(input, target, weight)
    classes = input.shape[1]
    if target.dim() < input.dim():
        ignored = (target == ignore_index).unsqueeze(1)
        one_hot = torch.zeros_like(input, dtype=compute)
        one_hot = one_hot.scatter(1, target.unsqueeze(1).masked_fill(ignored, 0), 1)
        smoothed = ((1 - label_smoothing) * one_hot + label_smoothing / classes).masked_fill(ignored, 0)
    else:
        ignored = None
        smoothed = (1 - label_smoothing) * target.to(compute) + label_smoothing / classes
    weight_of_class: Tensor | float = 1.0
    if weight is not None:
        weight_of_class = weight.to(compute).unsqueeze(1) if input.dim() == 3 else weight.to(compute)
    share = smoothed * weight_of_class
    total = share.sum(1, keepdim=True)
    inactive = (share == 0).all(1, keepdim=True)
    if sample_weight is not None:
        inactive = inactive | (sample_weight == 0).unsqueeze(1)
    hidden = inactive & _without_value(input, logit_softcap)
    x = input.to(compute).masked_fill(hidden, 0)
    capping = None
    if logit_softcap is not None:
        x, capping = soft_cap(x, logit_softcap)
    maximum, log_rest = _log_sum_exp(x)
    negative_log_probability = log_rest - (x - maximum)
    drawing = drawn(maximum + log_rest, total, z_loss) if z_loss else None
    return _Rows(
        negative_log_probability=negative_log_probability,
        probability=torch.exp(-negative_log_probability),
        smoothed=smoothed,
        share=share,
        total=total,
        d_share_d_target=weight_of_class * (1 - label_smoothing),
        excluded=hidden if ignored is None else hidden | ignored,
        hidden=hidden,
        drawing=drawing,
        capping=capping,
    )


def _without_value(input: Tensor, logit_softcap: float | None) -> Tensor:
    """Rows whose loss is nan: a cap makes infinite logits finite."""
    maximum = input.amax(1, keepdim=True)
    return maximum.isfinite().logical_not() if logit_softcap is None else maximum.isnan()


def _log_sum_exp(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum x_i, and log1p(Σ_{j≠i} exp(x_j - x_i)); differentiable as they stand."""
    i = x.argmax(1, keepdim=True)
    maximum = x.gather(1, i)
    return maximum, (x - maximum).exp().scatter(1, i, 0).sum(1, keepdim=True).log1p()


def _by_logits(rows: _Rows) -> Tensor:
    """B p - a, the derivative of a row's loss by its logits, capped if they are."""
    total = rows.total if rows.drawing is None else rows.total + rows.drawing.slope
    return total * rows.probability - rows.share


def _change_of_gradient(rows: _Rows, grad_rows: Tensor, u: Tensor, mean: Tensor) -> Tensor:
    """g p∘(B u + 2 λ (p·y')), the tangent of g (B p - a), by the logits that are capped if they are."""
    if rows.drawing is None:
        return grad_rows * rows.total * rows.probability * u
    change = (rows.total + rows.drawing.slope) * u + rows.drawing.curvature * mean
    return grad_rows * rows.probability * change


def _finite_where(factor: Tensor, rows: _Rows) -> Tensor:
    """factor · (-log p), where 0 · ∞ is 0: a class without a share counts for nothing."""
    infinite = (factor == 0) & rows.negative_log_probability.isinf()
    return factor * rows.negative_log_probability.masked_fill(infinite, 0)


def _along(rows: _Rows, input_tangent: Tensor) -> Tensor:
    """y', the tangent of the logits after the cap."""
    tangent = input_tangent.to(rows.share.dtype).masked_fill(rows.hidden, 0)
    return tangent if rows.capping is None else rows.capping.slope * tangent


def _share_tangent(rows: _Rows, target_tangent: Tensor | None, weight_tangent: Tensor | None) -> Tensor:
    """a' = w (1-ε) t' + w' ((1-ε) t + ε/C)."""
    tangent = torch.zeros_like(rows.share)
    if target_tangent is not None:
        tangent = tangent + rows.d_share_d_target * target_tangent
    if weight_tangent is not None:
        along = weight_tangent.unsqueeze(1) if rows.share.dim() == 3 else weight_tangent
        tangent = tangent + along * rows.smoothed
    return tangent


def _directional_derivative(
    rows: _Rows, input_tangent: Tensor | None, target_tangent: Tensor | None, weight_tangent: Tensor | None
) -> Tensor:
    tangent = torch.zeros_like(rows.total)
    if input_tangent is not None:
        along = _along(rows, input_tangent)
        mean = (rows.probability * along).sum(1, keepdim=True)
        tangent = tangent - (rows.share * (along - mean)).sum(1, keepdim=True)
        if rows.drawing is not None:
            tangent = tangent + rows.drawing.slope * mean
    if target_tangent is not None or weight_tangent is not None:
        share_tangent = _share_tangent(rows, target_tangent, weight_tangent)
        tangent = tangent + _finite_where(share_tangent, rows).sum(1, keepdim=True)
    return tangent


def _over_classes(values: Tensor) -> Tensor:
    """Summed over everything but the class dimension."""
    return values.sum((0, 2)) if values.dim() == 3 else values.sum(0)


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    return_stats: Literal[False] = False,
    inplace_backward: bool = False,
) -> Tensor: ...


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    return_stats: Literal[True],
    inplace_backward: bool = False,
) -> tuple[Tensor, RowStatistics]: ...


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    dim: int = 1,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    return_stats: bool = False,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, RowStatistics]:
    r"""Cross-entropy between logits and class indices or class probabilities, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}}

    where t is one-hot for class indices. For a row with index y, no weight and no smoothing, that is
    :math:`-\log p_y`, and its gradient :math:`p - \text{onehot}(y)`. A drop-in for
    `torch.nn.functional.cross_entropy`; the few differences are listed in `docs/divergences.md`.

    Args:
        input: Logits of shape (C), (N, C) or (N, C, d1, ...).
        target: Class indices of shape (), (N) or (N, d1, ...), of any integer dtype, in [0, C) or `ignore_index`;
            or class probabilities, of a floating-point dtype and the shape of `input`.
        weight: One factor a class, of shape (C); with class indices, of the dtype of `input`.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        ignore_index: Rows with this class index count neither for the loss nor for the mean, and their gradient is
            exactly 0 even where their logits are nan. For class indices only.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean' divides the sum by the weights of the rows' classes (class indices; without weights, the
            number of rows that are not ignored) or by the number of rows (class probabilities); 'sum'; 'none'.
        label_smoothing: ε in [0, 1], the share of the target that is spread evenly over all classes.
        inplace_backward: Whether the backward writes the gradient over `input`, which then holds no logits any more:
            training needs no further memory of that size. Only for logits that nothing else needs, as the output of a
            linear layer; whoever reads them in a later backward is stopped by autograd's check for in-place changes.
            Under `torch.compile` the gradient has memory of its own.
        dim: The dimension of the classes, where it is not dimension 1 (or the only one); `target` then has the other
            dimensions in their order, or the shape of `input`. The gradient keeps the layout of `input`; nothing is
            copied.
        normalizer: What 'mean' divides by in place of the above, a number or a tensor without dimensions: the
            micro-batches of a batch then add up to it.
        sample_weight: One weight a row, of a shape that broadcasts to the rows' (that of `input` without the class
            dimension). It multiplies the row's loss and enters the mean's denominator as the class weights do. A row of
            weight 0 is as if it were not there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        z_loss: λ of λ (log Σ exp(x))², which is added to the loss of each row that is not ignored and keeps the logits
            from drifting. Class weights do not multiply it, sample weights do.
        logit_softcap: c of x -> c tanh(x / c), taken before everything else; None leaves it out.
        return_stats: Whether to return the rows' statistics too.

    Returns:
        A scalar, or with 'none' one loss a row: the shape of `input` without the class dimension. With `return_stats` a
        pair of that and a `RowStatistics` of the rows' shape, of the logits after the soft cap. float32 and
        float64 keep their dtype; bfloat16 and float16 are computed in float32 and rounded once, and stay float32
        under autocast.

    Raises:
        ValueError: `reduction`, `label_smoothing`, `empty`, `z_loss` or `logit_softcap` is none of its values;
            `normalizer` without 'mean', or not one number; `sample_weight` does not broadcast to the rows; the batch
            sizes differ.
        RuntimeError: The other sizes do not fit; class indices are no integers or class probabilities no floats;
            `weight` has the wrong length, or with class indices another dtype; `ignore_index` >= 0 with class
            probabilities; the tensors are on different devices. With `inplace_backward`: `input` is a leaf that
            requires grad or a view of one, has elements that share memory, or is given to a transform of `torch.func`
            or to forward-mode AD; a second backward, or one with `create_graph=True`.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device), or `dim` is.
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type, or `size_average` or `reduce` is given.

    Edge cases: a mean over no row is nan, or 0 as `empty` says, with gradient 0; an empty sum is 0. A logit of -inf is
    a class that is ruled out: loss inf if it is the target, no effect if its share is 0. A logit of +inf or nan gives
    nan. A soft cap makes ±c of ±inf.
    Differentiable to all orders with respect to `input`, class probabilities, `weight`, `sample_weight` and
    `normalizer`; statistics have no derivative.

    Example:
        >>> import torch
        >>> from torchlosses import cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
        >>> loss = cross_entropy(logits, torch.tensor([0]))
        >>> round(loss.item(), 4)
        0.2395
        >>> loss.backward()
        >>> logits.grad
        tensor([[-0.2130,  0.1065,  0.1065]])

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.4; label smoothing from
    C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision* (2016), section 7; the z-loss from
    A. Chowdhery et al., *PaLM* (2022), section 5; the soft cap from Gemma Team, *Gemma 2* (2024), section 2.
    """
    if has_torch_function_variadic(input, target, weight, sample_weight):
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        extras = {
            "dim": dim,
            "normalizer": normalizer,
            "sample_weight": sample_weight,
            "empty": empty,
            "z_loss": z_loss,
            "logit_softcap": logit_softcap,
            "return_stats": return_stats,
            "inplace_backward": inplace_backward,
        }
        options |= {name: value for name, value in extras.items() if value is not _DEFAULTS[name]}
        tensors = (input, target, weight, sample_weight)
        return handle_torch_function(cross_entropy, tensors, input, target, weight, **options)
    # A call of its own for every check would take longer than a small batch.
    if reduction not in _validation.REDUCTIONS:
        _validation.check_reduction(reduction)
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    if type(ignore_index) is not int:
        ignore_index = _validation.check_ignore_index(ignore_index)
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = _validation.check_label_smoothing(label_smoothing)
    if inplace_backward:
        inplace_backward = _validation.check_inplace_backward(input)
    is_plain = (
        normalizer is sample_weight is logit_softcap is None
        and empty == "nan"
        and dim == 1
        and not z_loss
        and not return_stats
    )
    if (
        is_plain
        and weight is None
        and isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.is_cpu
        and target.is_cpu
        and ((dtype := input.dtype) is _FLOAT32 or dtype is _FLOAT64)
        and target.dtype is _INT64
        and target.dim() == 1
        and input.dim() == 2
        and input.size(0) == target.size(0)
    ):
        if not inplace_backward and is_small_training(input, reduction):
            return _loss_with_gradient(input, target, (reduction, ignore_index, label_smoothing))
        options = (reduction, ignore_index, label_smoothing, dtype, inplace_backward, 0.0, None, False)
        return _LOSS.apply(input, target, None, None, *options)
    if not is_plain:
        normalizer = _validation.check_normalizer(normalizer, reduction)
        _validation.check_empty(empty)
        z_loss = _validation.check_z_loss(z_loss)
        logit_softcap = _validation.check_logit_softcap(logit_softcap)
    _validation.check_tensors("cross_entropy", input=input, target=target)
    _validation.check_same_device("cross_entropy", input, target=target, weight=weight, sample_weight=sample_weight)
    if dim != 1:
        input, target = _with_classes_second(input, target, dim)
    _validation.check_classification_shapes("cross_entropy", input, target)
    _validation.check_floating_input("cross_entropy", input)
    _validation.check_cross_entropy_target(input, target, ignore_index)
    dtype = input.dtype
    indices = target.shape != input.shape
    if not indices:
        dtype = torch.promote_types(dtype, target.dtype)
    if weight is not None:
        _validation.check_class_weight(input, target, weight, autocast_enabled(input.device))
        dtype = torch.promote_types(dtype, weight.dtype)
    dtype = result_dtype(dtype, input.device)
    rows = to_rows(input)
    target_rows = indices_to_rows(target.to(torch.int64)) if indices else to_rows(target)
    compute = compute_dtype(input, target, weight)
    if sample_weight is not None:
        shape = row_shape(input)
        _validation.check_sample_weight("cross_entropy", sample_weight, shape)
        sample_weight = indices_to_rows(sample_weight.to(compute).expand(shape))
    is_divided_here = reduction == "mean" and (not is_plain or (indices and weight is not None))
    if is_divided_here and weight is not None:
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        weight = weight.to(compute)
    arguments = (rows, target_rows, weight, sample_weight, "sum" if is_divided_here else reduction)
    options = (ignore_index, label_smoothing, compute if is_divided_here else dtype, inplace_backward)
    if return_stats:
        loss, _, _, found = _LOSS.apply_for_all(*arguments, *options, z_loss, logit_softcap, True)
    else:
        loss, found = _LOSS.apply(*arguments, *options, z_loss, logit_softcap, False), None
    if is_divided_here:
        if normalizer is None:
            normalizer = (
                class_indices_denominator(target_rows, ignore_index, weight, sample_weight, compute)
                if indices
                else rows_denominator(rows[:, 0] if rows.shape[1] else rows, sample_weight, compute)
            )
        loss = mean_of(loss, normalizer, empty).to(dtype)
    elif reduction == "none":
        loss = from_rows(loss, input)
    if found is None:
        return loss
    log_sum_exp, target_log_probability, correct, entropy = (from_rows(field, input) for field in found.unbind())
    return loss, RowStatistics(log_sum_exp, target_log_probability, correct != 0, entropy)


_FLOAT32, _FLOAT64, _INT64 = torch.float32, torch.float64, torch.int64
_DEFAULTS: dict[str, Any] = cross_entropy.__kwdefaults__ or {}


def _with_classes_second(input: Tensor, target: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Views in which the classes stand where they are looked for; class indices have no such dimension."""
    classes = _validation.check_dimension("cross_entropy", input, dim)
    if input.dim() < 2:
        return input, target
    if target.shape == input.shape:
        target = target.movedim(classes, 1)
    return input.movedim(classes, 1), target


def _is_batch_of_rows(input: Tensor, target: Tensor) -> bool:
    """The commonest call, (N, C) logits and N int64 indices on the CPU; nothing is left to check or to convert.

    A small batch takes less time than the other checks.
    """
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.is_cpu
        and target.is_cpu
        and (input.dtype is torch.float32 or input.dtype is torch.float64)
        and target.dtype is torch.int64
        and target.dim() == 1
        and input.dim() == 2
        and input.size(0) == target.size(0)
    )


class CrossEntropyLoss(nn.CrossEntropyLoss):
    r"""Cross-entropy on logits as a module: :func:`torchlosses.cross_entropy` with its options kept, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}}

    A drop-in for `torch.nn.CrossEntropyLoss`, and a subclass of it: libraries ask for that class to know that a model's
    outputs are logits.

    Args:
        weight: One factor a class, of shape (C); kept as a buffer, so that `.to(...)` moves it.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        ignore_index: Rows with this class index are left out.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean', 'sum' or 'none'.
        label_smoothing: ε in [0, 1].
        dim: The dimension of the classes.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ of λ (log Σ exp(x))².
        logit_softcap: c of x -> c tanh(x / c).
        return_stats: Whether to return the rows' statistics beside the loss.
        inplace_backward: Whether the backward writes the gradient over the logits; see `cross_entropy`.

    The call takes `normalizer` and `sample_weight`, as `cross_entropy` does.

    Shape:
        input (C), (N, C) or (N, C, d1, ...); target class indices (), (N) or (N, d1, ...), or class probabilities of
        the shape of input; a scalar comes out, or with 'none' one loss a row. Dtypes as in `cross_entropy`.

    Raises:
        ValueError: `reduction`, `label_smoothing`, `empty`, `z_loss` or `logit_softcap` is none of its values.
        TypeError: An option has the wrong type, or `size_average` or `reduce` is given.
        Errors of the call are those of `cross_entropy`.

    Edge cases: as for `cross_entropy`.

    Example:
        >>> import torch
        >>> from torchlosses import CrossEntropyLoss
        >>> criterion = CrossEntropyLoss(ignore_index=255)
        >>> logits = torch.zeros(2, 4)
        >>> round(criterion(logits, torch.tensor([3, 255])).item(), 4)
        1.3863

    Source: as for `cross_entropy`.
    """

    __constants__ = ("ignore_index", "reduction", "label_smoothing", "inplace_backward")

    weight: Tensor | None
    reduction: _validation.Reduction  # pyright: ignore[reportIncompatibleVariableOverride] # narrower than the base's str

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: None = None,
        ignore_index: int = -100,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        dim: int = 1,
        empty: _validation.Empty = "nan",
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
        return_stats: bool = False,
        inplace_backward: bool = False,
    ) -> None:
        _validation.check_legacy_arguments(size_average, reduce)
        _validation.check_reduction(reduction)
        super().__init__(
            weight,
            ignore_index=_validation.check_ignore_index(ignore_index),
            reduction=reduction,
            label_smoothing=_validation.check_label_smoothing(label_smoothing),
        )
        _validation.check_empty(empty)
        self.dim = _validation.check_dim(dim)
        self.empty: _validation.Empty = empty
        self.z_loss = _validation.check_z_loss(z_loss)
        self.logit_softcap = _validation.check_logit_softcap(logit_softcap)
        self.return_stats = return_stats
        self.inplace_backward = inplace_backward

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: Tensor | float | None = None,
        sample_weight: Tensor | None = None,
    ) -> Any:
        """The loss of logits against class indices or probabilities; see :func:`torchlosses.cross_entropy`."""
        return cross_entropy(  # type: ignore[call-overload]
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            dim=self.dim,
            normalizer=normalizer,
            sample_weight=sample_weight,
            empty=self.empty,
            z_loss=self.z_loss,
            logit_softcap=self.logit_softcap,
            return_stats=self.return_stats,  # type: ignore[arg-type]
            inplace_backward=self.inplace_backward,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that was pickled before it had these options."""
        names = ("dim", "empty", "z_loss", "logit_softcap", "return_stats", "inplace_backward")
        super().__setstate__({name: _DEFAULTS[name] for name in names} | state)

    def extra_repr(self) -> str:
        """The options, `weight` only by its shape."""
        weight = "" if self.weight is None else f"weight={tuple(self.weight.shape)}, "
        extras = "".join(
            f", {name}={value!r}"
            for name, default in _DEFAULTS.items()
            if (value := getattr(self, name, default)) is not default and value != default
        )
        return (
            f"{weight}ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}{extras}"
        )
