# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""The kernel of every elementwise loss. A loss gives its formula, `(x, t, q, option) -> (loss, gradient by x)`.

Where the tensors lie alike in memory they are taken as one run of elements, in whole 16-byte vectors, the ends apart.
Otherwise the place of an element is computed for each tensor, over the fewest dimensions that describe all of them.
"""

# ruff: noqa: N803, N806  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchlosses.kernels.triton import launch as launches
from torchlosses.kernels.triton.functions import (
    denominator,
    ends,
    number,
    places,
    quotient,
    rounded,
    scaled,
    share_of_mean,
)
from torchlosses.kernels.triton.launch import launch
from torchlosses.kernels.triton.plan import empty, empty_like, planned
from torchlosses.kernels.triton.reduction import finish

# How a tensor is read: a run, a run whose vectors are aligned with the input's, one number for all, or by its strides.
RUN = tl.constexpr(0)
ALIGNED_RUN = tl.constexpr(1)
ONE = tl.constexpr(2)
STRIDED = tl.constexpr(3)

# The most dimensions that `place_of` knows.
DIMENSIONS = 4


@triton.jit
def place_of(place, sizes, strides):
    """Where the element of that number lies in a tensor of four dimensions; `sizes` are those of the last three."""
    last = place % sizes[2]
    place = place // sizes[2]
    third = place % sizes[1]
    place = place // sizes[1]
    return (place // sizes[0]) * strides[0] + (place % sizes[0]) * strides[1] + third * strides[2] + last * strides[3]


@triton.jit
def pointers(pointer, first, lane, sizes, strides, KIND: tl.constexpr, WIDE: tl.constexpr, VEC: tl.constexpr):
    """The pointers of a tile: elements `first` + lane."""
    if KIND == STRIDED:
        found = pointer + place_of((first + lane).to(tl.int64 if WIDE else tl.int32), sizes, strides)
    else:
        base = pointer + first
        if KIND == ALIGNED_RUN:
            BYTES: tl.constexpr = VEC * pointer.dtype.element_ty.primitive_bitwidth // 8
            base = tl.multiple_of(base, BYTES if BYTES < 16 else 16)
        found = base + lane
    return found


@triton.jit
def values(
    pointer, first, lane, valid, sizes, strides,
    KIND: tl.constexpr, WIDE: tl.constexpr, VEC: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A tile of a tensor in the dtype that is computed in."""
    if KIND == ONE:
        value = tl.zeros(lane.shape, COMPUTE) + tl.load(pointer).to(COMPUTE)
    else:
        at = pointers(pointer, first, lane, sizes, strides, KIND, WIDE, VEC)
        value = tl.load(at, mask=valid, other=0.0).to(COMPUTE)
    return value


@triton.jit
def counted_elements(
    target_ptr, start, stop, step, sizes, strides, ignore_index,
    KIND: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many of the elements from `start` on, BLOCK of them every `step`, are not ignore_index; lane by lane."""
    found = tl.zeros([BLOCK], tl.int64)
    lane = tl.arange(0, BLOCK)
    for first in range(start, stop, step):
        valid = first + lane < stop
        t = values(target_ptr, first, lane, valid, sizes, strides, KIND, WIDE, 1, COMPUTE)
        found += tl.where(valid & (t != ignore_index), 1, 0).to(tl.int64)
    return found


@triton.jit(do_not_specialize=["count"])
def count_elements(
    target_ptr, grad_output_ptr, counts_ptr, count, sizes, strides, ignore_index: tl.float64,
    HELD: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program's number of elements that count."""
    stop = count.to(tl.int64)
    if HELD:
        stop = tl.where(tl.load(grad_output_ptr) == 1.0, 0, stop)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    step = tl.num_programs(0) * BLOCK
    ignored = number(ignore_index, COMPUTE)
    found = counted_elements(target_ptr, start, stop, step, sizes, strides, ignored, KIND, WIDE, COMPUTE, BLOCK)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(found, 0))


@triton.jit
def tile(
    x_ptr, t_ptr, weight_ptr, sample_ptr, q_ptr, grad_ptr, loss_ptr, gradient_ptr, first, lane, valid, sizes, strides,
    option, ignore_index, unit, factor, anything,
    FORMULA: tl.constexpr, COMPUTE: tl.constexpr, IGNORING: tl.constexpr, FORWARD: tl.constexpr, GRADIENT: tl.constexpr,
    NONE: tl.constexpr, UNIT_FIRST: tl.constexpr, KINDS: tl.constexpr, WIDE: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The losses of a tile, weighted; stored if NONE; and its gradient, stored."""
    x = values(x_ptr, first, lane, valid, sizes, strides[0], KINDS & 3, WIDE, VEC, COMPUTE)
    t = values(t_ptr, first, lane, valid, sizes, strides[1], (KINDS >> 2) & 3, WIDE, VEC, COMPUTE)
    q = number(1.0, COMPUTE)
    if q_ptr is not None:
        q = values(q_ptr, first, lane, valid, sizes, strides[4], (KINDS >> 8) & 3, WIDE, VEC, COMPUTE)
    loss, slope = FORMULA(x, t, q, option)
    active = valid
    if IGNORING:
        active = active & (t != ignore_index)
    if weight_ptr is not None:
        weight = values(weight_ptr, first, lane, valid, sizes, strides[2], (KINDS >> 4) & 3, WIDE, VEC, COMPUTE)
        loss = loss * weight
        slope = slope * weight
    if sample_ptr is not None:
        sample = values(sample_ptr, first, lane, valid, sizes, strides[3], (KINDS >> 6) & 3, WIDE, VEC, COMPUTE)
        active = active & (sample != 0.0)
        loss = loss * sample
        slope = slope * sample
    loss = tl.where(active, loss, 0.0)
    if FORWARD and NONE:
        at = pointers(loss_ptr, first, lane, sizes, strides[6], (KINDS >> 12) & 3, WIDE, VEC)
        tl.store(at, rounded(loss, loss_ptr.dtype.element_ty), mask=valid)
    if GRADIENT:
        if NONE:
            unit = values(grad_ptr, first, lane, valid, sizes, strides[5], (KINDS >> 10) & 3, WIDE, VEC, COMPUTE)
        # A mean over nothing has the gradient 0 whatever its elements are.
        gradient = tl.where(active & (lane < anything), slope * unit, 0.0)
        at = pointers(gradient_ptr, first, lane, sizes, strides[7], (KINDS >> 14) & 3, WIDE, VEC)
        tl.store(
            at, scaled(gradient, factor, gradient_ptr.dtype.element_ty, UNIT_FIRST), mask=valid, cache_modifier=".cs"
        )
    return tl.sum(loss, 1).to(tl.float64)


@triton.jit(do_not_specialize=["count", "shift"])
def elements_kernel(
    x_ptr, t_ptr, weight_ptr, sample_ptr, q_ptr, normalizer_ptr, grad_ptr, counts_ptr, partials_ptr, loss_ptr,
    gradient_ptr,
    count, shift, sizes, strides, option_value: tl.float64, ignored_value: tl.float64, empty: tl.float64,
    FORMULA: tl.constexpr, COMPUTE: tl.constexpr, REDUCTION: tl.constexpr, IGNORING: tl.constexpr,
    FORWARD: tl.constexpr,
    GRADIENT: tl.constexpr, HELD: tl.constexpr, UNIT_FIRST: tl.constexpr, ALONE: tl.constexpr, COUNTED: tl.constexpr,
    PARTS: tl.constexpr, RAGGED: tl.constexpr, KINDS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """Loss and gradient, or the gradient alone."""
    GROUPS: tl.constexpr = BLOCK // VEC
    MEAN: tl.constexpr = REDUCTION == "mean"
    NONE: tl.constexpr = REDUCTION == "none"
    option = number(option_value, COMPUTE)
    ignore_index = number(ignored_value, COMPUTE)
    grad_output = tl.full((), 1.0, COMPUTE)
    if not FORWARD and not NONE:
        grad_output = tl.load(grad_ptr).to(COMPUTE)
    elements = count.to(tl.int64)
    stop = elements
    if HELD:
        # The gradient is there already for an incoming gradient of 1.
        stop = tl.where(grad_output == 1.0, 0, elements)
    if ALONE and COUNTED:
        found = counted_elements(
            t_ptr, 0, stop, 1024, sizes, strides[1], ignore_index, (KINDS >> 2) & 3, WIDE, COMPUTE, 1024
        )
        divisor = tl.sum(found, 0).to(tl.float64)
    else:
        divisor = denominator(normalizer_ptr, counts_ptr, elements, MEAN, PARTS)
    unit = share_of_mean(tl.full((), 1.0, COMPUTE) if UNIT_FIRST else grad_output, divisor, COMPUTE)
    anything = tl.where(divisor == 0.0, 0, BLOCK) if MEAN else BLOCK

    # Places count from the boundary before the first element; an element is at place - shift.
    lane = places(0, GROUPS, VEC)
    losses = tl.zeros([GROUPS], tl.float64)
    low = tl.multiple_of((shift + VEC - 1) // VEC * VEC, VEC).to(tl.int64)
    high = tl.multiple_of((shift + stop) // VEC * VEC, VEC) if RAGGED else stop
    if (KINDS & 3) == STRIDED:
        high = stop
    for begin in range(low + tl.program_id(0) * BLOCK, high, tl.num_programs(0) * BLOCK):
        left = tl.minimum(high - begin, BLOCK).to(tl.int32)
        if (KINDS & 3) != STRIDED:
            left = tl.multiple_of(left, VEC)
        losses += tile(
            x_ptr, t_ptr, weight_ptr, sample_ptr, q_ptr, grad_ptr, loss_ptr, gradient_ptr, begin - shift, lane,
            lane < left,
            sizes, strides, option, ignore_index, unit, grad_output, anything,
            FORMULA, COMPUTE, IGNORING, FORWARD, GRADIENT, NONE, UNIT_FIRST, KINDS, WIDE, VEC,
        )  # fmt: skip
    total = tl.sum(losses, 0)
    if RAGGED and (KINDS & 3) != STRIDED:
        place, valid = ends(shift.to(tl.int64), shift + stop, VEC)
        valid = valid & (place < tl.where(tl.program_id(0) == 0, shift + stop, 0))
        # `anything` bounds lanes, and these are places.
        anything = tl.where(anything > 0, shift + stop, 0)
        of_ends = tile(
            x_ptr, t_ptr, weight_ptr, sample_ptr, q_ptr, grad_ptr, loss_ptr, gradient_ptr, shift * 0, place - shift,
            valid,
            sizes, strides, option, ignore_index, unit, grad_output, anything,
            FORMULA, COMPUTE, IGNORING, FORWARD, GRADIENT, NONE, UNIT_FIRST, KINDS & 0b1010101010101010, WIDE, VEC,
        )  # fmt: skip
        total += tl.sum(of_ends, 0)
    if FORWARD and not NONE:
        if ALONE:
            tl.store(loss_ptr, rounded(quotient(total, divisor, empty), loss_ptr.dtype.element_ty))
        else:
            tl.store(partials_ptr + tl.program_id(0), total)


class Elementwise:
    """A loss: its formula, the number that takes from the options, and the target that leaves no trace."""

    def __init__(
        self,
        formula: Any,
        option: Callable[[Any], float] = lambda options: 0.0,
        ignore_index: Callable[[Any], int | None] = lambda options: None,
    ) -> None:
        self.formula, self.option, self.ignore_index = formula, option, ignore_index
        # Loss and gradient (empty unless options.gradients asks for it) of tensors, normalizer and options.
        self.forward = planned(self._forward)
        self._planned_backward = planned(self._backward)

    def backward(self, grad_output: Tensor, gradient: Tensor, *arguments: Any) -> None:
        """Write the gradient; where options.gradients says that it holds that for 1, if grad_output is not 1."""
        *tensors, _, options = arguments
        if options.gradients & 1 and launches.unit_first(tensors[0], options.reduction):
            launches.scale_in_place(gradient, grad_output, *tensors)
            return
        self._planned_backward(grad_output, gradient, *arguments)

    def _forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, normalizer, options = arguments
        input = tensors[0]
        if options.reduction == "none":
            loss = empty_like(input, options.dtype)
        else:
            loss = empty((), options.dtype, input.device)
        gradient = empty_like(input) if options.gradients & 1 else None
        _run(self, _Tensors(*tensors, loss=loss, gradient=gradient), normalizer, options)
        return loss, empty((0,), input.dtype, input.device) if gradient is None else gradient

    def _backward(self, grad_output: Tensor, gradient: Tensor, *arguments: Any) -> None:
        *tensors, normalizer, options = arguments
        _run(self, _Tensors(*tensors, grad_output=grad_output, gradient=gradient), normalizer, options)


class _Tensors(NamedTuple):
    """What a kernel reads and writes of the elements' shape, in the order of its strides."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    pos_weight: Tensor | None = None
    grad_output: Tensor | None = None
    loss: Tensor | None = None
    gradient: Tensor | None = None


class _Layout(NamedTuple):
    """How the tensors lie: their kinds, two bits each, and for strided ones sizes and strides."""

    kinds: int
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    wide: bool


def _run(kind: Elementwise, tensors: _Tensors, normalizer: Tensor | None, options: Any) -> None:
    none = options.reduction == "none"
    of_elements = [
        tensor if none or place not in (5, 6) else None for place, tensor in enumerate(tensors)
    ]  # a number is no tensor of the elements' shape
    layout = _layout(of_elements)
    if layout is None:
        _run_on_copies(kind, tensors, normalizer, options)
        return
    input, target, weight, sample_weight, pos_weight, grad_output, loss, gradient = tensors
    device, size = input.device, input.element_size()
    elements = input.numel()
    vector = launches.VECTOR // size
    flat = layout.kinds & 3 != STRIDED.value
    shift = input.data_ptr() // size % vector if flat else 0
    compute = launches.compute_type(input, target, weight, sample_weight, pos_weight)[1]
    ignore_index = kind.ignore_index(options)
    counted = options.reduction == "mean" and normalizer is None and ignore_index is not None
    held = grad_output is not None and bool(options.gradients & 1)
    alone = elements <= launches.SMALL
    choice = launches.elements(device, elements, size)
    programs = 1 if alone else choice.programs
    counts, parts = None, 1
    if counted and not alone:
        parts = launches.parts_of(elements)
        counts = empty((parts,), torch.int64, device)
        launch(
            count_elements, device, parts, 4, target, grad_output, counts, elements, layout.sizes, layout.strides[1],
            float(ignore_index),
            HELD=held, KIND=layout.kinds >> 2 & 3, WIDE=layout.wide, COMPUTE=compute, BLOCK=1024,
        )  # fmt: skip
    partials = None
    if loss is not None and not none and not alone:
        partials = empty((programs,), torch.float64, device)
    launch(
        elements_kernel, device, programs, choice.warps,
        input, target, weight, sample_weight, pos_weight, normalizer, grad_output, counts, partials, loss, gradient,
        elements, shift, layout.sizes, layout.strides,
        kind.option(options), 0.0 if ignore_index is None else float(ignore_index), options.empty,
        FORMULA=kind.formula, COMPUTE=compute, REDUCTION=options.reduction, IGNORING=ignore_index is not None,
        FORWARD=loss is not None, GRADIENT=gradient is not None, HELD=held,
        UNIT_FIRST=grad_output is not None and launches.unit_first(input, options.reduction), ALONE=alone,
        COUNTED=counted,
        PARTS=parts, RAGGED=bool(shift or elements % vector), KINDS=layout.kinds, WIDE=layout.wide,
        BLOCK=choice.block, VEC=vector,
    )  # fmt: skip
    if partials is not None:
        launch(
            finish, device, 1, 4, partials, normalizer, counts, loss, programs, elements, options.empty,
            MEAN=options.reduction == "mean", PARTS=parts, BLOCK=1024,
        )  # fmt: skip


def _run_on_copies(kind: Elementwise, tensors: _Tensors, normalizer: Tensor | None, options: Any) -> None:
    """Tensors whose layouts share no few dimensions: with contiguous copies, and what was written copied back."""
    copies = _Tensors(*(tensor if tensor is None or not tensor.dim() else tensor.contiguous() for tensor in tensors))
    _run(kind, copies, normalizer, options)
    for written, copy in ((tensors.loss, copies.loss), (tensors.gradient, copies.gradient)):
        if written is not None and copy is not None and written is not copy:
            written.copy_(copy)


def _layout(tensors: list[Tensor | None]) -> _Layout | None:
    """How to read them; None where four dimensions do not describe them."""
    input = tensors[0]
    assert input is not None
    shape = input.shape
    steps = [None if tensor is None else tensor.stride() for tensor in tensors]
    dimensions = [dimension for dimension, size in enumerate(shape) if size != 1]
    own = [steps[0][dimension] for dimension in dimensions]  # type: ignore[index]
    unused = ((0,) * DIMENSIONS,) * len(tensors)
    if _is_dense([shape[dimension] for dimension in dimensions], own):
        kinds = 0
        for place, (tensor, step) in enumerate(zip(tensors, steps, strict=True)):
            if tensor is None or step is None:
                continue
            these = [step[dimension] for dimension in dimensions]
            if these == own:
                kinds |= (ALIGNED_RUN if _are_aligned(input, tensor) else RUN).value << 2 * place
            elif not any(these) and place < 6:
                kinds |= ONE.value << 2 * place
            else:
                break
        else:
            return _Layout(kinds, (1,) * (DIMENSIONS - 1), unused, False)
    # Strided: neighbours in the tensor that is written, or else in the input, one after the other.
    leading = next(step for step in (steps[7], steps[6], steps[0]) if step is not None)
    dimensions.sort(key=lambda dimension: -leading[dimension])
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for dimension in dimensions:
        size = shape[dimension]
        if sizes and all(
            step is None or mine[-1] == step[dimension] * size for step, mine in zip(steps, strides, strict=True)
        ):
            sizes[-1] *= size
            for step, mine in zip(steps, strides, strict=True):
                mine[-1:] = [] if step is None else [step[dimension]]
        else:
            sizes.append(size)
            for step, mine in zip(steps, strides, strict=True):
                mine += [] if step is None else [step[dimension]]
    if len(sizes) > DIMENSIONS:
        return None
    missing = DIMENSIONS - len(sizes)
    sizes = [1] * missing + sizes
    padded = tuple((0,) * (DIMENSIONS - len(mine)) + tuple(mine) for mine in strides)
    reach = max(sum(size * step for size, step in zip(sizes, mine, strict=True)) for mine in padded)
    wide = max(reach, math.prod(sizes)) >= 2**31
    return _Layout(sum(STRIDED.value << 2 * place for place in range(len(tensors))), tuple(sizes[1:]), padded, wide)


def _is_dense(sizes: list[int], strides: list[int]) -> bool:
    """Whether a tensor fills one run of memory, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if stride != expected:
            return False
        expected *= size
    return True


def _are_aligned(input: Tensor, other: Tensor) -> bool:
    """Whether the other tensor has a vector's boundary wherever the input has one."""
    size = other.element_size()
    together = launches.VECTOR // max(input.element_size(), size)
    return (input.data_ptr() // input.element_size() - other.data_ptr() // size) % together == 0
