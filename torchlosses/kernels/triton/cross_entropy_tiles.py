# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""Cross-entropy where rows are short, or a row's classes lie apart: many rows a turn.

The rows of a tile are neighbours along one dimension, `inner`: pixels of one image, or samples. A tile
[ROWS, CLASSES] has all classes of its rows where these are few, and is read once; where they are many it is a part of
them, and is read twice.
"""

# ruff: noqa: N803, N806  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.functions import (
    BEYOND,
    accumulated,
    denominator,
    fast_exp,
    logits,
    nothing_yet,
    number,
    quotient,
    rounded,
    row_gradient,
    scaled,
    share_of_mean,
    shares,
    store_loss,
    store_parts,
)
from torchlosses.kernels.triton.reduction import counted


@triton.jit
def tile_of(
    x_rows, t_rows, weight_ptr, weight_stride, c, x_class, target_class, read, active, classes, kept, even,
    COMPUTE: tl.constexpr, PROBABILITIES: tl.constexpr, SMOOTHED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Logits, target probabilities and shares of some classes of the rows that are read, and which of them count."""
    inside = (c < classes)[None, :]
    valid, read = active[:, None] & inside, read[:, None] & inside
    x = tl.load(x_rows[:, None] + (c * x_class)[None, :], mask=read, other=float("-inf")).to(COMPUTE)
    t = x
    share = x
    if PROBABILITIES:
        t = tl.load(t_rows[:, None] + (c * target_class)[None, :], mask=read, other=0.0).to(COMPUTE)
    if PROBABILITIES or SMOOTHED:
        weight = tl.full((), 1.0, COMPUTE)
        if WEIGHTED:
            weight = tl.load(weight_ptr + c * weight_stride, mask=c < classes, other=0.0).to(COMPUTE)[None, :]
        share = shares(t, weight, valid, kept, even, PROBABILITIES, SMOOTHED, WEIGHTED)
    return x, t, share, valid


@triton.jit(
    do_not_specialize=[
        "outer", "inner", "classes", "row_outer", "row_inner", "x_outer", "target_outer", "target_inner",
        "target_class",
        "weight_stride", "sample_outer", "sample_inner", "grad_outer", "grad_inner", "gradient_outer", "ignore_index",
        "first_class", "all_classes",
    ]
)  # fmt: skip
def tiles_kernel(
    x_ptr, target_ptr, weight_ptr, sample_weight_ptr, normalizer_ptr, grad_output_ptr, counts_ptr, state_ptr,
    largest_ptr, partials_ptr, loss_ptr, gradient_ptr,
    outer, inner, classes, row_outer, row_inner, x_outer, x_inner, x_class, target_outer, target_inner, target_class,
    weight_stride, sample_outer, sample_inner, grad_outer, grad_inner, gradient_outer, gradient_inner, gradient_class,
    ignore_index, first_class, all_classes,
    label_smoothing: tl.float64, z_loss_factor: tl.float64, scale_of_logits: tl.float64, cap_of_logits: tl.float64,
    empty: tl.float64,
    NAME: tl.constexpr, COMPUTE: tl.constexpr, REDUCTION: tl.constexpr, PROBABILITIES: tl.constexpr,
    SMOOTHED: tl.constexpr, Z_LOSS: tl.constexpr,
    SCALED: tl.constexpr, CAPPED: tl.constexpr, STATISTICS: tl.constexpr, FORWARD: tl.constexpr, GRADIENT: tl.constexpr,
    HELD: tl.constexpr, UNIT_FIRST: tl.constexpr, ALONE: tl.constexpr, COUNTED: tl.constexpr, PARTS: tl.constexpr,
    ALIGNED: tl.constexpr, ALONG: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
    SINGLE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Loss, state and gradient, or with the state of an earlier call the gradient alone; SPLIT as in `rows_kernel`."""
    SHARES: tl.constexpr = PROBABILITIES or SMOOTHED
    WEIGHTED: tl.constexpr = weight_ptr is not None
    MEAN: tl.constexpr = REDUCTION == "mean"
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    if ALIGNED > 1:
        classes = classes // ALIGNED * ALIGNED
    if ALONG > 1:
        # Neighbours along `inner` are read in vectors: so much is known of what is counted in elements.
        inner = inner // ALONG * ALONG
        x_outer, x_class = x_outer // ALONG * ALONG, x_class // ALONG * ALONG
        gradient_outer, gradient_class = gradient_outer // ALONG * ALONG, gradient_class // ALONG * ALONG
        if PROBABILITIES:
            target_outer, target_class = target_outer // ALONG * ALONG, target_class // ALONG * ALONG

    z_loss = number(z_loss_factor, COMPUTE)
    logit_scale = number(scale_of_logits, COMPUTE)
    logit_softcap = number(cap_of_logits, COMPUTE)
    kept = number(1.0 - label_smoothing, COMPUTE)
    even = (number(label_smoothing, tl.float64) / all_classes.to(tl.float64)).to(COMPUTE)
    rows = outer.to(tl.int64) * inner
    weights_ptr = weight_ptr
    if SPLIT and WEIGHTED:
        weights_ptr = weight_ptr + first_class.to(tl.int64) * weight_stride
    blocks = (inner + ROWS - 1) // ROWS
    lane = tl.arange(0, CLASSES).to(INDEX)

    grad_output = tl.full((), 1.0, COMPUTE)
    if not FORWARD and REDUCTION != "none":
        grad_output = tl.load(grad_output_ptr).to(COMPUTE)
    counted_rows = rows
    if HELD:
        # The gradient is there already for an incoming gradient of 1.
        counted_rows = tl.where(grad_output == 1.0, 0, rows)
    stop = tl.where(counted_rows > 0, outer.to(tl.int64) * blocks, 0)
    if ALONE and COUNTED:
        found = counted(target_ptr, 0, counted_rows, 1024, inner, target_outer, target_inner, ignore_index, 1024)
        divisor = tl.sum(found, 0).to(tl.float64)
    else:
        divisor = denominator(normalizer_ptr, counts_ptr, rows * (all_classes > 0), MEAN, PARTS)
    unit = share_of_mean(tl.full((), 1.0, COMPUTE) if UNIT_FIRST else grad_output, divisor, COMPUTE)
    losses = tl.full((), 0.0, tl.float64)

    for turn in range(tl.program_id(0).to(tl.int64), stop, tl.num_programs(0)):
        sample = turn // blocks
        first_position = (turn % blocks) * ROWS
        position = (tl.arange(0, ROWS) + first_position).to(INDEX)
        exists = position < inner
        row = sample * row_outer + position.to(tl.int64) * row_inner
        x_rows = x_ptr + sample * x_outer + position * x_inner
        if ALIGNED > 1:
            x_rows = tl.multiple_of(x_rows, 16)
        t_rows = x_rows

        # The rows' targets, and which rows take part.
        active = position < tl.where(all_classes > 0, inner, 0)
        target = tl.zeros([ROWS], tl.int64)
        target_weight = tl.full([ROWS], 1.0, COMPUTE)
        sample_weight = tl.full([ROWS], 1.0, COMPUTE)
        row_scale = tl.zeros([ROWS], COMPUTE) + unit
        if PROBABILITIES:
            t_rows = target_ptr + sample * target_outer + position * (1 if ALONG > 1 else target_inner)
            if ALIGNED > 1:
                t_rows = tl.multiple_of(t_rows, 16)
        else:
            at = target_ptr + sample * target_outer + position * target_inner
            target = tl.load(at, mask=exists, other=0).to(tl.int64)
            ignored = target == ignore_index
            inside = (target >= 0) & (target < all_classes)
            tl.device_assert((exists == 0) | ignored | inside, "torchlosses: " + NAME + ": a target is no class index")
            active = exists & inside & (ignored == 0)
            target = tl.where(active, target, 0)
            if WEIGHTED:
                target_weight = tl.load(weight_ptr + target * weight_stride, mask=active, other=0.0).to(COMPUTE)
                if not SMOOTHED:
                    active = active & (target_weight != 0.0)
        if sample_weight_ptr is not None:
            at = sample_weight_ptr + sample * sample_outer + position * sample_inner
            sample_weight = tl.load(at, mask=exists, other=0.0).to(COMPUTE)
            active = active & (sample_weight != 0.0)
        if REDUCTION == "none" and grad_output_ptr is not None:
            at = grad_output_ptr + sample * grad_outer + position * grad_inner
            row_scale = tl.load(at, mask=exists, other=0.0).to(COMPUTE)
        row_scale = row_scale * sample_weight
        if SPLIT and not FORWARD:
            active = active & (tl.load(state_ptr + 4 * rows + row, mask=exists, other=1.0) == 0.0)
        here = active
        if SPLIT:
            target -= first_class
            here = active & (target >= 0) & (target < classes)
        # What is read of a vector is all of it; else a row that does not count is not read.
        read = exists if ALONG > 1 else active
        at_target = tl.zeros([ROWS], COMPUTE)
        if not PROBABILITIES:
            own = tl.load(x_rows + target * x_class, mask=here, other=0.0).to(COMPUTE)
            at_target, _slope, _slope_of_all = logits(own, logit_scale, logit_softcap, SCALED, CAPPED, False)

        if SINGLE:
            x, t, share, valid = tile_of(
                x_rows, t_rows, weights_ptr, weight_stride, lane, x_class, target_class, read, active, classes, kept,
                even, COMPUTE, PROBABILITIES, SMOOTHED, WEIGHTED,
            )  # fmt: skip
        total = tl.zeros([ROWS], COMPUTE) + classes.to(COMPUTE)
        beside = total

        # The first look: the sums.
        if FORWARD:
            state = nothing_yet(ROWS, COMPUTE)
            for first in range(0, CLASSES if SINGLE else classes, CLASSES):
                c = first + lane
                if not SINGLE:
                    x, t, share, valid = tile_of(
                        x_rows, t_rows, weights_ptr, weight_stride, c, x_class, target_class, read, active, classes,
                        kept, even,
                        COMPUTE, PROBABILITIES, SMOOTHED, WEIGHTED,
                    )  # fmt: skip
                y, slope, slope_of_all = logits(x, logit_scale, logit_softcap, SCALED, CAPPED, False)
                y = tl.where(valid, y, float("-inf"))
                place = tl.where(valid, c.to(tl.int32)[None, :], BEYOND)
                taken = tl.sum(share, 1) if SHARES else 0.0
                state = accumulated(state, y, share, taken, t, place, True, SHARES, PROBABILITIES, STATISTICS, SPLIT)
            m, rest, _product, _first, found_total, _weighed, _raw, _raw_weighed, _most, _most_first, beside = state
            if SHARES:
                total = found_total
            if SPLIT:
                store_parts(
                    state_ptr, largest_ptr, rows, row, exists, active, at_target, state,
                    SHARES, PROBABILITIES, STATISTICS,
                )  # fmt: skip
            else:
                loss, m, rest = store_loss(
                    loss_ptr, state_ptr, rows, row, exists, active, state, target, at_target, target_weight,
                    sample_weight, kept, even, z_loss, PROBABILITIES, SMOOTHED, Z_LOSS, STATISTICS, REDUCTION,
                )  # fmt: skip
                if REDUCTION != "none":
                    losses += tl.sum(loss.to(tl.float64), 0)
        else:
            m = tl.load(state_ptr + row, mask=active, other=0.0)
            rest = tl.load(state_ptr + rows + row, mask=active, other=0.0)
            if SPLIT:
                total = tl.load(state_ptr + 2 * rows + row, mask=active, other=0.0)
                beside = tl.load(state_ptr + 3 * rows + row, mask=active, other=0.0)
            elif PROBABILITIES or (SMOOTHED and WEIGHTED):
                if SINGLE:
                    total = tl.sum(share, 1)
                else:
                    total = tl.zeros([ROWS], COMPUTE)
                    for first in range(0, classes, CLASSES):
                        _, _, share, _ = tile_of(
                            x_rows, t_rows, weights_ptr, weight_stride, first + lane, x_class, target_class, read,
                            active, classes, kept, even, COMPUTE, PROBABILITIES, SMOOTHED, WEIGHTED,
                        )  # fmt: skip
                        total += tl.sum(share, 1)

        # The second look: the gradient.
        if GRADIENT:
            if SHARES and not SPLIT:
                active = active & ((total != 0.0) | (rest - rest == 0.0))
            if MEAN:
                # A mean over nothing has the gradient 0 whatever its rows hold.
                active = active & (position < tl.where(divisor != 0.0, inner, 0))
            row_scale = tl.where(active, row_scale, 0.0)
            if SMOOTHED and not PROBABILITIES:
                total = beside if SPLIT else even * total
            multiplier, special = row_gradient(
                m, rest, at_target, target_weight, total, kept, even, z_loss, PROBABILITIES, SMOOTHED, Z_LOSS
            )
            factor = grad_output
            gradient_rows = gradient_ptr + sample * gradient_outer + position * gradient_inner
            if ALIGNED > 1:
                gradient_rows = tl.multiple_of(gradient_rows, 16)
            # The gradient may take the memory of the logits: the targets' are read by now.
            tl.debug_barrier()
            for first in range(0, CLASSES if SINGLE else classes, CLASSES):
                c = first + lane
                if not SINGLE:
                    x, t, share, valid = tile_of(
                        x_rows, t_rows, weights_ptr, weight_stride, c, x_class, target_class, read, active, classes,
                        kept, even,
                        COMPUTE, PROBABILITIES, SMOOTHED, WEIGHTED,
                    )  # fmt: skip
                y, slope, slope_of_all = logits(x, logit_scale, logit_softcap, SCALED, CAPPED, False)
                e = fast_exp(y - m[:, None])
                gradient = e * multiplier[:, None]
                if SHARES and not PROBABILITIES:
                    gradient -= even * share
                if PROBABILITIES:
                    others = beside[:, None] if SPLIT else total[:, None] - share
                    most_likely = others + special[:, None]
                    # Where it has less than half, its own digits are the better ones.
                    most = (y == m[:, None]) & (rest < 1.0)[:, None]
                    gradient = tl.where(most, most_likely, gradient - share)
                else:
                    gradient = tl.where(c.to(tl.int64)[None, :] == target[:, None], special[:, None], gradient)
                gradient = gradient * (slope * (slope_of_all * row_scale)[:, None])
                stored = scaled(tl.where(active[:, None], gradient, 0.0), factor, DTYPE, UNIT_FIRST)
                gradient_tile = gradient_rows[:, None] + (c * gradient_class)[None, :]
                tl.store(gradient_tile, stored, mask=exists[:, None] & (c < classes)[None, :])

    if FORWARD and REDUCTION != "none":
        if ALONE:
            tl.store(loss_ptr, rounded(quotient(losses, divisor, empty), loss_ptr.dtype.element_ty))
        else:
            tl.store(partials_ptr + tl.program_id(0), losses)
