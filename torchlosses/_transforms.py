"""What every loss's autograd.Function needs for torch.vmap, and for torch.compile beside forward-mode AD."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

# Elements up to which a gradient is computed along with the loss: a batch that fits in the cache of a core.
SMALL = 1 << 18

_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
# The mapped gradients of `torch.autograd.grad(..., is_grads_batched=True)`, which are none of torch.func's.
_is_legacy_batched: Callable[[Tensor], bool] = _functorch.is_legacy_batchedtensor


class Variants:
    """One Function in the forms that PyTorch asks for; `apply` takes the one that fits the moment.

    Args:
        without_forward_ad: The Function without `jvp`: torch.compile refuses a Function that defines one.
        with_forward_ad: The same with `jvp`, and with `setup_context`, which torch.func asks for.

        tensors: How many of the arguments, the first ones, are tensors or None.

    For plain eager calls a third form is made of the second: `forward` and `setup_context` in one, below autograd,
    which has nothing to record there; and all options in one argument, since PyTorch asks for a gradient of each. That
    is what PyTorch calls fastest. Where nobody will ask for a derivative, `forward` alone is called. If `forward`
    returns a tuple, its first entry is the result, and the others are only kept.
    """

    def __init__(self, without_forward_ad: type[Function], with_forward_ad: type[Function], tensors: int) -> None:
        self._compiled = without_forward_ad
        self._transformed = with_forward_ad
        self._forward = with_forward_ad.forward
        # Past Function.apply, which asks once more for torch.func.
        plain: Any = super(Function, _in_one(with_forward_ad, tensors))
        self._apply_plain = plain.apply
        self._tensors = tensors

    def apply(self, *arguments: Any) -> Tensor:
        """Call the Function, for its result."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return _result(self.apply_for_all(*arguments))
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return self._apply_plain(*arguments[: self._tensors], arguments[self._tensors :])
        with torch._C._AutoDispatchBelowAutograd():
            return _result(self._forward(*arguments))

    def apply_for_all(self, *arguments: Any) -> Any:
        """Call the Function, for all that `forward` returns."""
        if not torch.compiler.is_compiling():
            return self._transformed.apply(*arguments)
        if _derivatives_around() > 1:
            raise RuntimeError(
                "A derivative of a derivative by torch.func inside a compiled region would come out wrong: PyTorch "
                "compiles the backward of a custom Function without a derivative of its own. Leave torch.compile out, "
                "or compile the loss alone."
            )
        return self._compiled.apply(*arguments)


def _derivatives_around() -> int:
    """How many derivatives by torch.func the compiler has entered where it traces this call."""
    if _functorch.maybe_current_level() is None:
        return 0
    derivatives = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)
    return sum(interpreter.key() in derivatives for interpreter in _functorch.get_interpreter_stack())


# What torch.compiler.assume_constant_result sets; that would import the whole compiler with this package.
_derivatives_around._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _result(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _in_one(function: Any, tensors: int) -> type[Function]:
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        arguments = (*arguments[:tensors], *arguments[tensors])
        with torch._C._AutoDispatchBelowAutograd():
            output = function.forward(*arguments)
        function.setup_context(ctx, arguments, output)
        return _result(output)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return function.backward(ctx, grad_output)[: tensors + 1]

    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _result(function.jvp(ctx, *tangents))

    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(Function.setup_context),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp),
    }
    return type(function.__name__.removesuffix("ForwardAD"), (function,), methods)


def _only_autograd() -> bool:
    """Whether no compiler, transform of torch.func, forward-mode AD or dispatch mode is at work."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and torch._C._len_torch_dispatch_stack() == 0
    )


def is_small_training(input: Tensor, reduction: str) -> bool:
    """Whether autograd, and nothing else, records a reduced loss whose gradient is computed along with it."""
    return (
        _only_autograd()
        and input.requires_grad
        and input.numel() <= SMALL
        and reduction != "none"
        and torch.is_grad_enabled()
    )


def _number_of(grad_output: Tensor) -> float | None:
    """The value of an incoming gradient that is one number, where nobody follows what is made of it; else None."""
    if torch.is_grad_enabled() or not _only_autograd() or _is_legacy_batched(grad_output):
        return None
    return grad_output.item()


def with_gradient(
    name: str, operator: Callable[..., tuple[Tensor, Tensor]], gradient: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """A Function for a small batch, whose gradient is computed along with the loss: calling costs more than computing.

    The first backward hands the gradient out. Whatever else is asked for, a derivative of the gradient or a second
    backward, is computed from the saved input, as for a large batch. To be called where `is_small_training()` holds,
    with a target that does not require grad.

    Args:
        name: of the Function.
        operator: (input, target, *options) -> the loss, one number, and its gradient by the input.
        gradient: (grad_output, input, target, *options) -> the gradient, differentiable.
    """

    def forward(ctx: Any, input: Tensor, target: Tensor, options: tuple[Any, ...]) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            loss, ctx.gradient = operator(input, target, *options)
        ctx.options = options
        ctx.save_for_backward(input, target)
        return loss

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        ready, ctx.gradient = ctx.gradient, None
        # Also where they are not needed: autograd checks here that they are still what they were.
        saved = ctx.saved_tensors
        if ready is not None and (factor := _number_of(grad_output)) is not None:
            if factor == 1:
                return ready, None, None
            # 0 · ∞ would be nan; the other way knows the rows that leave no trace.
            if math.isfinite(factor):
                return ready.mul_(factor), None, None
        return gradient(grad_output, *saved, *ctx.options), None, None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    # Past Function.apply, which asks once more for torch.func.
    function: Any = super(Function, type(name, (Function,), methods))
    return function.apply


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save for the backward, and for `jvp` where forward-mode AD is at work."""
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)


def forward_ad_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Make `rule(ctx, saved, *tangents)` a `jvp` that is itself differentiable in forward mode.

    PyTorch switches forward-mode AD off while a `jvp` runs, so that a derivative of the derivative (`jacfwd` of
    `jacfwd`) would come out as 0 without an error. Here it stays on, and `saved` holds the saved tensors without the
    tangents of this level, which `rule` is about to use up.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = (
                tensor if tensor is None else forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_tensors
            )
            return rule(ctx, tuple(saved), *tangents)

    return jvp


def batched(tensor: Tensor, dimension: int | None, size: int) -> Tensor:
    """`tensor` with the mapped dimension in front; a tensor that is not mapped is expanded."""
    if dimension is None:
        return tensor.expand(size, *tensor.shape)
    return tensor.movedim(dimension, 0)


def batched_gradient(grad: Tensor, dimension: int | None, shape: torch.Size) -> Tensor:
    """A gradient that is one number a sample, or has the sample's shape, as `shape`: the mapped dimension in front."""
    grad = batched(grad, dimension, shape[0])
    if grad.dim() == 1:
        grad = grad.reshape(-1, *(1,) * (len(shape) - 1))
    return grad.expand(shape)


def loop(function: Variants, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    """The mapped call as a plain loop, for the rare arguments that cannot be folded into the rows."""
    calls = [
        function.apply_for_all(
            *(
                argument if dimension is None else argument.select(dimension, index)
                for argument, dimension in zip(arguments, in_dims, strict=True)
            )
        )
        for index in range(info.batch_size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    return tuple(torch.stack(outputs) for outputs in zip(*calls, strict=True)), (0,) * len(calls[0])


def result_dtype(computed: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype a loss is returned in: that of its arguments, and at least float32 under autocast."""
    return torch.promote_types(computed, torch.float32) if autocast_enabled(device) else computed


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for `device`; meta tensors know no autocast, and torch raises when asked."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
