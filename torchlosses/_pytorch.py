"""What PyTorch keeps private, each behind a name; and what they tell of a tensor and of who is looking.

`tests/test_private.py` says what to look at when one of the private names is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.utils import enable_single_level_autograd_function as enable_single_level_autograd_function
from torch.autograd import Function, forward_ad, profiler
from torch.utils._pytree import tree_map_only as tree_map_only

transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
below_autograd: Any = torch._C._AutoDispatchBelowAutograd
functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
autograd: Any = torch._C._autograd  # type: ignore[attr-defined]
set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
overrides_enabled: Callable[[], bool] = torch._C._is_torch_function_enabled
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_is_excluded: Callable[[Any], bool] = torch._C._dispatch_tls_is_dispatch_key_excluded
_frames: Any = torch._C._dynamo.eval_frame  # type: ignore[attr-defined]
_FRONT_OF_TRANSFORMS: Any = torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode  # type: ignore[attr-defined]
make_dual: Any = torch._VF._make_dual  # type: ignore[attr-defined]
unpack_dual: Any = torch._VF._unpack_dual  # type: ignore[attr-defined]
set_forward_mode: Callable[[bool], Any] = forward_ad._set_fwd_grad_enabled
SingleLevelFunction: Any = torch.autograd.function._SingleLevelFunction
compiled_autograd_key: Any = Function._compiled_autograd_key  # type: ignore[attr-defined]


def forward_mode_active() -> bool:
    """Whether forward-mode AD is at work."""
    return forward_ad._current_level >= 0


def profiling() -> bool:
    """Whether a profile is being made."""
    return profiler._is_profiler_enabled


def ragged_dimension(nested: Tensor) -> int:
    """The dimension of a jagged tensor along which its parts differ in size."""
    return nested._ragged_idx  # type: ignore[attr-defined]


def recording() -> bool:
    """Whether somebody follows what is made of the tensors at hand: autograd, forward-mode AD, or torch.func."""
    return torch.is_grad_enabled() or transforms_active() or forward_mode_active()


def may_look(tensor: Tensor) -> bool:
    """Whether to read a value is free, and no one is to know of it: not of a fake, mapped or traced tensor."""
    return tensor.device.type == "cpu" and not recording() and is_plain(tensor)


def functions_apply() -> bool:
    """Whether a Function can be applied: not inside of an operator at a level of torch.func, nor in functionalize."""
    if torch.compiler.is_compiling():
        return False
    if not transforms_active():
        return True
    levels = functorch.get_interpreter_stack()
    return not _is_excluded(_FRONT_OF_TRANSFORMS) and all(
        level.key() != functorch.TransformType.Functionalize for level in levels
    )


def is_followed(tensor: Tensor) -> bool:
    """Whether a derivative is followed through a tensor, backwards or forwards."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        return True
    return forward_mode_active() and forward_ad.unpack_dual(tensor).tangent is not None


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save for the backward, and for `jvp` where forward-mode AD is at work."""
    ctx.save_for_backward(*tensors)
    if forward_mode_active() or transforms_active():
        ctx.save_for_forward(*tensors)


def forward_ad_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Make `rule(ctx, saved, *tangents)` a `jvp` of a Function that is itself differentiable in forward mode.

    PyTorch switches forward-mode AD off while a `jvp` runs, so that a derivative of the derivative (`jacfwd` of
    `jacfwd`) would come out as 0 without an error. Here it stays on, and `saved` holds the saved tensors without the
    tangents of this level, which `rule` is about to use up: a level is number 0, and torch.func gives each of its
    levels a number 0 of its own.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        with set_forward_mode(True):
            saved = tuple(None if t is None else unpack_dual(t, level=0)[0] for t in ctx.saved_tensors)
            return rule(ctx, saved, *tangents)

    return jvp


def replaced(tensor: Tensor, index: Tensor, value: Any) -> Tensor:
    """`tensor` with `value` where `index` points along dimension 1; in place where nobody follows."""
    return tensor.scatter(1, index, value) if recording() else tensor.scatter_(1, index, value)


def exponential(tensor: Tensor) -> Tensor:
    """exp; in place where nobody follows."""
    return tensor.exp() if recording() else tensor.exp_()


def not_compiled(function: Any) -> Any:
    """Where torch.compile leaves a call to Python, it looks into every frame below; a kernel is none of its affairs."""
    skip = _frames._FrameAction.SKIP
    _frames.set_code_exec_strategy(function.__code__, _frames._FrameExecStrategy(skip, skip))
    return function


def is_real(tensor: Tensor) -> bool:
    """Whether its values can be read: nobody records, fakes or maps them."""
    return type(tensor) in (Tensor, nn.Parameter) and not transforms_active() and not _dispatch_modes()


def is_plain(tensor: Tensor) -> bool:
    """Whether no compiler, transform, forward-mode AD, dispatch mode, tracer or subclass sees what is done to it."""
    return (
        not torch.compiler.is_compiling()
        and not transforms_active()
        and forward_ad._current_level < 0
        and not _dispatch_modes()
        and not _is_tracing()
        and (type(tensor) is Tensor or type(tensor) is nn.Parameter)
    )


def is_memory(tensor: Tensor) -> bool:
    """Whether a tensor is its elements in memory, and nothing that the dispatcher has to look at."""
    if (
        type(tensor) not in (Tensor, nn.Parameter)
        or tensor.layout is not torch.strided
        or tensor.is_neg()
        or functorch.is_functorch_wrapped_tensor(tensor)
    ):
        return False
    # The address of a tensor without memory counts from 0.
    address = tensor.data_ptr()
    return address >> 31 != 0 or address != tensor.storage_offset() * tensor.element_size() or not tensor.numel()


def nobody_follows(grad_output: Tensor) -> bool:
    """Whether what is computed of an incoming gradient is not differentiated, mapped or traced."""
    return not torch.is_grad_enabled() and is_plain(grad_output) and not functorch.is_legacy_batchedtensor(grad_output)


def saved_tensors_have_hooks() -> bool:
    """In a checkpointed forward, for one: nobody wants what is computed there ahead of time."""
    return not torch.compiler.is_compiling() and autograd._top_saved_tensors_default_hooks(True) is not None


def vjp(function: Callable[..., Any], *values: Any) -> tuple[Any, Callable[..., tuple[Tensor, ...]]]:
    """As `torch.func.vjp`, also where tensors are saved with hooks, which torch.func does not support."""
    if transforms_active() or not saved_tensors_have_hooks():
        return torch.func.vjp(function, *values)[:2]
    with torch.enable_grad():
        # An alias of each, so that nothing further back is reached.
        aliases = [value.view_as(value) for value in values]
        for alias in aliases:
            if not alias.requires_grad:
                alias.requires_grad_()
        output = function(*aliases)

    def pull_back(grads: Any) -> tuple[Tensor, ...]:
        outputs, grads = ((output,), (grads,)) if isinstance(output, Tensor) else (output, grads)
        followed = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
        if not followed:
            return tuple(torch.zeros_like(alias) for alias in aliases)
        outputs, grads = zip(*followed, strict=True)
        further = torch.is_grad_enabled()
        return torch.autograd.grad(
            outputs, aliases, grads, retain_graph=True, create_graph=further, materialize_grads=True
        )

    return output, pull_back
