"""Mean squared error.

What it computes, for an input x and a target t of n elements, in the squared unit of the target:

    loss = (1/n) Σ (x - t)²

How the gradient follows. Only the term of x_i depends on x_i, so with e = x - t

    d loss / dx_i = (1/n) d(e_i²)/dx_i = (2/n) e_i        (chain rule: d(e²)/de = 2 e, de/dx = 1)
    d loss / dt_i = -d loss / dx_i                        (de/dt = -1)
    d² loss / dx_i² = 2/n                                 (constant: the loss is a parabola)

'sum' drops the 1/n, 'none' the sum as well. A weight w multiplies each square, and the mean then divides by Σ w.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torchlosses import _validation
from torchlosses._numerics import compute_dtype
from torchlosses._options import mean_of
from torchlosses._reduction import reduce_rows, reduce_samples, scale_gradient
from torchlosses._transforms import (
    Variants,
    batched,
    batched_gradient,
    forward_ad_rule,
    is_small_training,
    result_dtype,
    save,
    with_gradient,
)
from torchlosses.kernels import mse_backward, mse_forward, mse_with_gradient


class _SquaredDifference(Function):
    """loss = Σ w (x - t)², reduced."""

    @staticmethod
    def forward(  # type: ignore[override]
        input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, dtype: torch.dtype
    ) -> Tensor:
        return mse_forward(input, target, weight, reduction, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.reduction, ctx.dtype = inputs[3:]
        save(ctx, *inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, target, weight = ctx.saved_tensors
        needs_input, needs_target, needs_weight = ctx.needs_input_grad[:3]
        grad_input = grad_target = grad_weight = None
        if needs_input or needs_target:
            grad_input = _GRADIENT.apply(grad_output, input, target, weight, ctx.reduction)
            if needs_target:
                grad_target = -grad_input
        if needs_weight:
            grad = scale_gradient(grad_output, ctx.reduction, input.numel())
            grad_weight = (grad * _error(input, target).square()).to(weight.dtype)
        return grad_input, grad_target, grad_weight, None, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], input: Tensor, target: Tensor, weight: Tensor | None, *options: Any
    ) -> tuple[Tensor, int]:
        reduction, dtype = options
        input = batched(input, in_dims[0], info.batch_size)
        target = batched(target, in_dims[1], info.batch_size)
        if weight is not None:
            weight = batched(weight, in_dims[2], info.batch_size)
        if reduction == "none":
            return _LOSS.apply(input, target, weight, "none", dtype), 0
        losses = _LOSS.apply(input, target, weight, "none", compute_dtype(input, target, weight))
        return reduce_samples(losses, reduction, input[0].numel()).to(dtype), 0


class _SquaredDifferenceForwardAD(_SquaredDifference):
    """The same, with the directional derivative loss' = 2 w (x - t) (x' - t') + w' (x - t)²."""

    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any,
        saved: tuple[Tensor, ...],
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        *_: None,
    ) -> Tensor:
        input, target, weight = saved
        error = _error(input, target)
        tangent = torch.zeros_like(error)
        if input_tangent is not None:
            tangent = tangent + 2 * error * input_tangent
        if target_tangent is not None:
            tangent = tangent - 2 * error * target_tangent
        if weight is not None:
            tangent = weight * tangent
        if weight_tangent is not None:
            tangent = tangent + weight_tangent * error.square()
        return reduce_rows(tangent, ctx.reduction, input.numel()).to(ctx.dtype)


class _SquaredDifferenceGradient(Function):
    """gradient = 2 g w (x - t), 'mean' with g/n for g; a Function of its own, to be differentiated again."""

    @staticmethod
    def forward(  # type: ignore[override]
        grad: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str
    ) -> Tensor:
        return mse_backward(grad, input, target, weight, reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.reduction = inputs
        save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved_grad, input, target, weight = ctx.saved_tensors
        grad = scale_gradient(saved_grad, ctx.reduction, input.numel())
        v = v.to(compute_dtype(input, target, weight))
        error = _error(input, target)
        weighted = v if weight is None else v * weight
        grad_grad = scale_gradient((2 * error * weighted).sum_to_size(grad.shape), ctx.reduction, input.numel())
        grad_input = (2 * grad * weighted).to(input.dtype)
        grad_weight = None if weight is None else (2 * grad * error * v).to(weight.dtype)
        return grad_grad.to(saved_grad.dtype), grad_input, -grad_input, grad_weight, None

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], grad: Tensor, *arguments: Any
    ) -> tuple[Tensor, int]:
        *tensors, reduction = arguments
        input, target, weight = (
            None if tensor is None else batched(tensor, dimension, info.batch_size)
            for tensor, dimension in zip(tensors, in_dims[1:4], strict=True)
        )
        assert input is not None
        # One sample's mean divides by the sample's elements.
        grad = scale_gradient(batched_gradient(grad, in_dims[0], input.shape), reduction, input[0].numel())
        return _GRADIENT.apply(grad, input, target, weight, "sum"), 0


class _SquaredDifferenceGradientForwardAD(_SquaredDifferenceGradient):
    @staticmethod
    @forward_ad_rule
    def jvp(
        ctx: Any,
        saved: tuple[Tensor, ...],
        grad_tangent: Tensor | None,
        input_tangent: Tensor | None,
        target_tangent: Tensor | None,
        weight_tangent: Tensor | None,
        _: None,
    ) -> Tensor:
        grad, input, target, weight = saved
        grad = scale_gradient(grad, ctx.reduction, input.numel())
        error = _error(input, target)
        tangent = torch.zeros_like(error)
        if grad_tangent is not None:
            tangent = tangent + scale_gradient(grad_tangent, ctx.reduction, input.numel()) * error
        if input_tangent is not None:
            tangent = tangent + grad * input_tangent
        if target_tangent is not None:
            tangent = tangent - grad * target_tangent
        if weight is not None:
            tangent = weight * tangent
        if weight_tangent is not None:
            tangent = tangent + weight_tangent * grad * error
        return (2 * tangent).to(input.dtype)


_LOSS = Variants(_SquaredDifference, _SquaredDifferenceForwardAD, tensors=3)
_GRADIENT = Variants(_SquaredDifferenceGradient, _SquaredDifferenceGradientForwardAD, tensors=4)


def _gradient_again(grad: Tensor, input: Tensor, target: Tensor, reduction: str) -> Tensor:
    return _GRADIENT.apply(grad, input, target, None, reduction)


_loss_with_gradient = with_gradient("_SquaredDifference", mse_with_gradient, _gradient_again)


def _error(input: Tensor, target: Tensor) -> Tensor:
    compute = compute_dtype(input, target)
    return input.to(compute) - target.to(compute)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: _validation.Reduction = "mean",
    weight: Tensor | None = None,
    *,
    broadcast: _validation.Broadcast = "warn",
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
) -> Tensor:
    r"""Mean squared error between `input` and `target`, in the squared unit of the target.

    .. math:: \text{loss} = \frac{1}{n} \sum_i (x_i - t_i)^2, \qquad
        \frac{\partial\,\text{loss}}{\partial x_i} = \frac{2}{n} (x_i - t_i)

    A drop-in for `torch.nn.functional.mse_loss`.

    Args:
        input: Predictions, of any shape.
        target: True values, of the shape of `input`. Another shape that broadcasts is handled as `broadcast` says.
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean' divides the sum by the number of elements n, or by the sum of the weights; 'sum'; or 'none',
            which returns one squared error an element.
        weight: One factor an element, of the shape of `input`.
        broadcast: What to do when the shapes differ but broadcast, such as (N, 1) and (N,), which compares N·N pairs:
            'warn' (as torch does), 'error', or 'allow'.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        sample_weight: One weight a sample, (N) for an input of (N, d1, ...), or finer: of the sizes of the input's
            first dimensions, or 1. It multiplies every square of the sample, and the mean divides by the sum of the
            weights of all elements. An element of weight 0 is as if it were not there.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.

    Returns:
        A scalar, or with 'none' a tensor of the common shape. float32 and float64 keep their dtype; bfloat16 and
        float16 are computed in float32 and rounded once, and stay float32 under autocast; mixed dtypes are promoted.

    Raises:
        ValueError: `reduction`, `broadcast` or `empty` is none of its values; `weight` has another shape than `input`,
            or `sample_weight` does not fit it; the shapes differ and `broadcast` is 'error'; `normalizer` without
            'mean'.
        RuntimeError: The shapes do not broadcast, or the tensors are on different devices.
        NotImplementedError: Both tensors are integer, or one is complex.
        TypeError: An argument is no tensor, or `size_average` or `reduce` is given.

    Edge cases: an empty mean is nan, or 0 as `empty` says, an empty sum 0. nan and ±inf pass through; inf - inf is
    nan.
    Differentiable to all orders with respect to `input`, `target`, `weight`, `sample_weight` and `normalizer`.

    Example:
        >>> import torch
        >>> from torchlosses import mse_loss
        >>> input = torch.tensor([2.0, 4.0], requires_grad=True)
        >>> loss = mse_loss(input, torch.tensor([1.0, 1.0]))
        >>> loss.item()
        5.0
        >>> loss.backward()
        >>> input.grad
        tensor([1., 3.])

    Source: C. F. Gauss, *Theoria motus corporum coelestium* (1809); K. Saito, *Deep Learning from Scratch*
    (2016), section 4.2.1, there with 1/2 in place of 1/n.
    """
    if has_torch_function_variadic(input, target, weight, sample_weight):
        options = {"reduction": reduction, "weight": weight, "broadcast": broadcast}
        extras = {"normalizer": normalizer, "sample_weight": sample_weight, "empty": empty}
        options |= {name: value for name, value in extras.items() if value is not _DEFAULTS[name]}
        return handle_torch_function(mse_loss, (input, target, weight, sample_weight), input, target, **options)
    _validation.check_reduction(reduction)
    if size_average is not None or reduce is not None:
        _validation.check_legacy_arguments(size_average, reduce)
    if broadcast not in _validation.BROADCASTS:
        _validation.check_broadcast_option(broadcast)
    is_plain = normalizer is sample_weight is None and empty == "nan"
    if is_plain and weight is None and _are_alike(input, target):
        if not target.requires_grad and is_small_training(input, reduction):
            return _loss_with_gradient(input, target, (reduction,))
        return _LOSS.apply(input, target, None, reduction, input.dtype)
    if not is_plain:
        normalizer = _validation.check_normalizer(normalizer, reduction)
        _validation.check_empty(empty)
    _validation.check_tensors("mse_loss", input=input, target=target)
    _validation.check_same_device("mse_loss", input, target=target, weight=weight, sample_weight=sample_weight)
    _validation.check_mse_dtypes(input, target)
    if weight is not None:
        _validation.check_mse_weight(input, weight)
    if input.shape != target.shape:
        _validation.check_broadcast_option(broadcast)
        _validation.check_mse_shapes(input, target, broadcast, stacklevel=2)
        input, target = torch.broadcast_tensors(input, target)
    if weight is not None and weight.shape != input.shape:
        weight = weight.expand(input.shape)
    dtype = torch.promote_types(input.dtype, target.dtype)
    if input.dtype != target.dtype:
        input, target = input.to(dtype), target.to(dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    dtype = result_dtype(dtype, input.device)
    compute = compute_dtype(input, target, weight)
    if sample_weight is not None:
        sample_weight = _validation.check_leading_sample_weight("mse_loss", sample_weight, input.shape).to(compute)
        input, target, weight = _with_sample_weight(input, target, weight, sample_weight)
    if reduction != "mean" or (is_plain and weight is None):
        return _LOSS.apply(input, target, weight, reduction, dtype)
    if weight is not None:
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        weight = weight.to(compute)
    if normalizer is None:
        normalizer = input.numel() if weight is None else weight.sum()
    return mean_of(_LOSS.apply(input, target, weight, "sum", compute), normalizer, empty).to(dtype)


_DEFAULTS: dict[str, Any] = mse_loss.__kwdefaults__ or {}


def _with_sample_weight(
    input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The elements and their weights, with 0 in place of what has no value where the weight is 0."""
    squares = _error(input, target).square()
    combined = sample_weight.expand(input.shape).contiguous()
    if weight is not None:
        squares = squares * weight
    hidden = ((sample_weight == 0) & squares.isfinite().logical_not()).detach()
    if weight is not None:
        combined = combined * weight.to(combined.dtype).masked_fill(hidden, 0)
    return input.masked_fill(hidden, 0), target.masked_fill(hidden, 0), combined


def _are_alike(input: Tensor, target: Tensor) -> bool:
    """The commonest call, two tensors of one shape and dtype on the CPU; nothing is left to check or to convert.

    A small batch takes less time than the other checks.
    """
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.is_cpu
        and target.is_cpu
        and (input.dtype is torch.float32 or input.dtype is torch.float64)
        and input.dtype is target.dtype
        and input.shape == target.shape
    )


class MSELoss(nn.MSELoss):
    r"""Mean squared error as a module: :func:`torchlosses.mse_loss` with its options kept.

    .. math:: \text{loss} = \frac{1}{n} \sum_i (x_i - t_i)^2

    in the squared unit of the target. A drop-in for `torch.nn.MSELoss`, and a subclass of it.

    Args:
        size_average: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduce: Not supported; here so that positional arguments keep their place. Use `reduction`.
        reduction: 'mean', 'sum' or 'none'.
        broadcast: What to do when the shapes differ but broadcast: 'warn' (as torch does), 'error' or 'allow'.
        empty: What a mean over nothing gives: 'nan' or 'zero'.

    The call takes `normalizer` and `sample_weight`, as `mse_loss` does.

    Shape:
        input and target of one shape; a scalar comes out, or with 'none' that shape. Dtypes as in `mse_loss`.

    Raises:
        ValueError: `reduction`, `broadcast` or `empty` is none of its values.
        TypeError: `size_average` or `reduce` is given.
        Errors of the call are those of `mse_loss`.

    Edge cases: as for `mse_loss`.

    Example:
        >>> import torch
        >>> from torchlosses import MSELoss
        >>> probabilities = torch.tensor([0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64)
        >>> one_hot = torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
        >>> round(MSELoss()(probabilities, one_hot).item(), 12)
        0.0195

    Source: as for `mse_loss`.
    """

    __constants__ = ("reduction", "broadcast")

    reduction: _validation.Reduction  # pyright: ignore[reportIncompatibleVariableOverride] # narrower than the base's str

    def __init__(
        self,
        size_average: None = None,
        reduce: None = None,
        reduction: _validation.Reduction = "mean",
        *,
        broadcast: _validation.Broadcast = "warn",
        empty: _validation.Empty = "nan",
    ) -> None:
        _validation.check_legacy_arguments(size_average, reduce)
        _validation.check_reduction(reduction)
        _validation.check_broadcast_option(broadcast)
        _validation.check_empty(empty)
        super().__init__(reduction=reduction)
        self.broadcast: _validation.Broadcast = broadcast
        self.empty: _validation.Empty = empty

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: Tensor | float | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of `input` against `target`; see :func:`torchlosses.mse_loss`."""
        return mse_loss(
            input,
            target,
            reduction=self.reduction,
            broadcast=self.broadcast,
            normalizer=normalizer,
            sample_weight=sample_weight,
            empty=self.empty,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that was pickled before it had these options."""
        super().__setstate__({"empty": "nan"} | state)

    def extra_repr(self) -> str:
        """The options that differ from the defaults, and `reduction`."""
        broadcast = "" if self.broadcast == "warn" else f", broadcast={self.broadcast!r}"
        empty = "" if self.empty == "nan" else f", empty={self.empty!r}"
        return f"reduction={self.reduction!r}{broadcast}{empty}"
