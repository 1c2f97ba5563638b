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

How it stays right in the corners. With m = max x, the sum s = Σ exp(x_j - m) is 1 + rest: the maximum's own term is 1,
and rest is what the other classes add. Then -log p_c = log1p(rest) - (x_c - m): no 1 is added and rounded, so that a
loss of 1e-30 is 1e-30. The gradient's entry for a target at the maximum is -rest / s, not p_y - 1, for the same reason.
The backward recomputes the softmax from the logits; m and rest, two numbers a row, are all that the forward keeps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torchlosses import _validation
from torchlosses._numerics import compute_dtype
from torchlosses._reduction import reduce_rows, reduce_samples, rows_in_mean, scale_gradient
from torchlosses._shapes import from_rows, indices_to_rows, per_class, to_rows
from torchlosses._transforms import (
    Variants,
    autocast_enabled,
    batched,
    batched_gradient,
    forward_ad_rule,
    loop,
    result_dtype,
    save,
)
from torchlosses.kernels import cross_entropy_backward, cross_entropy_backward_, cross_entropy_forward


class _CrossEntropy(Function):
    """loss = Σ_c a_c (-log p_c) for each row, reduced; and what the backward needs of the rows."""

    @staticmethod
    def forward(  # type: ignore[override]
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
        dtype: torch.dtype,
        inplace_backward: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return cross_entropy_forward(input, target, weight, reduction, ignore_index, label_smoothing, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[3:]
        save(ctx, *inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_output is None:
            return (None,) * 8
        saved = ctx.saved_tensors
        reduction, ignore_index, label_smoothing, _dtype, inplace_backward = ctx.options
        needs_input, needs_target, needs_weight = ctx.needs_input_grad[:3]
        grad_input = grad_target = grad_weight = None
        if needs_target or needs_weight:
            input, target, weight = saved[:3]
            rows = _rows(input, target, weight, ignore_index, label_smoothing)
            grad_rows = per_class(_of_row(grad_output, input, target, reduction, ignore_index))
            if needs_target:
                grad_target = (grad_rows * rows.d_share_d_target * rows.negative_log_probability).to(target.dtype)
            if needs_weight:
                grad_weight = _over_classes(grad_rows * _finite_where(rows.smoothed, rows)).to(weight.dtype)
        if needs_input:
            gradient = _gradient_in_place if inplace_backward else _GRADIENT.apply
            grad_input = gradient(grad_output, *saved, reduction, ignore_index, label_smoothing)
        return grad_input, grad_target, grad_weight, None, None, None, None, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, target: Tensor, weight: Tensor | None, *options: Any
    ) -> Any:
        if in_dims[2] is not None:
            return loop(_LOSS, info, in_dims, input, target, weight, *options)
        reduction, ignore_index, label_smoothing, dtype, _ = options
        input, target = (
            batched(tensor, dimension, info.batch_size)
            for tensor, dimension in zip((input, target), in_dims, strict=False)
        )
        row_dtype = dtype if reduction == "none" else compute_dtype(input, target, weight)
        rows = _LOSS.apply_for_all(
            input.flatten(0, 1), target.flatten(0, 1), weight, "none", ignore_index, label_smoothing, row_dtype, False
        )
        losses, maximum, rest = (row.unflatten(0, input.shape[:2]) for row in rows)
        count = _rows_of_samples(input, target, ignore_index) if reduction == "mean" else 1
        return (reduce_samples(losses, reduction, count).to(dtype), maximum, rest), (0, 0, 0)


class _CrossEntropyForwardAD(_CrossEntropy):
    """The same, with the directional derivative loss' = Σ_c a'_c (-log p_c) - a_c u'_c."""

    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any,
        saved: tuple[Tensor, ...],
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, None, None]:
        input, target, weight = saved[:3]
        reduction, ignore_index, label_smoothing, dtype, _ = ctx.options
        rows = _rows(input, target, weight, ignore_index, label_smoothing)
        tangent = _directional_derivative(rows, input_tangent, target_tangent, weight_tangent).squeeze(1)
        count = rows_in_mean(input, target, ignore_index) if reduction == "mean" else 1
        return reduce_rows(tangent, reduction, count).to(dtype), None, None


class _CrossEntropyGradient(Function):
    """gradient = g (A p - a), 'mean' with g/n for g; a Function of its own, to be differentiated again."""

    @staticmethod
    def forward(  # type: ignore[override]
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        maximum: Tensor,
        rest: Tensor,
        reduction: str,
        ignore_index: int,
        label_smoothing: float,
    ) -> Tensor:
        return cross_entropy_backward(
            grad, input, target, weight, maximum, rest, reduction, ignore_index, label_smoothing
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, input, target, weight, _maximum, _rest, ctx.reduction, *ctx.options = inputs
        # The rows' statistics are functions of the input: their part in the derivative is contained in the input's.
        save(ctx, grad, input, target, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # v·gradient is g times the directional derivative of the loss along v. Its own derivatives, with u = v - p·v:
        #   by g: -a·u;   by x: g A p∘u;   by a: -g u
        grad, input, target, weight = ctx.saved_tensors
        reduced = (input, target, ctx.reduction, ctx.options[0])
        rows = _rows(input, target, weight, *ctx.options)
        v = v.to(rows.share.dtype).masked_fill(rows.hidden, 0)
        grad_rows = per_class(_of_row(grad, *reduced)).masked_fill(rows.inactive, 0)
        u = v - (rows.probability * v).sum(1, keepdim=True)
        grad_share = -grad_rows * u
        grad_grad = grad_input = grad_target = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_grad = _of_row(-(rows.share * u).sum(1).sum_to_size(grad.shape), *reduced).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_input = (grad_rows * rows.total * rows.probability * u).to(input.dtype)
        if ctx.needs_input_grad[2]:
            grad_target = (rows.d_share_d_target * grad_share).to(target.dtype)
        if ctx.needs_input_grad[3]:
            grad_weight = _over_classes(rows.smoothed * grad_share).to(weight.dtype)
        return grad_grad, grad_input, grad_target, grad_weight, None, None, None, None, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], grad: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        if in_dims[3] is not None:
            return loop(_GRADIENT, info, in_dims, grad, *arguments)
        input, target, weight, maximum, rest, reduction, *options = arguments
        input, target, maximum, rest = (
            batched(tensor, in_dims[position], info.batch_size)
            for position, tensor in ((1, input), (2, target), (4, maximum), (5, rest))
        )
        grad = batched_gradient(grad, in_dims[0], maximum.shape)
        if reduction == "mean":
            # Each sample's mean has a count of its own.
            count = batched_gradient(_rows_of_samples(input, target, options[0]), 0, maximum.shape)
            grad = scale_gradient(grad, reduction, count)
        folded = (tensor.flatten(0, 1) for tensor in (grad, input, target))
        gradient = _GRADIENT.apply(*folded, weight, maximum.flatten(0, 1), rest.flatten(0, 1), "sum", *options)
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
        *_: None,
    ) -> Tensor:
        grad, input, target, weight = saved
        reduced = (input, target, ctx.reduction, ctx.options[0])
        rows = _rows(input, target, weight, *ctx.options)
        grad_rows = per_class(_of_row(grad, *reduced)).masked_fill(rows.inactive, 0)
        tangent = torch.zeros_like(rows.share)
        if grad_tangent is not None:
            of_row = per_class(_of_row(grad_tangent, *reduced)).masked_fill(rows.inactive, 0)
            tangent = tangent + of_row * (rows.total * rows.probability - rows.share)
        if input_tangent is not None:
            u = _centred(rows, input_tangent)
            tangent = tangent + grad_rows * rows.total * rows.probability * u
        if target_tangent is not None or weight_tangent is not None:
            share_tangent = _share_tangent(rows, target_tangent, weight_tangent)
            total_tangent = share_tangent.sum(1, keepdim=True)
            tangent = tangent + grad_rows * (total_tangent * rows.probability - share_tangent)
        return tangent.to(input.dtype)


_LOSS = Variants(_CrossEntropy, _CrossEntropyForwardAD, tensors=3)
_GRADIENT = Variants(_CrossEntropyGradient, _CrossEntropyGradientForwardAD, tensors=6)


def _gradient_in_place(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    """The gradient, written over the logits, of which nothing is left."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "cross_entropy: inplace_backward=True writes the gradient over the logits, so it cannot be differentiated "
            "again (create_graph=True). Leave inplace_backward at False for second derivatives."
        )
    cross_entropy_backward_(grad, input, *arguments)
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


class _Rows(NamedTuple):
    """The quantities of the derivation, spelled out as (rows, classes) tensors for derivatives beyond the gradient."""

    negative_log_probability: Tensor
    probability: Tensor
    smoothed: Tensor  # (1-ε) t + ε/C
    share: Tensor  # a = w ((1-ε) t + ε/C)
    total: Tensor  # A = Σ a
    d_share_d_target: Tensor | float  # w (1-ε)
    inactive: Tensor  # rows without any share: ignored ones, and those of weight 0
    hidden: Tensor  # inactive rows whose logits are nan or infinite; they are computed as if they held zeros


def _rows(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float) -> _Rows:
    compute = compute_dtype(input, target, weight)
    classes = input.shape[1]
    if target.dim() < input.dim():
        ignored = (target == ignore_index).unsqueeze(1)
        one_hot = torch.zeros_like(input, dtype=compute)
        one_hot = one_hot.scatter(1, target.unsqueeze(1).masked_fill(ignored, 0), 1)
        smoothed = ((1 - label_smoothing) * one_hot + label_smoothing / classes).masked_fill(ignored, 0)
    else:
        smoothed = (1 - label_smoothing) * target.to(compute) + label_smoothing / classes
    weight_of_class: Tensor | float = 1.0
    if weight is not None:
        weight_of_class = weight.to(compute).unsqueeze(1) if input.dim() == 3 else weight.to(compute)
    share = smoothed * weight_of_class
    inactive = (share == 0).all(1, keepdim=True)
    x = input.to(compute)
    hidden = inactive & x.logsumexp(1, keepdim=True).isnan()
    negative_log_probability = _negative_log_probability(x.masked_fill(hidden, 0))
    return _Rows(
        negative_log_probability=negative_log_probability,
        probability=torch.exp(-negative_log_probability),
        smoothed=smoothed,
        share=share,
        total=share.sum(1, keepdim=True),
        d_share_d_target=weight_of_class * (1 - label_smoothing),
        inactive=inactive,
        hidden=hidden,
    )


def _negative_log_probability(x: Tensor) -> Tensor:
    """(m - x_c) + log1p(Σ_{j≠i} exp(x_j - m)) with i the maximum's place; differentiable as it stands."""
    i = x.argmax(1, keepdim=True)
    shifted = x - x.gather(1, i)
    return shifted.exp().scatter(1, i, 0).sum(1, keepdim=True).log1p() - shifted


def _finite_where(factor: Tensor, rows: _Rows) -> Tensor:
    """factor · (-log p), where 0 · ∞ is 0: a class without a share counts for nothing."""
    infinite = (factor == 0) & rows.negative_log_probability.isinf()
    return factor * rows.negative_log_probability.masked_fill(infinite, 0)


def _centred(rows: _Rows, input_tangent: Tensor) -> Tensor:
    """u = x' - p·x'."""
    tangent = input_tangent.to(rows.share.dtype).masked_fill(rows.hidden, 0)
    return tangent - (rows.probability * tangent).sum(1, keepdim=True)


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
        tangent = tangent - (rows.share * _centred(rows, input_tangent)).sum(1, keepdim=True)
    if target_tangent is not None or weight_tangent is not None:
        share_tangent = _share_tangent(rows, target_tangent, weight_tangent)
        tangent = tangent + _finite_where(share_tangent, rows).sum(1, keepdim=True)
    return tangent


def _over_classes(values: Tensor) -> Tensor:
    """Summed over everything but the class dimension."""
    return values.sum((0, 2)) if values.dim() == 3 else values.sum(0)


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
    inplace_backward: bool = False,
) -> Tensor:
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

    Returns:
        A scalar, or with 'none' one loss a row: the shape of `input` without the class dimension. float32 and
        float64 keep their dtype; bfloat16 and float16 are computed in float32 and rounded once, and stay float32
        under autocast.

    Raises:
        ValueError: `reduction` or `label_smoothing` is none of its values; the batch sizes differ.
        RuntimeError: The other sizes do not fit; class indices are no integers or class probabilities no floats;
            `weight` has the wrong length, or with class indices another dtype; `ignore_index` >= 0 with class
            probabilities; the tensors are on different devices. With `inplace_backward`: `input` is a leaf that
            requires grad or a view of one, has elements that share memory, or is given to a transform of `torch.func`
            or to forward-mode AD; a second backward, or one with `create_graph=True`.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device).
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type, or `size_average` or `reduce` is given.

    Edge cases: a mean over no row is nan, with gradient 0; an empty sum is 0. A logit of -inf is a class that is ruled
    out: loss inf if it is the target, no effect if its share is 0. A logit of +inf or nan gives nan.
    Differentiable to all orders with respect to `input`, class probabilities and `weight`.

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
    C. Szegedy et al., *Rethinking the Inception Architecture for Computer Vision* (2016), section 7.
    """
    if has_torch_function_variadic(input, target, weight):
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
        if inplace_backward:
            options["inplace_backward"] = True
        return handle_torch_function(cross_entropy, (input, target, weight), input, target, weight, **options)
    _validation.check_reduction(reduction)
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    ignore_index = _validation.check_ignore_index(ignore_index)
    label_smoothing = _validation.check_label_smoothing(label_smoothing)
    if inplace_backward:
        inplace_backward = _validation.check_inplace_backward(input)
    if weight is None and _is_batch_of_rows(input, target):
        options = (reduction, ignore_index, label_smoothing, torch.float32, inplace_backward)
        return _LOSS.apply(input, target, None, *options)
    _validation.check_tensors("cross_entropy", input=input, target=target)
    _validation.check_same_device("cross_entropy", input, target=target, weight=weight)
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
    options = (ignore_index, label_smoothing)
    if indices and weight is not None and reduction == "mean":
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        compute = compute_dtype(input, weight)
        weight = weight.to(compute)
        total = _LOSS.apply(rows, target_rows, weight, "sum", *options, compute, inplace_backward)
        return (total / _weight_of_rows(target_rows, weight, ignore_index)).to(dtype)
    loss = _LOSS.apply(rows, target_rows, weight, reduction, *options, dtype, inplace_backward)
    return from_rows(loss, input) if reduction == "none" else loss


def _is_batch_of_rows(input: Tensor, target: Tensor) -> bool:
    """The commonest call, (N, C) float32 logits and N int64 indices on the CPU; nothing is left to check or to convert.

    A small batch takes less time than the other checks.
    """
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.is_cpu
        and target.is_cpu
        and input.dtype is torch.float32
        and target.dtype is torch.int64
        and target.dim() == 1
        and input.dim() == 2
        and input.size(0) == target.size(0)
    )


def _weight_of_rows(target: Tensor, weight: Tensor, ignore_index: int) -> Tensor:
    """Σ_n w_{y_n} over the rows that are not ignored: what the mean over class indices divides by."""
    if not weight.numel():
        return weight.sum()
    ignored = target == ignore_index
    return weight[target.masked_fill(ignored, 0)].masked_fill(ignored, 0).sum()


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
        inplace_backward: Whether the backward writes the gradient over the logits; see `cross_entropy`.

    Shape:
        input (C), (N, C) or (N, C, d1, ...); target class indices (), (N) or (N, d1, ...), or class probabilities of
        the shape of input; a scalar comes out, or with 'none' one loss a row. Dtypes as in `cross_entropy`.

    Raises:
        ValueError: `reduction` or `label_smoothing` is none of its values.
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
        self.inplace_backward = inplace_backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits against class indices or probabilities; see :func:`torchlosses.cross_entropy`."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            inplace_backward=self.inplace_backward,
        )

    def extra_repr(self) -> str:
        """The options, `weight` only by its shape."""
        weight = "" if self.weight is None else f"weight={tuple(self.weight.shape)}, "
        inplace = ", inplace_backward=True" if self.inplace_backward else ""
        return (
            f"{weight}ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"label_smoothing={self.label_smoothing}{inplace}"
        )
