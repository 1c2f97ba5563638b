"""Cross-entropy on a GPU: which kernel takes a batch, and what it is given.

For logits y of a row with the largest m, rest = Σ exp(y - m) - 1 without the 1 of the largest, shares a_c and A = Σ a_c

    loss     = Σ_c a_c (log1p(rest) - (y_c - m)) + z l²,   l = m + log1p(rest)
    gradient = (A + 2 z l) exp(y - m) / (1 + rest) - a     by y
"""

# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlosses.kernels.called import called
from torchlosses.kernels.triton import launch as launches
from torchlosses.kernels.triton.cross_entropy_rows import rows_kernel
from torchlosses.kernels.triton.cross_entropy_tiles import tiles_kernel
from torchlosses.kernels.triton.launch import launch
from torchlosses.kernels.triton.plan import empty, empty_like, planned
from torchlosses.kernels.triton.reduction import count, finish


class Split(NamedTuple):
    """Which classes of the rows there are in this process: those from `first` on, of `total`.

    `largest` takes the place of the largest logit of a row, and of its largest target probability.
    """

    first: int
    total: int
    largest: Tensor | None = None


def forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient by the input (empty unless options.gradients asks for it) and the rows' state."""
    return _forward(called("cross_entropy"), input, target, weight, sample_weight, normalizer, options)


@planned
def _forward(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    device, shape = input.device, (input.shape[0], *input.shape[2:])
    compute, _ = launches.compute_type(input, target, weight, sample_weight)
    state = empty((6 if options.statistics else 2, *shape), compute, device)
    loss = empty(shape if options.reduction == "none" else (), options.dtype, device)
    gradient = empty_like(input) if options.gradients & 1 else None
    run(name, None, None, gradient, input, target, weight, sample_weight, normalizer, state, loss, options)
    return loss, empty((0,), input.dtype, device) if gradient is None else gradient, state


def forward_over(
    grad_rows: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Any,
) -> tuple[Tensor, Tensor]:
    """The rows' losses and state; the gradient for `grad_rows`, one number a row, is written over the input."""
    return _forward_over(called("cross_entropy"), grad_rows, input, target, weight, sample_weight, options)


@planned
def _forward_over(
    name: str,
    grad_rows: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Any,
) -> tuple[Tensor, Tensor]:
    assert options.reduction == "none"
    compute, _ = launches.compute_type(input, target, weight, sample_weight)
    shape = (input.shape[0], *input.shape[2:])
    losses = empty(shape, options.dtype, input.device)
    state = empty((6 if options.statistics else 2, *shape), compute, input.device)
    run(name, None, grad_rows, input, input, target, weight, sample_weight, None, state, losses, options)
    return losses, state


def backward(
    grad_output: Tensor,
    gradient: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    state: Tensor,
    options: Any,
    split: Split | None = None,
) -> None:
    """Write the gradient by the input; where options.gradients says that it is there for 1, if grad_output is not 1."""
    if options.gradients & 1 and launches.unit_first(input, options.reduction):
        launches.scale_in_place(gradient, grad_output, input, target, weight, sample_weight)
        return
    name = called("cross_entropy" if split is None else "class_parallel_cross_entropy")
    tensors = (grad_output, gradient, input, target, weight, sample_weight, normalizer, state)
    _run_by_plan(name, split, *tensors, None, options)


def run(
    name: str,
    split: Split | None,
    grad_output: Tensor | None,
    gradient: Tensor | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    state: Tensor,
    loss: Tensor | None,
    options: Any,
) -> None:
    """Forward, with a loss or without `grad_output`, or backward; of rows that are `split`, forward finds parts.

    `name` is that of the function that was called.
    """
    device, reduction = input.device, options.reduction
    samples, classes = input.shape[:2]
    positions = input.shape[2] if input.dim() == 3 else 1
    total = samples * positions
    probabilities = target.dim() == input.dim()
    adjacent = classes == 1 or (input.stride(1) == 1 and (gradient is None or gradient.stride(1) == 1))
    along_rows = adjacent and classes > launches.SHORT
    order = (0, 2) if along_rows else row_order(input, adjacent)
    outer, inner = (size_along(input, dimension) for dimension in order)

    forward = grad_output is None or loss is not None
    alone = total * classes <= launches.SMALL and reduction != "none"
    mean = reduction == "mean" and normalizer is None
    counted = mean and not probabilities
    held = grad_output is not None and bool(options.gradients & 1)
    counts, parts = None, 1
    target_steps = row_steps(target, order, probabilities)
    if counted and not alone:
        parts = launches.parts_of(total)
        counts = empty((parts,), torch.int64, device)
        launch(
            count, device, parts, 4, target, grad_output, counts, total, inner, *target_steps, options.ignore_index,
            HELD=held, BLOCK=1024,
        )  # fmt: skip

    constants = {
        # With probabilities there is nothing to assert.
        "NAME": "" if probabilities else name,
        "COMPUTE": launches.compute_type(input, target, weight, sample_weight)[1],
        "REDUCTION": reduction,
        "PROBABILITIES": probabilities,
        "SMOOTHED": options.label_smoothing != 0,
        "Z_LOSS": options.z_loss != 0,
        "SCALED": options.logit_scale != 1,
        "CAPPED": options.logit_softcap is not None,
        "STATISTICS": options.statistics and forward,
        "FORWARD": forward,
        "GRADIENT": gradient is not None,
        "HELD": held,
        "UNIT_FIRST": grad_output is not None and launches.unit_first(input, reduction),
        "ALONE": alone,
        "COUNTED": counted,
        "PARTS": parts,
        "SPLIT": split is not None,
    }
    numbers = (
        options.label_smoothing, options.z_loss, options.logit_scale, options.logit_softcap or 1.0, options.empty,
    )  # fmt: skip
    place_of_classes = (0, classes) if split is None else (split.first, split.total)
    weight_step = 0 if weight is None else weight.stride(0)
    sample_steps = row_steps(sample_weight, order, False)
    grad_steps = row_steps(grad_output, order, False) if reduction == "none" else (0, 0)
    gradient_steps = row_steps(gradient, order, True)
    input_steps = row_steps(input, order, True)

    vector = launches.VECTOR // input.element_size()
    offset = input.data_ptr() // input.element_size() % vector
    aligned = not any(number % vector for number in (offset, classes, *input_steps))
    if along_rows:
        # A backward that sums shares again does it in the forward's tiles, so that every bit is the same.
        shares = split is None and (probabilities or (options.label_smoothing != 0 and weight is not None))
        choice = launches.rows(
            device, total, classes, input.element_size(), aligned, gradient is not None, forward or shares
        )
        programs, warps = choice.programs, choice.warps
    else:
        # Not only where there are statistics to find: a backward sums shares as its forward did.
        much = state.dtype == torch.float64 or (probabilities and options.statistics)
        choice = launches.tiles(device, outer, inner, classes, adjacent, much)
        programs, warps = choice.programs, choice.warps
    if alone:
        programs, warps = 1, max(warps, 4)
    partials = None
    if loss is not None and reduction != "none" and not alone:
        partials = empty((programs,), torch.float64, device)
    tensors = (
        input, target, weight, sample_weight, normalizer, grad_output, counts, state,
        None if split is None else split.largest, partials, loss, gradient,
    )  # fmt: skip

    if isinstance(choice, launches.Rows):
        launch(
            rows_kernel, device, programs, warps, *tensors,
            outer, inner, classes, *input_steps, offset, *target_steps, weight_step, *sample_steps, *grad_steps,
            *gradient_steps,
            options.ignore_index, *place_of_classes, *numbers,
            FLAT=positions == 1, ALIGNED=aligned, TARGET_ALIKE=alike(input, target, vector) if probabilities else 0,
            GRADIENT_ALIKE=0 if gradient is None else alike(input, gradient, vector),
            BLOCK=choice.block, VEC=vector, SINGLE=choice.single, PREFETCH=choice.prefetch, **constants,
        )  # fmt: skip
    else:
        target_class = target.stride(1) if probabilities else 0
        gradient_class = 0 if gradient is None else gradient.stride(1)
        reach = max(
            inner * steps[1] + classes * step
            for steps, step in (
                (input_steps, input.stride(1)), (target_steps, target_class), (gradient_steps, gradient_class),
                (sample_steps, 0), (grad_steps, 0), ((0, 0), weight_step),
            )
        )  # fmt: skip
        of_classes = (input, target if probabilities else None, gradient)
        loss_steps = (positions, 1) if order == (0, 2) else (1, positions)
        launch(
            tiles_kernel, device, programs, warps, *tensors,
            outer, inner, classes, *loss_steps, *input_steps, input.stride(1), *target_steps, target_class, weight_step,
            *sample_steps, *grad_steps, *gradient_steps, gradient_class, options.ignore_index, *place_of_classes,
            *numbers,
            ALIGNED=vector_of(of_classes, 1), ALONG=vector_of(of_classes, order[1]), WIDE=reach >= 2**31,
            ROWS=choice.rows, CLASSES=choice.classes, SINGLE=choice.single, **constants,
        )  # fmt: skip

    if partials is not None:
        launch(
            finish, device, 1, 4, partials, normalizer, counts, loss, programs, total if classes else 0, options.empty,
            MEAN=reduction == "mean", PARTS=parts, BLOCK=1024,
        )  # fmt: skip


_run_by_plan = planned(run)


def vector_of(tensors: tuple[Tensor | None, ...], dimension: int) -> int:
    """How many neighbours along the dimension a vector has if each tensor is whole 16-byte vectors of them, else 1."""
    present = [tensor for tensor in tensors if tensor is not None]
    vector = launches.VECTOR // min(tensor.element_size() for tensor in present)
    for tensor in present:
        others = [_step(tensor, other) for other in (0, 1, 2) if other != dimension]
        sizes = tensor.data_ptr() // tensor.element_size(), size_along(tensor, dimension), *others
        if any(size % vector for size in sizes) or tensor.stride(dimension) != 1:
            return 1
    return vector


def size_along(tensor: Tensor, dimension: int) -> int:
    """The size of a dimension, 1 where there is none."""
    return tensor.shape[dimension] if dimension < tensor.dim() else 1


def row_order(input: Tensor, adjacent: bool) -> tuple[int, int]:
    """The dimensions of rows, outer and inner; a tile has neighbours along the inner one."""
    samples, positions = input.shape[0], size_along(input, 2)
    if positions == 1 or (samples > positions and (adjacent or input.stride(2) != 1)):
        return 2, 0
    return 0, 2


def _step(tensor: Tensor, dimension: int) -> int:
    """The stride, 0 where there is nothing to step to."""
    return tensor.stride(dimension) if size_along(tensor, dimension) > 1 else 0


def row_steps(tensor: Tensor | None, order: tuple[int, ...], has_classes: bool) -> tuple[int, ...]:
    """The strides along the outer and the inner dimension of rows."""
    if tensor is None:
        return (0, 0)
    return tuple(_step(tensor, dimension if has_classes or not dimension else 1) for dimension in order)


def alike(input: Tensor, other: Tensor, vector: int) -> int:
    """The bytes on whose boundaries the other tensor's rows begin where the input's whole vectors do; 0 if not so."""
    size = other.element_size()
    together = min(vector, launches.VECTOR // size)
    distances = [input.data_ptr() // input.element_size() - other.data_ptr() // size]
    distances += [_step(input, dimension) - _step(other, dimension) for dimension in (0, 2)]
    if other.stride(1) != 1 or other.data_ptr() % size or any(distance % together for distance in distances):
        return 0
    return together * size
