"""The operators of the torch.library namespace `torchlosses`: schemas, fake versions, and which backend runs them.

An operator works on canonical arguments, which the loss files prepare: classes along dimension 1, (N, C) or (N, C, M),
one row a sample. `dtype` is the dtype of the returned loss; inside, bfloat16 and float16 are computed in float32.
The dispatcher chooses the implementation. `eager` serves every device; the compiled backend, `native`, registers itself
for the CPU in front of it, and passes on what it does not cover. `BACKEND` says which one runs, and why; the
environment variable TORCHLOSSES_BACKEND chooses, and `use` chooses for a while.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchlosses._numerics import compute_dtype
from torchlosses._options import RowStatistics
from torchlosses.kernels import eager
from torchlosses.kernels.backend import choose

_SCHEMAS = {
    "mse_forward": "(Tensor input, Tensor target, Tensor? weight, str reduction, ScalarType dtype) -> Tensor",
    "mse_backward": "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, str reduction) -> Tensor",
    # Loss and gradient at once, for a batch so small that calling an operator costs more than computing.
    "mse_with_gradient": "(Tensor input, Tensor target, str reduction) -> (Tensor loss, Tensor gradient)",
    "cross_entropy_with_gradient": (
        "(Tensor input, Tensor target, str reduction, int ignore_index, float label_smoothing) -> "
        "(Tensor loss, Tensor gradient)"
    ),
    "cross_entropy_forward": (
        "(Tensor input, Tensor target, Tensor? weight, str reduction, int ignore_index, float label_smoothing, "
        "ScalarType dtype) -> (Tensor loss, Tensor maximum, Tensor rest)"
    ),
    "cross_entropy_backward": (
        "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor maximum, Tensor rest, "
        "str reduction, int ignore_index, float label_smoothing) -> Tensor"
    ),
    "cross_entropy_backward_": (
        "(Tensor grad_output, Tensor(a!) input, Tensor target, Tensor? weight, Tensor maximum, Tensor rest, "
        "str reduction, int ignore_index, float label_smoothing) -> ()"
    ),
    # The same with one weight a row, λ of λ log² Σ exp(y), and c of y = c tanh(x / c); reduced to none or sum.
    # `statistics` holds the fields of `RowStatistics` for each row, where they are asked for.
    "cross_entropy_extended_forward": (
        "(Tensor input, Tensor target, Tensor? weight, Tensor? sample_weight, str reduction, int ignore_index, "
        "float label_smoothing, float z_loss, float? logit_softcap, bool statistics, ScalarType dtype) -> "
        "(Tensor loss, Tensor maximum, Tensor rest, Tensor statistics)"
    ),
    "cross_entropy_extended_backward": (
        "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? sample_weight, Tensor maximum, "
        "Tensor rest, int ignore_index, float label_smoothing, float z_loss, float? logit_softcap) -> Tensor"
    ),
    "cross_entropy_extended_backward_": (
        "(Tensor grad_output, Tensor(a!) input, Tensor target, Tensor? weight, Tensor? sample_weight, Tensor maximum, "
        "Tensor rest, int ignore_index, float label_smoothing, float z_loss, float? logit_softcap) -> ()"
    ),
    "cee_forward": (
        "(Tensor input, Tensor target, str reduction, float delta, bool validate_args, ScalarType dtype) -> Tensor"
    ),
    "cee_backward": "(Tensor grad_output, Tensor input, Tensor target, float delta, str reduction) -> Tensor",
}

_library = torch.library.Library("torchlosses", "DEF")


def without_autocast(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast chose the dtype of the loss before the operator ran; it must not change the operator's own steps."""

    def call(input: Tensor, *arguments: object) -> Any:
        device = input.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return operator(input, *arguments)
        with torch.autocast(device, enabled=False):
            return operator(input, *arguments)

    return call


def without_derivative(name: str) -> Callable[..., Any]:
    """What runs in front of every backend: an operator that is asked for its derivative says so.

    The Functions call operators with gradients switched off, so it stops only those who call an operator themselves.
    Without it they would get a zero: torch warns of that in reverse mode, and in forward mode not at all.
    """

    def call(*arguments: Any) -> Any:
        if is_differentiated(arguments):
            raise RuntimeError(
                f"torchlosses::{name} has no derivative of its own: call the loss function (such as "
                "torchlosses.cross_entropy), or call the operator under torch.no_grad() or on detached tensors."
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.torchlosses, name).default(*arguments)

    return call


def is_differentiated(arguments: tuple[Any, ...]) -> bool:
    """Whether autograd, in reverse or forward mode, would have to record a call with these arguments."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return forward_ad._is_fwd_grad_enabled() and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, without_derivative(_name), "Autograd")
    _operator = without_autocast(getattr(eager, _name))
    _library.impl(_name, _operator, "CompositeExplicitAutograd")
    # Under this name the compiled operators find what they pass on to.
    _library.define(f"eager_{_name}{_schema}")
    _library.impl(f"eager_{_name}", _operator, "CompositeExplicitAutograd")


def _rows(input: Tensor) -> list[int]:
    return [*input.shape[:1], *input.shape[2:]]


@torch.library.register_fake("torchlosses::mse_forward", lib=_library)
def _(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(input, dtype=dtype) if reduction == "none" else input.new_empty((), dtype=dtype)


@torch.library.register_fake("torchlosses::mse_backward", lib=_library)
def _(grad_output: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("torchlosses::mse_with_gradient", lib=_library)
@torch.library.register_fake("torchlosses::cross_entropy_with_gradient", lib=_library)
def _(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return input.new_empty(()), torch.empty_like(input)


@torch.library.register_fake("torchlosses::cross_entropy_forward", lib=_library)
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _rows(input)
    compute = compute_dtype(input, target, weight)
    return (
        input.new_empty(rows if reduction == "none" else (), dtype=dtype),
        input.new_empty(rows, dtype=compute),
        input.new_empty(rows, dtype=compute),
    )


@torch.library.register_fake("torchlosses::cross_entropy_backward", lib=_library)
def _(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("torchlosses::cross_entropy_backward_", lib=_library)
def _(grad_output: Tensor, input: Tensor, *_: Any) -> None:
    return None


@torch.library.register_fake("torchlosses::cross_entropy_extended_forward", lib=_library)
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    statistics: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _rows(input)
    compute = compute_dtype(input, target, weight)
    return (
        input.new_empty(rows if reduction == "none" else (), dtype=dtype),
        input.new_empty(rows, dtype=compute),
        input.new_empty(rows, dtype=compute),
        input.new_empty([len(RowStatistics._fields), *rows] if statistics else [0], dtype=compute),
    )


@torch.library.register_fake("torchlosses::cross_entropy_extended_backward", lib=_library)
def _(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("torchlosses::cross_entropy_extended_backward_", lib=_library)
def _(grad_output: Tensor, input: Tensor, *_: Any) -> None:
    return None


@torch.library.register_fake("torchlosses::cee_forward", lib=_library)
def _(input: Tensor, target: Tensor, reduction: str, delta: float, validate_args: bool, dtype: torch.dtype) -> Tensor:
    return input.new_empty(_rows(input) if reduction == "none" else (), dtype=dtype)


@torch.library.register_fake("torchlosses::cee_backward", lib=_library)
def _(grad_output: Tensor, input: Tensor, target: Tensor, delta: float, reduction: str) -> Tensor:
    return torch.empty_like(input)


BACKEND, _native = choose()
INSTRUCTION_SET = None if _native is None else _native.instruction_set


def available() -> tuple[str, ...]:
    """The backends that this process can run."""
    return ("eager",) if _native is None else ("native", "eager")


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run another backend for a while, in all threads: for tests and measurements that compare them.

    Raises:
        ValueError: The backend is not available.

    Example:
        >>> from torchlosses import kernels
        >>> with kernels.use("eager"):
        ...     pass
    """
    global BACKEND
    if name not in available():
        raise ValueError(f"{name!r} is not an available backend: expected one of {', '.join(available())}.")
    before = BACKEND
    _switch(name)
    BACKEND = (
        before if name == before.name else before._replace(name=name, reason="torchlosses.kernels.use asks for it")
    )
    try:
        yield
    finally:
        _switch(before.name)
        BACKEND = before


def _switch(name: str) -> None:
    if _native is not None:
        _native.enable(name == "native")


def _explained(name: str) -> Callable[..., Any]:
    """The operator as the Functions call it.

    A compiled operator says in one sentence what it objects to; the eager one, asked the same, says where, and what
    to do.
    """
    operator = getattr(torch.ops.torchlosses, name).default
    if _native is None:
        return operator

    @functools.wraps(operator)
    def call(*arguments: Any) -> Any:
        try:
            return operator(*arguments)
        except (IndexError, ValueError):
            return getattr(eager, name)(*arguments)

    return call


mse_forward = torch.ops.torchlosses.mse_forward.default
mse_backward = torch.ops.torchlosses.mse_backward.default
mse_with_gradient = torch.ops.torchlosses.mse_with_gradient.default
cross_entropy_with_gradient = _explained("cross_entropy_with_gradient")
cross_entropy_forward = _explained("cross_entropy_forward")
cross_entropy_backward = torch.ops.torchlosses.cross_entropy_backward.default
cross_entropy_backward_ = torch.ops.torchlosses.cross_entropy_backward_.default
cross_entropy_extended_forward = _explained("cross_entropy_extended_forward")
cross_entropy_extended_backward = torch.ops.torchlosses.cross_entropy_extended_backward.default
cross_entropy_extended_backward_ = torch.ops.torchlosses.cross_entropy_extended_backward_.default
cee_forward = _explained("cee_forward")
cee_backward = torch.ops.torchlosses.cee_backward.default
