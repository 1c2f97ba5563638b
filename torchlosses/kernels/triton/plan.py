"""Plans of calls: the launches of a call are found once, and started again for every call that is like it.

Tables, strides, constants and Triton's own look at the arguments of a kernel take ten times as long as a launch. All of
it follows from what calls have in common: shapes, strides, dtypes, devices, alignment and options. So the first call of
a kind is followed while it runs, and what it made and launched is its plan, in which the tensors have numbers; the next
call fills in its own. A plan keeps no tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from torchlosses.kernels.triton.launch import INTERPRETED, VECTOR, Started, is_rehearsing, launch, noting

# Of each function, those used last; beyond, a call is followed once more.
PLANS = 256

_made: ContextVar[list[Tensor] | None] = ContextVar("made", default=None)
_forgetting: list[Callable[[], None]] = []


class _Step(NamedTuple):
    """A launch. `places` says which of the arguments is which tensor, or its address where it starts by `again`."""

    kernel: Any
    programs: int
    warps: int
    arguments: list[Any]
    constants: dict[str, Any]
    places: tuple[tuple[int, int], ...]
    again: Callable[[torch.device, list[Any]], None] | None


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


def forget() -> None:
    """Drop all plans, for those who change the tables that plans are made with."""
    for clear in _forgetting:
        clear()


def planned(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(*arguments, options)` by its plan, where a call like this one has been followed.

    Of tensors the function may know all but the values, and of addresses only where they lie between boundaries of 16
    bytes. It makes tensors by `empty` and `empty_like` of this file, does nothing but launch kernels on them and on its
    arguments, and gives a tuple of those it made, or None. Its other arguments are numbers, names and None.
    """

    @functools.lru_cache(PLANS)
    def plan_of(_: tuple[Any, ...]) -> _Plan:
        return _Plan()

    _forgetting.append(plan_of.cache_clear)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if is_rehearsing():
            return function(*arguments)
        if (nothing := arguments[-1].empty) != nothing and nothing is not math.nan:
            # A nan is equal to no other.
            arguments = (*arguments[:-1], arguments[-1]._replace(empty=math.nan))
        # The mode is Triton's own addition to what a kernel is made of.
        key: list[Any] = [knobs.compilation.instrumentation_mode]
        tensors: list[Tensor] = []
        addresses: list[int] = []
        for argument in arguments:
            if argument is not None and isinstance(argument, Tensor):
                address = argument.data_ptr()
                tensors.append(argument)
                addresses.append(address)
                key += argument.shape, argument.stride(), argument.dtype, argument.device, address % VECTOR
            else:
                key.append(argument)
        plan = plan_of(tuple(key))
        if (steps := plan.steps) is None:
            return function(*arguments) if plan.followed else _follow(plan, function, arguments)
        first = tensors[0]
        for sizes, strides, dtype in steps.made:
            tensor = first.new_empty_strided(sizes, strides, dtype=dtype)
            address = tensor.data_ptr()
            if address % VECTOR:
                return function(*arguments)
            tensors.append(tensor)
            addresses.append(address)
        device = first.device
        if first.is_cuda and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                _start(steps, device, tensors, addresses)
        else:
            _start(steps, device, tensors, addresses)
        return tuple([tensors[place] for place in steps.given]) if steps.given else None

    return call


def _start(steps: _Steps, device: torch.device, tensors: list[Tensor], addresses: list[int]) -> None:
    for step in steps.launches:
        arguments = step.arguments.copy()
        if step.again is None:
            for place, number in step.places:
                arguments[place] = tensors[number]
            launch(step.kernel, device, step.programs, step.warps, *arguments, **step.constants)
        else:
            for place, number in step.places:
                arguments[place] = addresses[number]
            step.again(device, arguments)


def _follow(plan: _Plan, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call the function, and see what it does."""
    # An alias of each, so that a tensor that is given twice has two numbers: the next call may give two tensors.
    own = [argument.detach() if isinstance(argument, Tensor) else argument for argument in arguments]
    made: list[Tensor] = []
    token = _made.set(made)
    try:
        with noting() as started:
            given = function(*own)
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
    kernel, _, programs, warps, arguments, constants, compiled = started
    places = tuple(
        (place, numbers[id(argument)]) for place, argument in enumerate(arguments) if isinstance(argument, Tensor)
    )
    blank = [None if isinstance(argument, Tensor) else argument for argument in arguments]
    again = None if INTERPRETED else again_of(compiled, programs)
    if again is not None:
        # A compiled kernel takes every argument in its place.
        blank += [constants[name] for name in kernel.arg_names[len(arguments) :]]
    return _Step(kernel, programs, warps, blank, constants, places, again)


def again_of(compiled: Any, programs: int) -> Callable[[torch.device, list[Any]], None] | None:
    """What starts a kernel that Triton has compiled and loaded, with addresses for tensors; None where it says no more.

    It is what Triton's `compiled[grid](*arguments)` comes down to where nobody listens to launches.
    """
    try:
        announced = compiled[programs, 1, 1]
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
        active: Any = driver.active
        stream_of = active.get_current_stream
    except (AttributeError, TypeError):
        return None
    runtime = knobs.runtime

    def again(device: torch.device, arguments: list[Any]) -> None:
        if getattr(runtime.launch_enter_hook, "calls", True) or getattr(runtime.launch_exit_hook, "calls", True):
            announced(*arguments)
        else:
            run(programs, 1, 1, stream_of(device.index), function, metadata, None, None, None, *arguments)

    return again
