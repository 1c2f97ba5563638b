"""How a kernel is launched: in which tiles, by how many programs and warps. Tables by size, measured on an H100.

A grid is at most a few programs a multiprocessor, which take turns: so there are few partial sums, and the rows
that are under way stay in the second-level cache between the look that sums them and the look that writes the gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import interpreter
from triton.runtime.interpreter import interpreter_builder

INTERPRETED = bool(knobs.runtime.interpret)

# Debugging is what makes Triton keep assertions; those of its own, of integers that overflow, are left out.
_ASSERTIONS = {"debug": True, "sanitize_overflow": False}
# Fused multiply-adds are Triton's default up to 3.9, which warns that 3.10 has another.
_OPTIONS = {**_ASSERTIONS, "enable_fp_fusion": True}
if INTERPRETED:
    # The interpreter takes no options of a launch.
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, **_ASSERTIONS)
    if triton.__version__.startswith("3.6."):
        _patch_lang_tensor = interpreter._patch_lang_tensor

        def _patch_lang_tensor_and_index(tensor: Any, scope: Any) -> None:
            """Triton 3.6 takes int() of an array of one element, which NumPy 2.4 refuses."""
            _patch_lang_tensor(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

        interpreter._patch_lang_tensor = _patch_lang_tensor_and_index

# A batch of up to so many elements is the work of one program, in one launch: loss, mean and gradient.
SMALL = 1 << 15

# Bytes of a vector: what a thread reads and writes at once.
VECTOR = 16

# Rows of up to so many classes are taken several at a time.
SHORT = 128


class Device(NamedTuple):
    """What the tables depend on."""

    multiprocessors: int
    warps: int  # of one program at most


class Rows(NamedTuple):
    """How `rows_kernel` runs: elements of a tile, warps, programs, whether a row is one tile, whether to prefetch."""

    block: int
    warps: int
    programs: int
    single: bool
    prefetch: bool


class Tiles(NamedTuple):
    """How `tiles_kernel` runs: rows and classes of a tile, warps, programs, and whether a tile has all classes."""

    rows: int
    classes: int
    warps: int
    programs: int
    single: bool


class Elements(NamedTuple):
    """How an elementwise kernel runs: elements of a tile, warps, programs."""

    block: int
    warps: int
    programs: int


class Rehearsal(NamedTuple):
    """What is done with kernels in place of starting them, and the device that tensors on `meta` stand for."""

    start: Callable[[Any, torch.device, int, int, tuple[Any, ...], dict[str, Any]], None]
    of_meta: Device | None = None


class Started(NamedTuple):
    """A kernel that was started, and what Triton made of it."""

    kernel: Any
    device: torch.device
    programs: int
    warps: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    compiled: Any


_rehearsal: ContextVar[Rehearsal | None] = ContextVar("rehearsal", default=None)
_started: ContextVar[list[Started] | None] = ContextVar("started", default=None)


@contextmanager
def rehearsing(rehearsal: Rehearsal) -> Iterator[None]:
    """Kernels are handed to `rehearsal.start`, with the arguments and constants they would start with."""
    token = _rehearsal.set(rehearsal)
    try:
        yield
    finally:
        _rehearsal.reset(token)


def is_rehearsing() -> bool:
    """Whether kernels are handed to someone in place of being started."""
    return _rehearsal.get() is not None


@contextmanager
def noting() -> Iterator[list[Started]]:
    """The kernels that are started in this block."""
    started: list[Started] = []
    token = _started.set(started)
    try:
        yield started
    finally:
        _started.reset(token)


def of_device(device: torch.device) -> Device:
    """What the tables depend on; the interpreter has few multiprocessors, so that its programs take several turns."""
    if device.type == "meta" and (rehearsal := _rehearsal.get()) is not None and rehearsal.of_meta is not None:
        return rehearsal.of_meta
    return Device(2, 32) if device.type == "cpu" else of_gpu(device)


@functools.cache
def of_gpu(device: torch.device) -> Device:
    """The properties of a GPU."""
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.multi_processor_count, 1024 // properties.warp_size)


def rows(device: torch.device, count: int, classes: int, itemsize: int, aligned: bool, both: bool, sums: bool) -> Rows:
    """For rows of neighbouring classes; `sums`: a loss is computed, `both`: and the gradient along with it."""
    multiprocessors, most_warps = of_device(device)
    count = max(count, 1)
    vector = VECTOR // itemsize
    whole = classes * itemsize
    size = triton.next_power_of_2(max(classes, vector * 2))
    if size * itemsize <= (1 << 15 if itemsize > 2 else 1 << 14):
        warps = max(1, min(16, most_warps, size * itemsize // 1024))
        return Rows(size, warps, min(count, multiprocessors * 32), True, False)
    if not sums:
        return Rows((1 << 14) // itemsize, min(8, most_warps), min(count, multiprocessors * 16), False, True)
    if not both:
        block, warps = (1 << 14, 8) if aligned else (1 << 13, 4)
        return Rows(block // itemsize, min(warps, most_warps), min(count, multiprocessors * 32), False, aligned)
    if whole <= 1 << 16:
        return Rows((1 << 14) // itemsize, min(16, most_warps), min(count, multiprocessors * 32), False, True)
    if whole <= 1 << 17:
        return Rows((1 << 14) // itemsize, min(16, most_warps), min(count, multiprocessors * 2), False, True)
    return Rows((1 << 15) // itemsize, min(32, most_warps), min(count, multiprocessors), False, True)


def tiles(device: torch.device, outer: int, inner: int, classes: int, adjacent: bool, much: bool) -> Tiles:
    """For short rows, and for rows whose classes are not `adjacent`; more warps where there is `much` of an element."""
    multiprocessors, most_warps = of_device(device)
    size = triton.next_power_of_2(max(classes, 1))
    single = size <= 256
    if not single:
        size = 64
    count = max(2048 // size, 1 if adjacent else 32)
    count = min(count, triton.next_power_of_2(max(inner, 1)))
    of_warp = (1024 if single else 512) // (4 if much else 1)
    warps = max(1, min(16, most_warps, count * size // of_warp))
    return Tiles(count, size, warps, max(1, min(outer * -(-inner // count), multiprocessors * 32)), single)


def elements(device: torch.device, count: int, itemsize: int) -> Elements:
    """For elementwise losses: 64 bytes of a tensor a thread and turn."""
    multiprocessors, most_warps = of_device(device)
    block = 8192 // min(itemsize, 4)
    return Elements(block, min(4, most_warps), max(1, min(-(-count // block), multiprocessors * 16)))


def launch(kernel: Any, device: torch.device, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the current stream of the device, whichever device is the current one."""
    if (rehearsal := _rehearsal.get()) is not None:
        rehearsal.start(kernel, device, programs, warps, arguments, {**constants, **_OPTIONS})
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, device, programs, warps, *arguments, **constants)
        return
    # NumPy speaks up where a GPU is silent: inf - inf in lanes whose result nobody takes.
    with _silent() if INTERPRETED else nullcontext():
        compiled = kernel[(programs,)](*arguments, num_warps=warps, **constants, **_OPTIONS)
    if (started := _started.get()) is not None:
        started.append(Started(kernel, device, programs, warps, arguments, constants, compiled))


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def parts_of(count: int) -> int:
    """By how many programs rows are counted: each kernel that needs the count sums as many numbers."""
    return min(triton.next_power_of_2(max(1, -(-count // 4096))), 256)


def compute_type(*tensors: Tensor | None) -> tuple[torch.dtype, Any]:
    """The dtype that is computed in, as torch's and as Triton's: float64 where a floating argument is, else float32."""
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64, tl.float64
    return torch.float32, tl.float32


def unit_first(input: Tensor, reduction: str) -> bool:
    """Whether the gradient is that for an incoming gradient of 1, rounded, times the incoming one.

    So it is where a launch costs more than the work, because then the backward is a product by torch. Not in float16:
    there a large incoming gradient is what keeps a small gradient from vanishing.
    """
    return reduction != "none" and input.numel() <= SMALL and input.dtype != torch.float16


# The first argument where the second is no 0, and 0 there.
_where_not_zero = torch.ops.aten.hardshrink_backward.default


def scale_in_place(gradient: Tensor, grad_output: Tensor, *tensors: Tensor | None) -> None:
    """What a kernel with UNIT_FIRST does for a loss of these tensors, by torch: a product in which 0 stays 0."""
    factor = grad_output
    if grad_output.dtype is not gradient.dtype:
        # A number of another dtype would take that of the gradient first.
        factor = grad_output.to(compute_type(*tensors)[0]).expand(gradient.shape)
    gradient.mul_(_where_not_zero(factor, gradient, 0.0))
