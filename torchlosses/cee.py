"""The textbook cross-entropy error on probabilities.

What it computes, for a row of probabilities p over C classes and the target's share t_c of each class, in nats:

    loss = -Σ_c t_c log(p_c + δ)                          (index target y: loss = -log(p_y + δ))

δ = 1e-7 keeps log 0 finite: a class that is given probability 0 costs -log δ = 16.1 nats instead of infinity.

How the gradient follows. d log(z)/dz = 1/z and dz/dp = 1, so

    d loss / dp_c = -t_c / (p_c + δ)
    d loss / dt_c = -log(p_c + δ)
    d² loss / dp_c² = t_c / (p_c + δ)²                    (the Hessian is diagonal)

The gradient reaches p, not the logits: the softmax before it has its own backward, and where p_y is 0 in floating point
that one is 0. `cross_entropy` takes the logits, needs no δ and does not have this dead end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function

from torchlosses import _validation
from torchlosses._numerics import compute_dtype, log_plus_delta
from torchlosses._options import mean_of
from torchlosses._reduction import reduce_rows, reduce_samples, scale_gradient
from torchlosses._shapes import from_rows, indices_to_rows, per_class, row_shape, to_rows
from torchlosses._transforms import Variants, batched, batched_gradient, forward_ad_rule, result_dtype, save
from torchlosses.kernels import cee_backward, cee_forward


class _TextbookCrossEntropy(Function):
    """loss = -Σ_c t_c log(p_c + δ) for each row, reduced."""

    @staticmethod
    def forward(  # type: ignore[override]
        input: Tensor, target: Tensor, reduction: str, delta: float, validate_args: bool, dtype: torch.dtype
    ) -> Tensor:
        return cee_forward(input, target, reduction, delta, validate_args, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.reduction, ctx.delta, _, ctx.dtype = inputs[2:]
        save(ctx, *inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, target = ctx.saved_tensors
        grad_input = grad_target = None
        if ctx.needs_input_grad[0]:
            grad_input = _GRADIENT.apply(grad_output, input, target, ctx.delta, ctx.reduction)
        if ctx.needs_input_grad[1]:
            grad_rows = scale_gradient(grad_output, ctx.reduction, _count(input))
            log = log_plus_delta(input.to(compute_dtype(input, target)), ctx.delta)
            grad_target = (-per_class(grad_rows) * log).to(target.dtype)
        return grad_input, grad_target, None, None, None, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, target: Tensor, *options: Any
    ) -> tuple[Tensor, int]:
        reduction, delta, validate_args, dtype = options
        input = batched(input, in_dims[0], info.batch_size)
        target = batched(target, in_dims[1], info.batch_size)
        row_dtype = dtype if reduction == "none" else compute_dtype(input, target)
        losses = _LOSS.apply(
            input.flatten(0, 1), target.flatten(0, 1), "none", delta, validate_args, row_dtype
        ).unflatten(0, input.shape[:2])
        return reduce_samples(losses, reduction, _count(input[0])).to(dtype), 0


class _TextbookCrossEntropyForwardAD(_TextbookCrossEntropy):
    """The same, with the directional derivative loss' = -Σ_c t_c p'_c / (p_c + δ) + t'_c log(p_c + δ)."""

    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any, saved: tuple[Tensor, ...], input_tangent: Tensor | None, target_tangent: Tensor | None, *_: None
    ) -> Tensor:
        input, target = saved
        shares = _shares(input, target)
        tangent = torch.zeros_like(shares)
        if input_tangent is not None:
            tangent = tangent - _divided(shares, input, ctx.delta) * input_tangent
        if target_tangent is not None:
            tangent = tangent - target_tangent * log_plus_delta(input.to(shares.dtype), ctx.delta)
        return reduce_rows(tangent.sum(1), ctx.reduction, _count(input)).to(ctx.dtype)


class _TextbookCrossEntropyGradient(Function):
    """gradient = -g t / (p + δ), 'mean' with g/n for g; a Function of its own, to be differentiated again."""

    @staticmethod
    def forward(  # type: ignore[override]
        grad: Tensor, input: Tensor, target: Tensor, delta: float, reduction: str
    ) -> Tensor:
        return cee_backward(grad, input, target, delta, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.delta, ctx.reduction = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad, input, target = ctx.saved_tensors
        grad_rows = scale_gradient(grad, ctx.reduction, _count(input))
        shares = _shares(input, target)
        quotient = v * _divided(shares, input, ctx.delta)
        grad_grad = scale_gradient((-quotient).sum(1).sum_to_size(grad.shape), ctx.reduction, _count(input))
        grad_input = _divided(per_class(grad_rows) * quotient, input, ctx.delta).to(input.dtype)
        grad_target = None
        if ctx.needs_input_grad[2]:
            grad_target = (-per_class(grad_rows) * v / (input.to(shares.dtype) + ctx.delta)).to(target.dtype)
        return grad_grad.to(grad.dtype), grad_input, grad_target, None, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        delta: float,
        reduction: str,
    ) -> tuple[Tensor, int]:
        input = batched(input, in_dims[1], info.batch_size)
        target = batched(target, in_dims[2], info.batch_size)
        grad = batched_gradient(grad, in_dims[0], input.shape[:2] + input.shape[3:])
        # One sample's mean divides by the sample's rows.
        grad = scale_gradient(grad, reduction, _count(input[0]))
        folded = (tensor.flatten(0, 1) for tensor in (grad, input, target))
        return _GRADIENT.apply(*folded, delta, "sum").unflatten(0, input.shape[:2]), 0


class _TextbookCrossEntropyGradientForwardAD(_TextbookCrossEntropyGradient):
    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any,
        saved: tuple[Tensor, ...],
        grad_tangent: Tensor | None,
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        *_: None,
    ) -> Tensor:
        grad, input, target = saved
        count = _count(input)
        grad_rows = per_class(scale_gradient(grad, ctx.reduction, count))
        quotient = _divided(_shares(input, target), input, ctx.delta)
        tangent = torch.zeros_like(quotient)
        if grad_tangent is not None:
            tangent = tangent - per_class(scale_gradient(grad_tangent, ctx.reduction, count)) * quotient
        if input_tangent is not None:
            tangent = tangent + _divided(grad_rows * quotient * input_tangent, input, ctx.delta)
        if target_tangent is not None:
            tangent = tangent - grad_rows * target_tangent / (input.to(quotient.dtype) + ctx.delta)
        return tangent.to(input.dtype)


_LOSS = Variants(_TextbookCrossEntropy, _TextbookCrossEntropyForwardAD, tensors=2)
_GRADIENT = Variants(_TextbookCrossEntropyGradient, _TextbookCrossEntropyGradientForwardAD, tensors=3)


def _count(input: Tensor) -> int:
    """The number of rows: elements without the class dimension."""
    return input.shape[0] * input.shape[2:].numel()


def _shares(input: Tensor, target: Tensor) -> Tensor:
    """The target as a share of each class, one-hot for class indices."""
    if target.dim() == input.dim():
        return target.to(compute_dtype(input, target))
    one_hot = torch.zeros_like(input, dtype=compute_dtype(input))
    return one_hot.scatter(1, target.unsqueeze(1), 1)


def _divided(numerator: Tensor, input: Tensor, delta: float) -> Tensor:
    """numerator / (p + δ), where 0 / 0 is 0: a class without a share counts for nothing."""
    quotient = numerator / (input.to(numerator.dtype) + delta)
    return quotient.masked_fill(numerator == 0, 0) if delta == 0 else quotient


def cee_loss(
    input: Tensor,
    target: Tensor,
    *,
    delta: float = 1e-7,
    reduction: _validation.Reduction = "mean",
    validate_args: bool = True,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
) -> Tensor:
    r"""The textbook cross-entropy error between probabilities and a target, in nats.

    .. math:: \text{loss}_n = -\sum_c t_{nc} \log(p_{nc} + \delta), \qquad
        \frac{\partial\,\text{loss}_n}{\partial p_{nc}} = -\frac{t_{nc}}{p_{nc} + \delta}

    For training on logits, `cross_entropy` is the better choice: it needs no δ and stays exact where p is close to 0.

    Args:
        input: Probabilities of shape (C), (N, C) or (N, C, d1, ...).
        target: One-hot or probabilities, of the shape of `input` (one-hot may be integer or bool); or class indices of
            shape (), (N) or (N, d1, ...), of any integer dtype, in [0, C).
        delta: δ, added before the logarithm so that log 0 stays finite.
        reduction: 'mean' divides the sum by the number of samples, or by the sum of their weights; 'sum'; 'none'.
        validate_args: Whether to check that `input` lies in [0, 1], up to rounding. Costs one look at the data.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a row, of a shape that broadcasts to the rows'. A row of weight 0 is as if it were not
            there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.

    Returns:
        A scalar, or with 'none' one loss a sample: the shape of `input` without the class dimension. float32 and
        float64 keep their dtype; bfloat16 and float16 are computed in float32 and rounded once, and stay float32
        under autocast.

    Raises:
        ValueError: `input` leaves [0, 1] by more than rounding (logits belong to `cross_entropy`), an integer target of
            the input's shape is not one-hot, `delta` is negative or not finite, `reduction` or `empty` is none of its
            values, `normalizer` is given without 'mean', `sample_weight` does not fit, or the batch sizes differ.
        RuntimeError: The other sizes do not fit, class indices are no integers, or the devices differ.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device).
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type.

    Edge cases: an empty mean is nan, or 0 as `empty` says, an empty sum 0. With `delta=0`, 0 · log 0 is 0. nan passes
    through. Differentiable to all orders with respect to `input`, floating-point targets, `sample_weight` and
    `normalizer`.

    Example:
        >>> import torch
        >>> from torchlosses import cee_loss
        >>> probabilities = torch.tensor([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64)
        >>> round(cee_loss(probabilities, torch.tensor(2)).item(), 12)
        0.510825457099

    Source: K. Saito, *Deep Learning from Scratch* (2016), section 4.2.2.
    """
    if has_torch_function((input, target, sample_weight)):
        options = {"delta": delta, "reduction": reduction, "validate_args": validate_args}
        extras = {"normalizer": normalizer, "sample_weight": sample_weight, "empty": empty}
        options |= {name: value for name, value in extras.items() if value is not _DEFAULTS[name]}
        return handle_torch_function(cee_loss, (input, target, sample_weight), input, target, **options)
    _validation.check_reduction(reduction)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    _validation.check_empty(empty)
    delta = _validation.check_delta(delta)
    _validation.check_tensors("cee_loss", input=input, target=target)
    _validation.check_same_device("cee_loss", input, target=target, sample_weight=sample_weight)
    _validation.check_classification_shapes("cee_loss", input, target)
    _validation.check_floating_input("cee_loss", input)
    _validation.check_cee_target(input, target)
    indices = target.shape != input.shape
    dtype = torch.promote_types(input.dtype, target.dtype) if target.is_floating_point() else input.dtype
    dtype = result_dtype(dtype, input.device)
    if _validation.is_integer(target.dtype):
        target = target.to(torch.int64)
    target_rows = indices_to_rows(target) if indices else to_rows(target)
    rows, options = to_rows(input), (delta, bool(validate_args))
    if sample_weight is None and (reduction != "mean" or (normalizer is None and empty == "nan")):
        loss = _LOSS.apply(rows, target_rows, reduction, *options, dtype)
        return from_rows(loss, input) if reduction == "none" else loss
    compute = compute_dtype(input, target if target.is_floating_point() else None)
    if sample_weight is None:
        total = _LOSS.apply(rows, target_rows, "sum", *options, compute)
    else:
        shape = row_shape(input)
        _validation.check_sample_weight("cee_loss", sample_weight, shape)
        sample_weight = indices_to_rows(sample_weight.to(compute).expand(shape))
        losses = _weighted_losses(rows, target_rows, sample_weight, *options, compute)
        if reduction == "none":
            return from_rows(losses, input).to(dtype)
        total = losses.sum()
    if reduction == "sum":
        return total.to(dtype)
    if normalizer is None:
        normalizer = float(_count(rows)) if sample_weight is None else sample_weight.sum()
    return mean_of(total, normalizer, empty).to(dtype)


_DEFAULTS: dict[str, Any] = cee_loss.__kwdefaults__ or {}


def _weighted_losses(
    input: Tensor, target: Tensor, sample_weight: Tensor, delta: float, validate_args: bool, dtype: torch.dtype
) -> Tensor:
    """The rows' losses times their weights; a row of weight 0 that has no loss is computed as if it held ones."""
    hidden = (sample_weight == 0).unsqueeze(1) & _without_loss(input, target, delta)
    if target.is_floating_point():
        target = target.masked_fill(hidden, 0)
    losses = _LOSS.apply(input.masked_fill(hidden, 1), target, "none", delta, validate_args, dtype)
    return losses.masked_fill(hidden.squeeze(1), 0) * sample_weight


def _without_loss(input: Tensor, target: Tensor, delta: float) -> Tensor:
    """Rows that hold no probabilities, or give the target none at all."""
    input, target = input.detach(), target.detach()
    tolerance = 4 * torch.finfo(input.dtype).eps
    if target.dim() < input.dim():
        target = target.clamp(0, input.shape[1] - 1)
    quotient = _divided(_shares(input, target), input, delta)
    usable = (input >= -tolerance) & (input <= 1 + tolerance) & quotient.isfinite()
    return usable.all(1, keepdim=True).logical_not()


class CEELoss(nn.Module):
    r"""The textbook cross-entropy error as a module: :func:`torchlosses.cee_loss` with its options kept, in nats.

    .. math:: \text{loss}_n = -\sum_c t_{nc} \log(p_{nc} + \delta)

    Args:
        delta: δ, added before the logarithm so that log 0 stays finite.
        reduction: 'mean' divides the sum by the number of samples; 'sum'; 'none'.
        validate_args: Whether to check that the probabilities lie in [0, 1], up to rounding.
        empty: What a mean over nothing gives: 'nan' or 'zero'.

    The call takes `normalizer` and `sample_weight`, as `cee_loss` does.

    Shape:
        input (C), (N, C) or (N, C, d1, ...); target of that shape, or class indices (), (N) or (N, d1, ...); a scalar
        comes out, or with 'none' one loss a sample. Dtypes as in `cee_loss`.

    Raises:
        ValueError: `delta`, `reduction` or `empty` is none of its values.
        TypeError: `delta` is no number.
        Errors of the call are those of `cee_loss`.

    Edge cases: as for `cee_loss`.

    Example:
        >>> import torch
        >>> from torchlosses import CEELoss
        >>> criterion = CEELoss()
        >>> probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        >>> round(criterion(probabilities, torch.tensor([1, 0])).item(), 4)
        0.4904

    Source: as for `cee_loss`.
    """

    __constants__ = ("delta", "reduction", "validate_args")

    def __init__(
        self,
        *,
        delta: float = 1e-7,
        reduction: _validation.Reduction = "mean",
        validate_args: bool = True,
        empty: _validation.Empty = "nan",
    ) -> None:
        super().__init__()
        _validation.check_reduction(reduction)
        _validation.check_empty(empty)
        self.delta = _validation.check_delta(delta)
        self.reduction: _validation.Reduction = reduction
        self.validate_args = validate_args
        self.empty: _validation.Empty = empty

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: Tensor | float | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of probabilities against a target; see :func:`torchlosses.cee_loss`."""
        return cee_loss(
            input,
            target,
            delta=self.delta,
            reduction=self.reduction,
            validate_args=self.validate_args,
            normalizer=normalizer,
            sample_weight=sample_weight,
            empty=self.empty,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that was pickled before it had these options."""
        super().__setstate__({"empty": "nan"} | state)

    def extra_repr(self) -> str:
        """The options."""
        empty = "" if self.empty == "nan" else f", empty={self.empty!r}"
        return f"delta={self.delta}, reduction={self.reduction!r}, validate_args={self.validate_args}{empty}"
