# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""The textbook cross-entropy error on probabilities on a GPU: loss = -Σ_c t_c log(p_c + δ), gradient -t_c / (p_c + δ).

Loss and gradient of a class need no other class, so that a tile [ROWS, CLASSES] is read once and forgotten.
"""

# ruff: noqa: N803, N806  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchlosses import _validation
from torchlosses.kernels.triton import launch as launches
from torchlosses.kernels.triton.cross_entropy import row_order, row_steps, size_along, vector_of
from torchlosses.kernels.triton.functions import denominator, log1p, number, quotient, rounded, scaled, share_of_mean
from torchlosses.kernels.triton.launch import launch
from torchlosses.kernels.triton.plan import empty, empty_like, planned
from torchlosses.kernels.triton.reduction import finish


@triton.jit
def log_plus(p, delta):
    """log(p + δ), right to rounding also next to p = 1, where p + δ would round δ away."""
    near = p >= 0.5
    return tl.where(near, log1p(tl.where(near, p - 1.0, 0.0) + delta), tl.log(tl.where(near, 1.0, p + delta)))


@triton.jit(
    do_not_specialize=[
        "outer", "inner", "classes", "row_outer", "row_inner", "p_outer", "target_outer", "target_inner",
        "sample_outer",
        "sample_inner", "grad_outer", "grad_inner", "gradient_outer",
    ]
)  # fmt: skip
def textbook_kernel(
    p_ptr, target_ptr, sample_weight_ptr, normalizer_ptr, grad_output_ptr, partials_ptr, loss_ptr, gradient_ptr,
    outer, inner, classes, row_outer, row_inner, p_outer, p_inner, p_class, target_outer, target_inner, target_class,
    sample_outer, sample_inner, grad_outer, grad_inner, gradient_outer, gradient_inner, gradient_class,
    delta_value: tl.float64, empty: tl.float64,
    COMPUTE: tl.constexpr, REDUCTION: tl.constexpr, PROBABILITIES: tl.constexpr, WITHOUT_DELTA: tl.constexpr,
    FORWARD: tl.constexpr, GRADIENT: tl.constexpr, HELD: tl.constexpr, UNIT_FIRST: tl.constexpr, ALONE: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Loss and gradient, or the gradient alone."""
    MEAN: tl.constexpr = REDUCTION == "mean"
    DTYPE: tl.constexpr = p_ptr.dtype.element_ty
    if ALIGNED > 1:
        classes = classes // ALIGNED * ALIGNED
    delta = number(delta_value, COMPUTE)
    rows = outer.to(tl.int64) * inner
    blocks = (inner + ROWS - 1) // ROWS
    lane = tl.arange(0, CLASSES).to(tl.int64 if WIDE else tl.int32)
    grad_output = tl.full((), 1.0, COMPUTE)
    if not FORWARD and REDUCTION != "none":
        grad_output = tl.load(grad_output_ptr).to(COMPUTE)
    stop = tl.where(rows > 0, outer.to(tl.int64) * blocks, 0)
    if HELD:
        # The gradient is there already for an incoming gradient of 1.
        stop = tl.where(grad_output == 1.0, 0, stop)
    divisor = denominator(normalizer_ptr, None, rows, MEAN, 1)
    unit = share_of_mean(tl.full((), 1.0, COMPUTE) if UNIT_FIRST else grad_output, divisor, COMPUTE)
    losses = tl.full((), 0.0, tl.float64)
    for turn in range(tl.program_id(0).to(tl.int64), stop, tl.num_programs(0)):
        sample = turn // blocks
        position = (tl.arange(0, ROWS) + (turn % blocks) * ROWS).to(tl.int64 if WIDE else tl.int32)
        exists = position < inner
        active = exists
        p_rows = p_ptr + sample * p_outer + position * p_inner
        t_rows = target_ptr + sample * target_outer + position * target_inner
        if ALIGNED > 1:
            p_rows = tl.multiple_of(p_rows, 16)
            if PROBABILITIES:
                t_rows = tl.multiple_of(t_rows, 16)
        row_scale = tl.zeros([ROWS], COMPUTE) + unit
        if GRADIENT and REDUCTION == "none":
            at = grad_output_ptr + sample * grad_outer + position * grad_inner
            row_scale = tl.load(at, mask=exists, other=0.0).to(COMPUTE)
        sample_weight = tl.full([ROWS], 1.0, COMPUTE)
        if sample_weight_ptr is not None:
            at = sample_weight_ptr + sample * sample_outer + position * sample_inner
            sample_weight = tl.load(at, mask=exists, other=0.0).to(COMPUTE)
            active = active & (sample_weight != 0.0)
        target = tl.zeros([ROWS], tl.int64)
        loss = tl.zeros([ROWS], COMPUTE)
        if not PROBABILITIES:
            target = tl.load(t_rows, mask=exists, other=0).to(tl.int64)
            inside = (target >= 0) & (target < classes)
            tl.device_assert((exists == 0) | inside, "torchlosses: cee_loss: a target is no class index")
            active = active & inside
            target = tl.where(active, target, 0)
            loss = -log_plus(tl.load(p_rows + target * p_class, mask=active, other=1.0).to(COMPUTE), delta)
        changing = active
        if MEAN:
            # A mean over nothing has the gradient 0 whatever its rows hold.
            changing = changing & (position < tl.where(divisor != 0.0, inner, 0))
        row_scale = tl.where(changing, row_scale * sample_weight, 0.0)
        gradient_rows = gradient_ptr
        if GRADIENT:
            gradient_rows = gradient_ptr + sample * gradient_outer + position * gradient_inner
            if ALIGNED > 1:
                gradient_rows = tl.multiple_of(gradient_rows, 16)
        for first in range(0, classes if PROBABILITIES or GRADIENT else 0, CLASSES):
            c = first + lane
            valid = active[:, None] & (c < classes)[None, :]
            if PROBABILITIES:
                p = tl.load(p_rows[:, None] + (c * p_class)[None, :], mask=valid, other=1.0).to(COMPUTE)
                t = tl.load(t_rows[:, None] + (c * target_class)[None, :], mask=valid, other=0).to(COMPUTE)
                counts = valid & (t != 0.0) if WITHOUT_DELTA else valid
                if FORWARD:
                    loss -= tl.sum(tl.where(counts, t * log_plus(p, delta), 0.0), 1)
            else:
                counts = valid & (c.to(tl.int64)[None, :] == target[:, None])
                p = tl.load(p_rows[:, None] + (c * p_class)[None, :], mask=counts, other=1.0).to(COMPUTE)
                t = 1.0
            if GRADIENT:
                gradient = tl.where(counts & changing[:, None], -(t / (p + delta)) * row_scale[:, None], 0.0)
                gradient_tile = gradient_rows[:, None] + (c * gradient_class)[None, :]
                stored = scaled(gradient, grad_output, DTYPE, UNIT_FIRST)
                tl.store(gradient_tile, stored, mask=exists[:, None] & (c < classes)[None, :])
        if FORWARD:
            loss = tl.where(active, loss * sample_weight, 0.0)
            if REDUCTION == "none":
                row = sample * row_outer + position.to(tl.int64) * row_inner
                tl.store(loss_ptr + row, rounded(loss, loss_ptr.dtype.element_ty), mask=exists)
            else:
                losses += tl.sum(loss.to(tl.float64), 0)
    if FORWARD and REDUCTION != "none":
        if ALONE:
            tl.store(loss_ptr, rounded(quotient(losses, divisor, empty), loss_ptr.dtype.element_ty))
        else:
            tl.store(partials_ptr + tl.program_id(0), losses)


def forward(
    input: Tensor, target: Tensor, sample_weight: Tensor | None, normalizer: Tensor | None, options: Any
) -> tuple[Tensor, Tensor]:
    """Loss, and gradient by the input (empty unless options.gradients asks for it)."""
    if options.validate_args:
        _check(input, target, sample_weight)
    return _forward(input, target, sample_weight, normalizer, options)


@planned
def _forward(
    input: Tensor, target: Tensor, sample_weight: Tensor | None, normalizer: Tensor | None, options: Any
) -> tuple[Tensor, Tensor]:
    shape = (input.shape[0], *input.shape[2:]) if options.reduction == "none" else ()
    loss = empty(shape, options.dtype, input.device)
    gradient = empty_like(input) if options.gradients & 1 else None
    _run(None, gradient, input, target, sample_weight, normalizer, loss, options)
    return loss, empty((0,), input.dtype, input.device) if gradient is None else gradient


def backward(
    grad_output: Tensor,
    gradient: Tensor,
    input: Tensor,
    target: Tensor,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    options: Any,
) -> None:
    """Write the gradient by the input; where options.gradients says that it is there for 1, if grad_output is not 1."""
    if options.gradients & 1 and launches.unit_first(input, options.reduction):
        launches.scale_in_place(gradient, grad_output, input, target, sample_weight)
        return
    _run_by_plan(grad_output, gradient, input, target, sample_weight, normalizer, None, options)


def _check(input: Tensor, target: Tensor, sample_weight: Tensor | None) -> None:
    """Look at the values, but for rows of weight 0: the one option that waits for the device."""
    if not input.numel():
        return
    if sample_weight is not None:
        hidden = (sample_weight == 0).unsqueeze(1)
        input = input.masked_fill(hidden, 0)
        target = target.masked_fill(hidden, 0) if target.dim() == input.dim() else target
    tolerance = 4 * torch.finfo(input.dtype).eps
    # nan may pass: it is no value outside of [0, 1].
    lowest, highest = torch.stack(input.nan_to_num(0.5, float("inf"), float("-inf")).aminmax()).tolist()
    if lowest < -tolerance or highest > 1 + tolerance:
        _validation.raise_not_probabilities(lowest, highest)
    if target.dim() == input.dim() and not target.is_floating_point() and target.dtype != torch.bool:
        least, most = torch.stack(target.aminmax()).tolist()
        if least < 0 or most > 1:
            _validation.raise_not_one_hot(least, most)


def _run(
    grad_output: Tensor | None,
    gradient: Tensor | None,
    input: Tensor,
    target: Tensor,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    loss: Tensor | None,
    options: Any,
) -> None:
    device, reduction, classes = input.device, options.reduction, input.shape[1]
    positions = size_along(input, 2)
    probabilities = target.dim() == input.dim()
    adjacent = input.stride(1) == 1
    order = row_order(input, adjacent)
    outer, inner = (size_along(input, dimension) for dimension in order)
    alone = input.numel() <= launches.SMALL
    compute, compute_type = launches.compute_type(input, target, sample_weight)
    choice = launches.tiles(device, outer, inner, classes, adjacent, compute == torch.float64)
    size = choice.classes if choice.single or not adjacent else 1024
    rows = choice.rows if choice.single or not adjacent else min(4, choice.rows)
    programs = 1 if alone else choice.programs
    partials = None
    if loss is not None and reduction != "none" and not alone:
        partials = empty((programs,), torch.float64, device)
    input_steps = row_steps(input, order, True)
    target_steps = row_steps(target, order, probabilities)
    gradient_steps = row_steps(gradient, order, True)
    target_class = target.stride(1) if probabilities else 0
    gradient_class = 0 if gradient is None else gradient.stride(1)
    reach = max(
        inner * steps[1] + classes * step
        for steps, step in (
            (input_steps, input.stride(1)), (target_steps, target_class), (gradient_steps, gradient_class),
        )
    )  # fmt: skip
    launch(
        textbook_kernel, device, programs, max(choice.warps, 4),
        input, target, sample_weight, normalizer, grad_output, partials, loss, gradient,
        outer, inner, classes, *((positions, 1) if order == (0, 2) else (1, positions)),
        *input_steps, input.stride(1), *target_steps, target_class, *row_steps(sample_weight, order, False),
        *(row_steps(grad_output, order, False) if reduction == "none" else (0, 0)), *gradient_steps, gradient_class,
        options.delta, options.empty,
        COMPUTE=compute_type, REDUCTION=reduction, PROBABILITIES=probabilities,
        WITHOUT_DELTA=options.delta == 0, FORWARD=loss is not None, GRADIENT=gradient is not None,
        HELD=grad_output is not None and bool(options.gradients & 1),
        UNIT_FIRST=grad_output is not None and launches.unit_first(input, reduction), ALONE=alone,
        ALIGNED=vector_of((input, target if probabilities else None, gradient), 1), WIDE=reach >= 2**31,
        ROWS=rows, CLASSES=size,
    )  # fmt: skip
    if partials is not None:
        launch(
            finish, device, 1, 4, partials, normalizer, None, loss, programs, outer * inner, options.empty,
            MEAN=reduction == "mean", PARTS=1, BLOCK=1024,
        )  # fmt: skip


_run_by_plan = planned(_run)
