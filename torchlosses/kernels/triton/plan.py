"""Plans of calls: the launches of a call are found once, and started again for every call that is like it.

Tables, strides, constants and Triton's own look at the arguments of a kernel take ten times as long as a launch. All of
it follows from what calls have in common: shapes, strides, dtypes, devices, alignment and options. So the first call of
a kind is followed while it runs, and what it made and launched is its plan, in which the tensors have numbers; the next
call fills in its own. A plan keeps no tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs

from torchlosses.kernels.triton.launch import INTERPRETED, VECTOR, Started, is_rehearsing, launch, noting

# Of each function, those used last; beyond, a call is followed once more.
PLANS = 256

_made: ContextVar[list[Tensor] | None] = ContextVar("made", default=None)


class _Step(NamedTuple):
    """A launch: `start` of `arguments`, in which `places` says which of them is which tensor, or its address."""

    start: Callable[..., Any]
    arguments: list[Any]
    places: tuple[tuple[int, int], ...]
    by_address: bool


class _Steps(NamedTuple):
    """What a call does: the tensors it makes (sizes, strides, dtype), what it launches, and which tensors it gives."""

    made: tuple[tuple[Sequence[int], Sequence[int], torch.dtype], ...]
    launches: tuple[_Step, ...]
    given: tuple[int, ...]


class _Plan:
    """Of one kind of calls; without steps until the first is through, or where tensors came from elsewhere."""

    __slots__ = ("followed", "steps")

    def __init__(self) -> None:
        self.followed = False
        self.steps: _Steps | None = None


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that a planned function makes."""
    return _noted(torch.empty(shape, dtype=dtype, device=device))


def empty_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The same, with the sizes and strides of another, and its dtype unless one is given."""
    return _noted(torch.empty_like(tensor, dtype=dtype))


def _noted(tensor: Tensor) -> Tensor:
    if (made := _made.get()) is not None:
        made.append(tensor)
    return tensor


def planned(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(*arguments, options=...)` by its plan, where a call like this one has been followed.

    Of tensors the function may know all but the values, and of addresses only where they lie between boundaries of 16
    bytes. It makes tensors by `empty` and `empty_like` of this file, does nothing but launch kernels on them and on its
    arguments, and gives a tuple of those it made, or None. Beside tensors there are numbers and names among its
    arguments, and None.
    """

    @functools.lru_cache(PLANS)
    def plan_of(_: tuple[Any, ...]) -> _Plan:
        return _Plan()

    @functools.wraps(function)
    def call(*arguments: Any, options: Any) -> Any:
        if is_rehearsing():
            return function(*arguments, options=options)
        # A nan is no key, as it is not equal to itself. The mode is Triton's own addition to what a kernel is made of.
        nothing = options.empty
        key = [options[0], nothing if nothing == nothing else None, options[2:], knobs.compilation.instrumentation_mode]
        tensors, addresses = [], []
        for argument in arguments:
            if isinstance(argument, Tensor):
                address = argument.data_ptr()
                tensors.append(argument)
                addresses.append(address)
                key += argument.shape, argument.stride(), argument.dtype, argument.device, address % VECTOR
            else:
                key.append(argument)
        plan = plan_of(tuple(key))
        if (steps := plan.steps) is None:
            return (
                function(*arguments, options=options) if plan.followed else _follow(plan, function, arguments, options)
            )
        device = tensors[0].device
        for sizes, strides, dtype in steps.made:
            tensor = torch.empty_strided(sizes, strides, dtype=dtype, device=device)
            address = tensor.data_ptr()
            if address % VECTOR:
                return function(*arguments, options=options)
            tensors.append(tensor)
            addresses.append(address)
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                _start(steps, tensors, addresses)
        else:
            _start(steps, tensors, addresses)
        return tuple([tensors[place] for place in steps.given]) if steps.given else None

    return call


def _start(steps: _Steps, tensors: list[Tensor], addresses: list[int]) -> None:
    for start, arguments, places, by_address in steps.launches:
        values: Sequence[Any] = addresses if by_address else tensors
        filled = arguments.copy()
        for place, number in places:
            filled[place] = values[number]
        start(*filled)


def _follow(plan: _Plan, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any) -> Any:
    """Call the function, and see what it does."""
    # An alias of each, so that a tensor that is given twice has two numbers: the next call may give two tensors.
    own = [argument.detach() if isinstance(argument, Tensor) else argument for argument in arguments]
    made: list[Tensor] = []
    token = _made.set(made)
    try:
        with noting() as started:
            given = function(*own, options=options)
    finally:
        _made.reset(token)
    known = [argument for argument in own if isinstance(argument, Tensor)] + made
    numbers = {id(tensor): number for number, tensor in enumerate(known)}
    launched = [argument for step in started for argument in step.arguments if isinstance(argument, Tensor)]
    if all(id(tensor) in numbers for tensor in launched) and not any(tensor.data_ptr() % VECTOR for tensor in made):
        plan.steps = _Steps(
            tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in made),
            tuple(_step(step, numbers) for step in started),
            tuple(numbers[id(tensor)] for tensor in given or ()),
        )
    plan.followed = True
    return given


def _step(started: Started, numbers: dict[int, int]) -> _Step:
    """How to start a kernel again."""
    kernel, device, programs, warps, arguments, constants, compiled = started
    places = tuple(
        (place, numbers[id(argument)]) for place, argument in enumerate(arguments) if isinstance(argument, Tensor)
    )
    blank = [None if isinstance(argument, Tensor) else argument for argument in arguments]
    if INTERPRETED or not hasattr(compiled, "__getitem__"):
        return _Step(functools.partial(launch, kernel, device, programs, warps, **constants), blank, places, False)
    # As in Triton's tutorials. The compiled kernel takes every argument in its place, and an address for a tensor.
    blank += [constants[name] for name in kernel.arg_names[len(arguments) :]]
    return _Step(compiled[programs, 1, 1], blank, places, True)
