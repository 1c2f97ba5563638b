"""The operators of the torch.library namespace `torchlosses`: schemas, fake versions, and which backend runs them.

An operator works on canonical arguments, which the loss files prepare: classes along dimension 1, (N, C) or (N, C, M),
one row a sample. `dtype` is the dtype of the returned loss; inside, bfloat16 and float16 are computed in float32.
The dispatcher chooses the implementation. `eager` serves every device; a compiled backend registers itself for the CPU
in front of it. `BACKEND` says which one runs, and why; the environment variable TORCHLOSSES_BACKEND chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchlosses.kernels import eager
from torchlosses.kernels.backend import choose

BACKEND = choose()

_SCHEMAS = {
    "mse_forward": "(Tensor input, Tensor target, Tensor? weight, str reduction, ScalarType dtype) -> Tensor",
    "mse_backward": "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight) -> Tensor",
    "cross_entropy_forward": (
        "(Tensor input, Tensor target, Tensor? weight, str reduction, int ignore_index, float label_smoothing, "
        "ScalarType dtype) -> (Tensor loss, Tensor maximum, Tensor log_sum, Tensor count)"
    ),
    "cross_entropy_backward": (
        "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor maximum, Tensor log_sum, "
        "int ignore_index, float label_smoothing) -> Tensor"
    ),
    "cee_forward": (
        "(Tensor input, Tensor target, str reduction, float delta, bool validate_args, ScalarType dtype) -> Tensor"
    ),
    "cee_backward": "(Tensor grad_output, Tensor input, Tensor target, float delta) -> Tensor",
}

_library = torch.library.Library("torchlosses", "DEF")


def _without_autocast(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast chose the dtype of the loss before the operator ran; it must not change the operator's own steps."""

    def call(input: Tensor, *arguments: object) -> Any:
        device = input.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return operator(input, *arguments)
        with torch.autocast(device, enabled=False):
            return operator(input, *arguments)

    return call


def _without_derivative(name: str) -> Callable[..., Any]:
    """What runs in front of every backend: an operator that is asked for its derivative says so.

    The Functions call operators with gradients switched off, so it stops only those who call an operator themselves.
    Without it they would get a zero: torch warns of that in reverse mode, and in forward mode not at all.
    """

    def call(*arguments: Any) -> Any:
        if _is_differentiated(arguments):
            raise RuntimeError(
                f"torchlosses::{name} has no derivative of its own: call the loss function (such as "
                "torchlosses.cross_entropy), or call the operator under torch.no_grad() or on detached tensors."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.torchlosses, name).default(*arguments)

    return call


def _is_differentiated(arguments: tuple[Any, ...]) -> bool:
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return forward_ad._is_fwd_grad_enabled() and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _without_derivative(_name), "Autograd")
    _library.impl(_name, _without_autocast(getattr(eager, _name)), "CompositeExplicitAutograd")


def _rows(input: Tensor) -> list[int]:
    return [*input.shape[:1], *input.shape[2:]]


@torch.library.register_fake("torchlosses::mse_forward", lib=_library)
def _(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(input, dtype=dtype) if reduction == "none" else input.new_empty((), dtype=dtype)


@torch.library.register_fake("torchlosses::mse_backward", lib=_library)
def _(grad_output: Tensor, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("torchlosses::cross_entropy_forward", lib=_library)
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _rows(input)
    compute = eager.compute_dtype(input, target, weight)
    return (
        input.new_empty(rows if reduction == "none" else (), dtype=dtype),
        input.new_empty(rows, dtype=compute),
        input.new_empty(rows, dtype=compute),
        input.new_empty((), dtype=compute),
    )


@torch.library.register_fake("torchlosses::cross_entropy_backward", lib=_library)
def _(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("torchlosses::cee_forward", lib=_library)
def _(input: Tensor, target: Tensor, reduction: str, delta: float, validate_args: bool, dtype: torch.dtype) -> Tensor:
    return input.new_empty(_rows(input) if reduction == "none" else (), dtype=dtype)


@torch.library.register_fake("torchlosses::cee_backward", lib=_library)
def _(grad_output: Tensor, input: Tensor, target: Tensor, delta: float) -> Tensor:
    return torch.empty_like(input)


mse_forward = torch.ops.torchlosses.mse_forward.default
mse_backward = torch.ops.torchlosses.mse_backward.default
cross_entropy_forward = torch.ops.torchlosses.cross_entropy_forward.default
cross_entropy_backward = torch.ops.torchlosses.cross_entropy_backward.default
cee_forward = torch.ops.torchlosses.cee_forward.default
cee_backward = torch.ops.torchlosses.cee_backward.default
