# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""Cross-entropy where a row's classes lie side by side: a row a turn, in tiles of whole 16-byte vectors.

A row is read twice where it does not fit one tile: once for its sums, and while it is in the second-level cache once
for its gradient. So a program takes rows one after the other, and no more rows are under way than that cache holds.

A tile is [GROUPS, VEC], and VEC neighbours belong to one thread. Each group has a maximum of its own: it takes one
exponential an element, and rescaling costs one for VEC. A row that starts off a 16-byte boundary has its whole vectors
in the tiles, and the few elements at its two ends in a tile of their own, so that nothing outside the row is read.
"""

# ruff: noqa: N803, N806  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.functions import (
    BEYOND,
    accumulated,
    denominator,
    ends,
    exponentials,
    fast_exp,
    logits,
    merged,
    nothing_yet,
    number,
    places,
    quotient,
    rounded,
    row_gradient,
    scaled,
    seeded,
    share_of_mean,
    shares,
    store_loss,
    store_parts,
)
from torchlosses.kernels.triton.reduction import counted


@triton.jit
def recounted(
    base, m, groups_m, groups_s, shift, low, high, end, logit_scale, logit_softcap, SCALED: tl.constexpr,
    CAPPED: tl.constexpr, COARSE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, GROUPS: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """Σ exp(y - m) - 1 of a row that is all but sure of one class, with all digits.

    The group that holds the maximum is summed once more, without the maximum's own 1. Beside it are small numbers only.
    """
    group = tl.argmax(groups_m, 0)
    here = tl.arange(0, GROUPS) == group
    rest = tl.sum(tl.where(here | (groups_m == float("-inf")), 0.0, groups_s * fast_exp(groups_m - m)), 0)
    TILES: tl.constexpr = 16
    for first in range(low + group * VEC, high, TILES * GROUPS * VEC):
        place = first + tl.arange(0, TILES)[:, None] * (GROUPS * VEC) + tl.arange(0, VEC)[None, :]
        x = tl.load(base + place, mask=place < high, other=float("-inf")).to(COMPUTE)
        y, _, _ = logits(x, logit_scale, logit_softcap, SCALED, CAPPED, COARSE)
        y = tl.where(place < high, y, float("-inf"))
        rest += tl.sum(tl.sum(tl.where(y == m, 0.0, fast_exp(y - m)), 1), 0)
    if not ALIGNED:
        # The first group holds the row's ends too.
        place, valid = ends(shift, end, VEC)
        valid = valid & (place < tl.where(group == 0, end, 0))
        x = tl.load(base + place, mask=valid, other=0.0).to(COMPUTE)
        y, _, _ = logits(x, logit_scale, logit_softcap, SCALED, CAPPED, COARSE)
        y = tl.where(valid, y, float("-inf"))
        rest += tl.sum(tl.sum(tl.where(y == m, 0.0, fast_exp(y - m)), 1), 0)
    return rest


@triton.jit
def loaded(x_base, t_base, place, valid, PROBABILITIES: tl.constexpr, POLICY: tl.constexpr):
    """A tile of logits as they are stored, and of target probabilities."""
    x = tl.load(x_base + place, mask=valid, other=float("-inf"), eviction_policy=POLICY)
    t = x
    if PROBABILITIES:
        t = tl.load(t_base + place, mask=valid, other=0.0, eviction_policy=POLICY)
    return x, t


@triton.jit
def weights_of(weight_ptr, weight_stride, place, valid, COMPUTE: tl.constexpr, WEIGHTED: tl.constexpr):
    """The classes' weights."""
    if WEIGHTED:
        weight = tl.load(weight_ptr + place * weight_stride, mask=valid, other=0.0).to(COMPUTE)
    else:
        weight = tl.full((), 1.0, COMPUTE)
    return weight


@triton.jit
def shares_again(
    t_base, place, shift, valid, weight_ptr, weight_stride, kept, even, PROBABILITIES: tl.constexpr,
    SMOOTHED: tl.constexpr, WEIGHTED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The sum of the shares of each group of a tile."""
    weight = weights_of(weight_ptr, weight_stride, place - shift, valid, COMPUTE, WEIGHTED)
    t = tl.zeros(place.shape, COMPUTE)
    if PROBABILITIES:
        t = tl.load(t_base + place, mask=valid, other=0.0, eviction_policy="evict_last").to(COMPUTE)
    return tl.sum(shares(t, weight, valid, kept, even, PROBABILITIES, SMOOTHED, WEIGHTED), 1)


@triton.jit
def vectors(start, high, GROUPS: tl.constexpr, VEC: tl.constexpr):
    """How many places before `high` each group of a tile has: all or none."""
    return tl.where(start + tl.arange(0, GROUPS) * VEC < high, VEC, 0)


@triton.jit
def taken_in(
    state, x, t, place, shift, valid, of_groups, weight_ptr, weight_stride, logit_scale, logit_softcap, kept, even,
    EXACT: tl.constexpr, PROBABILITIES: tl.constexpr, SMOOTHED: tl.constexpr, WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr, CAPPED: tl.constexpr, COARSE: tl.constexpr, STATISTICS: tl.constexpr, SPLIT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """`accumulated` of a tile as it was loaded; `of_groups`: how many classes each group has, if that is known."""
    SHARES: tl.constexpr = PROBABILITIES or SMOOTHED
    y, _, _ = logits(x.to(COMPUTE), logit_scale, logit_softcap, SCALED, CAPPED, COARSE)
    if SCALED or CAPPED:
        y = tl.where(valid, y, float("-inf"))
    share = y
    t = t.to(COMPUTE)
    if SHARES:
        weight = weights_of(weight_ptr, weight_stride, place - shift, valid, COMPUTE, WEIGHTED)
        share = shares(t, weight, valid, kept, even, PROBABILITIES, SMOOTHED, WEIGHTED)
    taken = tl.sum(share, 1) if PROBABILITIES or WEIGHTED or of_groups is None else of_groups.to(COMPUTE)
    place = tl.where(valid, place - shift, BEYOND)
    return accumulated(state, y, share, taken, t, place, EXACT, SHARES, PROBABILITIES, STATISTICS, SPLIT)


@triton.jit
def gradient_of(
    x, t, place, shift, valid, weight_ptr, weight_stride, m, rest, total, beside, multiplier, special, kept, even,
    row_scale, logit_scale, logit_softcap, grad_output, PROBABILITIES: tl.constexpr, SMOOTHED: tl.constexpr,
    WEIGHTED: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr, COARSE: tl.constexpr, COMPUTE: tl.constexpr,
    DTYPE: tl.constexpr, UNIT_FIRST: tl.constexpr, MASKED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient, as it is stored."""
    y, slope, slope_of_all = logits(x.to(COMPUTE), logit_scale, logit_softcap, SCALED, CAPPED, COARSE)
    e, correction = exponentials(y, m, m)
    if PROBABILITIES or SMOOTHED:
        weight = weights_of(weight_ptr, weight_stride, place - shift, valid, COMPUTE, WEIGHTED)
        share = shares(t.to(COMPUTE), weight, valid, kept, even, PROBABILITIES, SMOOTHED, WEIGHTED)
        if PROBABILITIES:
            gradient = e * (multiplier * correction) - share
            # Where it has less than half, its own digits are the better ones.
            others = beside if SPLIT else total - share
            gradient = tl.where(y == tl.where(rest < 1.0, m, float("inf")), others + special, gradient)
        else:
            gradient = e * (multiplier * correction) - even * share
        gradient = gradient * (slope * (slope_of_all * row_scale))
    else:
        gradient = e * (multiplier * correction * row_scale * slope_of_all) * slope
    if MASKED:
        gradient = tl.where(valid, gradient, 0.0)
    return scaled(gradient, grad_output, DTYPE, UNIT_FIRST)


@triton.jit(
    do_not_specialize=[
        "outer",
        "inner",
        "classes",
        "x_outer",
        "x_inner",
        "x_offset",
        "target_outer",
        "target_inner",
        "weight_stride",
        "sample_outer",
        "sample_inner",
        "grad_outer",
        "grad_inner",
        "gradient_outer",
        "gradient_inner",
        "ignore_index",
        "first_class",
        "all_classes",
    ]
)
def rows_kernel(
    x_ptr, target_ptr, weight_ptr, sample_weight_ptr, normalizer_ptr, grad_output_ptr, counts_ptr, state_ptr,
    largest_ptr, partials_ptr, loss_ptr, gradient_ptr,
    outer, inner, classes, x_outer, x_inner, x_offset, target_outer, target_inner, weight_stride, sample_outer,
    sample_inner,
    grad_outer, grad_inner, gradient_outer, gradient_inner, ignore_index, first_class, all_classes,
    label_smoothing: tl.float64, z_loss_factor: tl.float64, scale_of_logits: tl.float64, cap_of_logits: tl.float64,
    empty: tl.float64,
    NAME: tl.constexpr, COMPUTE: tl.constexpr, REDUCTION: tl.constexpr, PROBABILITIES: tl.constexpr,
    SMOOTHED: tl.constexpr, Z_LOSS: tl.constexpr,
    SCALED: tl.constexpr, CAPPED: tl.constexpr, STATISTICS: tl.constexpr, FORWARD: tl.constexpr, GRADIENT: tl.constexpr,
    HELD: tl.constexpr, UNIT_FIRST: tl.constexpr, ALONE: tl.constexpr, COUNTED: tl.constexpr, PARTS: tl.constexpr,
    FLAT: tl.constexpr, ALIGNED: tl.constexpr, TARGET_ALIKE: tl.constexpr, GRADIENT_ALIKE: tl.constexpr,
    BLOCK: tl.constexpr, VEC: tl.constexpr, SINGLE: tl.constexpr, PREFETCH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Loss, state and gradient, or with the state of an earlier call the gradient alone.

    If SPLIT the row has more classes elsewhere: this process has those from `first_class` on, of `all_classes`. There
    are parts in place of loss and state, and what is made of them is the state that the gradient is computed with.
    """
    GROUPS: tl.constexpr = BLOCK // VEC
    SHARES: tl.constexpr = PROBABILITIES or SMOOTHED
    WEIGHTED: tl.constexpr = weight_ptr is not None
    MEAN: tl.constexpr = REDUCTION == "mean"
    # A logit that was not read is -inf, which a negative scale makes inf; and of a row that was read it may turn out
    # that it does not count.
    MASKED: tl.constexpr = SCALED or SHARES or normalizer_ptr is not None
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    COARSE: tl.constexpr = DTYPE.primitive_bitwidth == 16 and tl.float32 == COMPUTE
    # Lines that are read again soon are kept, and those of the second look are let go.
    KEEP: tl.constexpr = "evict_last" if FORWARD and not SINGLE else "evict_first"
    CACHE: tl.constexpr = ".cs"

    z_loss = number(z_loss_factor, COMPUTE)
    logit_scale = number(scale_of_logits, COMPUTE)
    logit_softcap = number(cap_of_logits, COMPUTE)
    kept = number(1.0 - label_smoothing, COMPUTE)
    even = (number(label_smoothing, tl.float64) / all_classes.to(tl.float64)).to(COMPUTE)
    rows = outer.to(tl.int64) * inner
    weights_ptr = weight_ptr
    if SPLIT and WEIGHTED:
        weights_ptr = weight_ptr + first_class.to(tl.int64) * weight_stride

    grad_output = tl.full((), 1.0, COMPUTE)
    if not FORWARD and REDUCTION != "none":
        grad_output = tl.load(grad_output_ptr).to(COMPUTE)
    stop = rows
    if HELD:
        # The gradient is there already for an incoming gradient of 1.
        stop = tl.where(grad_output == 1.0, 0, rows)
    if ALONE and COUNTED:
        found = counted(target_ptr, 0, stop, 1024, inner, target_outer, target_inner, ignore_index, 1024)
        divisor = tl.sum(found, 0).to(tl.float64)
    else:
        divisor = denominator(normalizer_ptr, counts_ptr, rows * (all_classes > 0), MEAN, PARTS)
    unit = share_of_mean(tl.full((), 1.0, COMPUTE) if UNIT_FIRST else grad_output, divisor, COMPUTE)
    losses = tl.full((), 0.0, tl.float64)

    for row in range(tl.program_id(0).to(tl.int64), stop, tl.num_programs(0)):
        if FLAT:
            sample = row
            position = row * 0
        else:
            sample = row // inner
            position = row % inner
        start = sample * x_outer + position * x_inner
        shift = tl.full((), 0, tl.int32) if ALIGNED else ((start + x_offset) % VEC).to(tl.int32)
        x_base = tl.multiple_of(x_ptr + (start - shift), 16)
        gradient_base = gradient_ptr
        if GRADIENT:
            gradient_base = gradient_ptr + (sample * gradient_outer + position * gradient_inner - shift)
            if GRADIENT_ALIKE:
                gradient_base = tl.multiple_of(gradient_base, GRADIENT_ALIKE)

        # The row's target, and whether the row takes part.
        row_scale = unit
        sample_weight = tl.full((), 1.0, COMPUTE)
        target_weight = tl.full((), 1.0, COMPUTE)
        active = all_classes > 0
        target = tl.full((), 0, tl.int64)
        t_base = target_ptr
        if PROBABILITIES:
            t_base = target_ptr + (sample * target_outer + position * target_inner - shift)
            if TARGET_ALIKE:
                t_base = tl.multiple_of(t_base, TARGET_ALIKE)
        else:
            target = tl.load(target_ptr + sample * target_outer + position * target_inner).to(tl.int64)
            ignored = target == ignore_index
            inside = (target >= 0) & (target < all_classes)
            tl.device_assert(ignored | inside, "torchlosses: " + NAME + ": a target is no class index")
            active = inside & (ignored == 0)
            target = tl.where(active, target, 0)
            if WEIGHTED:
                target_weight = tl.load(weight_ptr + target * weight_stride, mask=active, other=0.0).to(COMPUTE)
                if not SMOOTHED:
                    active = active & (target_weight != 0.0)
        if sample_weight_ptr is not None:
            sample_weight = tl.load(sample_weight_ptr + sample * sample_outer + position * sample_inner).to(COMPUTE)
            active = active & (sample_weight != 0.0)
        if REDUCTION == "none" and grad_output_ptr is not None:
            row_scale = tl.load(grad_output_ptr + sample * grad_outer + position * grad_inner).to(COMPUTE)
        row_scale = row_scale * sample_weight
        if SPLIT and not FORWARD:
            active = active & (tl.load(state_ptr + 4 * rows + row) == 0.0)
        here = active
        if SPLIT:
            target -= first_class
            here = active & (target >= 0) & (target < classes)

        # An inactive row has no elements.
        end = tl.where(active, shift + classes, shift)
        low = tl.multiple_of((shift + VEC - 1) // VEC * VEC, VEC)
        high = tl.multiple_of(tl.where(active, end // VEC * VEC, low), VEC)
        at_target = tl.full((), 0.0, COMPUTE)
        slope_at_target = logit_scale
        if not PROBABILITIES:
            if CAPPED and COARSE:
                # With its neighbours, so that it is the same to the bit as in its tile.
                target_places = (shift + target) // VEC * VEC + tl.arange(0, VEC)[None, :]
                known = (target_places >= shift) & (target_places < tl.where(here, end, 0))
                target_logits = tl.load(x_base + target_places, mask=known, other=0.0).to(COMPUTE)
                y, slope, slope_at_target = logits(target_logits, logit_scale, logit_softcap, SCALED, CAPPED, COARSE)
                own = known & (target_places == shift + target)
                at_target = tl.sum(tl.sum(tl.where(own, y, 0.0), 1), 0)
                slope_at_target *= tl.sum(tl.sum(tl.where(own, slope, 0.0), 1), 0)
            else:
                own = tl.load(x_base + shift + target, mask=here, other=0.0).to(COMPUTE)
                at_target, slope, slope_at_target = logits(own, logit_scale, logit_softcap, SCALED, CAPPED, False)
                slope_at_target *= slope
        if not ALIGNED:
            end_places, end_valid = ends(shift, end, VEC)
            x_ends, t_ends = loaded(x_base, t_base, end_places, end_valid, PROBABILITIES, KEEP)
            if CAPPED:
                x_ends = tl.where(end_valid, x_ends, 0.0)

        # The first look: the sums.
        m = tl.full((), 0.0, COMPUTE)
        rest = tl.full((), 0.0, COMPUTE)
        total = classes.to(COMPUTE)
        beside = total
        if SINGLE or PREFETCH or not FORWARD:
            place = low + places(0, GROUPS, VEC)
            x, t = loaded(x_base, t_base, place, place < high, PROBABILITIES, KEEP)
        if FORWARD:
            state = nothing_yet(GROUPS, COMPUTE)
            if not ALIGNED:
                state_of_ends = taken_in(
                    nothing_yet(2, COMPUTE),
                    x_ends,
                    t_ends,
                    end_places,
                    shift,
                    end_valid,
                    None,
                    weights_ptr,
                    weight_stride,
                    logit_scale,
                    logit_softcap,
                    kept,
                    even,
                    SINGLE,
                    PROBABILITIES,
                    SMOOTHED,
                    WEIGHTED,
                    SCALED,
                    CAPPED,
                    COARSE,
                    STATISTICS,
                    SPLIT,
                    COMPUTE,
                )
                state = seeded(state_of_ends, GROUPS, COMPUTE, SINGLE)
            if SINGLE:
                place = low + places(0, GROUPS, VEC)
                state = taken_in(
                    state, x, t, place, shift, place < high, vectors(low, high, GROUPS, VEC), weights_ptr,
                    weight_stride, logit_scale, logit_softcap, kept, even, True, PROBABILITIES, SMOOTHED, WEIGHTED,
                    SCALED, CAPPED, COARSE, STATISTICS, SPLIT, COMPUTE,
                )  # fmt: skip
            else:
                for first in range(low, high, BLOCK):
                    place = first + places(0, GROUPS, VEC)
                    if PREFETCH:
                        following = place + BLOCK
                        next_x, next_t = loaded(x_base, t_base, following, following < high, PROBABILITIES, KEEP)
                    else:
                        x, t = loaded(x_base, t_base, place, place < high, PROBABILITIES, KEEP)
                    state = taken_in(
                        state, x, t, place, shift, place < high, vectors(first, high, GROUPS, VEC), weights_ptr,
                        weight_stride, logit_scale, logit_softcap, kept, even, False, PROBABILITIES, SMOOTHED, WEIGHTED,
                        SCALED, CAPPED, COARSE, STATISTICS, SPLIT, COMPUTE,
                    )  # fmt: skip
                    if PREFETCH:
                        x, t = next_x, next_t
            m, rest, product, first_largest, found_total, weighed, raw, raw_weighed, most, most_first, beside = merged(
                state, SINGLE
            )
            if SHARES:
                total = found_total
            if not SINGLE:  # noqa: SIM102  (the first is decided when the kernel is compiled)
                if rest < 0.25:
                    rest = recounted(
                        x_base, m, state[0], state[1], shift, low, high, end, logit_scale, logit_softcap, SCALED,
                        CAPPED, COARSE, COMPUTE, ALIGNED, GROUPS, VEC,
                    )  # fmt: skip
            of_row = m, rest, product, first_largest, total, weighed, raw, raw_weighed, most, most_first, beside
            if SPLIT:
                store_parts(
                    state_ptr, largest_ptr, rows, row, True, active, at_target, of_row,
                    SHARES, PROBABILITIES, STATISTICS,
                )  # fmt: skip
            else:
                loss, m, rest = store_loss(
                    loss_ptr, state_ptr, rows, row, True, active, of_row, target, at_target, target_weight,
                    sample_weight, kept, even, z_loss, PROBABILITIES, SMOOTHED, Z_LOSS, STATISTICS, REDUCTION,
                )  # fmt: skip
                if REDUCTION != "none":
                    losses += loss.to(tl.float64)
        else:
            m = tl.load(state_ptr + row)
            rest = tl.load(state_ptr + rows + row)
            if SPLIT:
                total = tl.load(state_ptr + 2 * rows + row)
                beside = tl.load(state_ptr + 3 * rows + row)
            elif PROBABILITIES or (SMOOTHED and WEIGHTED):
                # In the order of the forward, so that every bit is the same.
                shares_of_groups = tl.zeros([GROUPS], COMPUTE)
                if not ALIGNED:
                    of_ends = shares_again(
                        t_base, end_places, shift, end_valid, weights_ptr, weight_stride, kept, even, PROBABILITIES,
                        SMOOTHED, WEIGHTED, COMPUTE,
                    )  # fmt: skip
                    shares_of_groups += tl.where(tl.arange(0, GROUPS) == 0, tl.sum(of_ends, 0), 0.0)
                for first in range(low, high, BLOCK):
                    place = first + places(0, GROUPS, VEC)
                    shares_of_groups += shares_again(
                        t_base,
                        place,
                        shift,
                        place < high,
                        weights_ptr,
                        weight_stride,
                        kept,
                        even,
                        PROBABILITIES,
                        SMOOTHED,
                        WEIGHTED,
                        COMPUTE,
                    )
                total = tl.sum(shares_of_groups, 0)

        # The second look: the gradient.
        if GRADIENT:
            if SHARES and not SPLIT:
                active = active & ((total != 0.0) | (rest - rest == 0.0))
            if MEAN:
                # A mean over nothing has the gradient 0 whatever its rows hold.
                active = active & (divisor != 0.0)
            row_scale = tl.where(active, row_scale, 0.0)
            high = tl.multiple_of(tl.where(active, high, low), VEC)
            if SMOOTHED and not PROBABILITIES:
                total = beside if SPLIT else even * total
            multiplier, special = row_gradient(
                m, rest, at_target, target_weight, total, kept, even, z_loss, PROBABILITIES, SMOOTHED, Z_LOSS
            )
            m = tl.where(active, m, 0.0)
            multiplier = tl.where(active, multiplier, 0.0)
            special = tl.where(active, special, 0.0)
            factor = grad_output
            if UNIT_FIRST:
                factor = tl.where(active, grad_output, 0.0)
            # The gradient may take the memory of the logits: the target's is read by now.
            tl.debug_barrier()
            whole = tl.multiple_of((shift + classes) // VEC * VEC, VEC)
            place = low + places(0, GROUPS, VEC)
            if not SINGLE and FORWARD:
                x, t = loaded(x_base, t_base, place, place < high, PROBABILITIES, "evict_first")
            for first in range(low, whole, BLOCK):
                place = first + places(0, GROUPS, VEC)
                if not SINGLE:
                    following = place + BLOCK
                    next_x, next_t = loaded(x_base, t_base, following, following < high, PROBABILITIES, "evict_first")
                gradient = gradient_of(
                    x, t, place, shift, place < high, weights_ptr, weight_stride, m, rest, total, beside, multiplier,
                    special, kept, even, row_scale, logit_scale, logit_softcap, factor, PROBABILITIES, SMOOTHED,
                    WEIGHTED, SCALED, CAPPED, COARSE, COMPUTE, DTYPE, UNIT_FIRST, MASKED, SPLIT,
                )  # fmt: skip
                tl.store(gradient_base + place, gradient, mask=place < whole, cache_modifier=CACHE)
                if not SINGLE:
                    x, t = next_x, next_t
            if not ALIGNED:
                end_places, written = ends(shift, shift + classes, VEC)
                # Of a tile and a single truth the interpreter of Triton 3.9 makes no mask.
                traced = end_valid & (end_places < tl.where(active, shift + classes, 0))
                gradient = gradient_of(
                    x_ends, t_ends, end_places, shift, traced, weights_ptr, weight_stride, m, rest, total,
                    beside, multiplier, special, kept, even, row_scale, logit_scale, logit_softcap, factor,
                    PROBABILITIES, SMOOTHED, WEIGHTED, SCALED, CAPPED, COARSE, COMPUTE, DTYPE, UNIT_FIRST, True, SPLIT,
                )  # fmt: skip
                tl.store(gradient_base + end_places, gradient, mask=written)
            if not PROBABILITIES:
                # Behind all that other threads have written.
                tl.debug_barrier()
                gradient = scaled(special * slope_at_target * row_scale, factor, DTYPE, UNIT_FIRST)
                tl.store(gradient_base + shift + target, gradient, mask=here & active)

    if FORWARD and REDUCTION != "none":
        if ALONE:
            tl.store(loss_ptr, rounded(quotient(losses, divisor, empty), loss_ptr.dtype.element_ty))
        else:
            tl.store(partials_ptr + tl.program_id(0), losses)
