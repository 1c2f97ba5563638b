# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""The kernel of log-probability and entropy: a row a turn, in tiles as `cross_entropy_rows` has them.

The forward reads a row once, and the backward once, in place where the gradient takes the memory of the logits. Rows
whose classes lie apart are read one element at a time.
"""

# ruff: noqa: N803, N806  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.cross_entropy_rows import recounted
from torchlosses.kernels.triton.functions import (
    BEYOND,
    accumulated,
    ends,
    exponentials,
    fast_exp,
    log1p,
    logits,
    merged,
    nothing_yet,
    number,
    places,
    rounded,
    seeded,
)


@triton.jit
def with_tile(
    state, x, place, shift, valid, logit_scale, logit_softcap,
    EXACT: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """`accumulated`, of logits as they were loaded."""
    y, _, _ = logits(x.to(COMPUTE), logit_scale, logit_softcap, SCALED, CAPPED, False)
    if SCALED or CAPPED:
        y = tl.where(valid, y, float("-inf"))
    return accumulated(state, y, y, 0.0, y, tl.where(valid, place - shift, BEYOND), EXACT, False, False, True)


@triton.jit
def gradient_of(
    x, valid, m, whole, distance, g, h, logit_scale, logit_softcap,
    SCALED: tl.constexpr, CAPPED: tl.constexpr, COMPUTE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile of the gradient, as it is stored, but for the 1 of the target."""
    y, slope, slope_of_all = logits(x.to(COMPUTE), logit_scale, logit_softcap, SCALED, CAPPED, False)
    e, correction = exponentials(y, m, m)
    # A class that is ruled out has no part in it: 0 · ∞ = 0.
    pull = g * correction / whole + h * correction / whole * (tl.where(e > 0.0, y - m, 0.0) + distance)
    return rounded(tl.where(valid, -e * pull * (slope * slope_of_all), 0.0), DTYPE)


@triton.jit(
    do_not_specialize=[
        "outer", "inner", "classes", "x_outer", "x_inner", "x_offset", "target_outer", "target_inner", "grad_outer",
        "grad_inner", "grad_field", "gradient_outer", "gradient_inner", "ignore_index",
    ]
)  # fmt: skip
def log_probs_kernel(
    x_ptr, target_ptr, grad_output_ptr, state_ptr, values_ptr, gradient_ptr,
    outer, inner, classes, x_outer, x_inner, x_class, x_offset, target_outer, target_inner, grad_outer, grad_inner,
    grad_field, gradient_outer, gradient_inner, gradient_class, ignore_index,
    scale_of_logits: tl.float64, cap_of_logits: tl.float64,
    NAME: tl.constexpr, COMPUTE: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr, FORWARD: tl.constexpr,
    ADJACENT: tl.constexpr, ALIGNED: tl.constexpr, GRADIENT_ALIKE: tl.constexpr, BLOCK: tl.constexpr,
    VEC: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Log-probability, entropy and state; or with the state of an earlier call the gradient."""
    GROUPS: tl.constexpr = BLOCK // VEC
    EXACT: tl.constexpr = SINGLE or not ADJACENT
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    logit_scale = number(scale_of_logits, COMPUTE)
    logit_softcap = number(cap_of_logits, COMPUTE)
    rows = outer.to(tl.int64) * inner

    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        sample = row // inner
        position = row % inner
        start = sample * x_outer + position * x_inner
        shift = tl.full((), 0, tl.int32) if ALIGNED else ((start + x_offset) % VEC).to(tl.int32)
        x_base = x_ptr + (start - shift)
        if ADJACENT:
            x_base = tl.multiple_of(x_base, 16)

        target = tl.load(target_ptr + sample * target_outer + position * target_inner).to(tl.int64)
        inside = (target >= 0) & (target < classes)
        ignored = target == ignore_index
        tl.device_assert(ignored | inside, "torchlosses: " + NAME + ": a target is no class index")
        active = inside & (ignored == 0)
        target = tl.where(active, target, 0)

        # An inactive row has no elements.
        end = tl.where(active, shift + classes, shift)
        low = tl.multiple_of((shift + VEC - 1) // VEC * VEC, VEC)
        high = tl.where(active, end, low)
        if ADJACENT:
            high = tl.multiple_of(tl.where(active, end // VEC * VEC, low), VEC)
        own = tl.load(x_base + shift + target * x_class, mask=active, other=0.0).to(COMPUTE)
        at_target, slope, slope_of_all = logits(own, logit_scale, logit_softcap, SCALED, CAPPED, False)
        if not ALIGNED:
            end_places, end_valid = ends(shift, end, VEC)
            x_ends = tl.load(x_base + end_places, mask=end_valid, other=float("-inf"))
        place = low + places(0, GROUPS, VEC)
        step = place if ADJACENT else place.to(tl.int64) * x_class
        x = tl.load(x_base + step, mask=place < high, other=float("-inf"))

        if FORWARD:
            state = nothing_yet(GROUPS, COMPUTE)
            if not ALIGNED:
                state_of_ends = with_tile(
                    nothing_yet(2, COMPUTE), x_ends, end_places, shift, end_valid, logit_scale, logit_softcap,
                    EXACT, SCALED, CAPPED, COMPUTE,
                )  # fmt: skip
                state = seeded(state_of_ends, GROUPS, COMPUTE, EXACT)
            if SINGLE:
                state = with_tile(
                    state, x, place, shift, place < high, logit_scale, logit_softcap, EXACT, SCALED, CAPPED, COMPUTE
                )
            else:
                for first in range(low, high, BLOCK):
                    place = first + places(0, GROUPS, VEC)
                    following = place + BLOCK
                    step = following if ADJACENT else following.to(tl.int64) * x_class
                    next_x = tl.load(x_base + step, mask=following < high, other=float("-inf"))
                    state = with_tile(
                        state, x, place, shift, place < high, logit_scale, logit_softcap, EXACT, SCALED, CAPPED, COMPUTE
                    )
                    x = next_x
            m, rest, product, largest, _total, _weighed, _raw, _raw_weighed, _most, _most_first, _beside = merged(
                state, EXACT
            )
            if not EXACT:  # noqa: SIM102  (the first is decided when the kernel is compiled)
                if rest < 0.25:
                    rest = recounted(
                        x_base, m, state[0], state[1], shift, low, high, end, logit_scale, logit_softcap,
                        SCALED, CAPPED, False, COMPUTE, ALIGNED, GROUPS, VEC,
                    )  # fmt: skip
            # An infinite maximum makes the row's probabilities 0/0 or inf/inf.
            rest += m - m
            log_rest = log1p(rest)
            distance = -product / (1.0 + rest)
            # Which of nan or infinite logits is the largest says nothing.
            correct = (largest.to(tl.int64) == target) & (rest - rest == 0.0)
            values = values_ptr + sample * 2 * inner + position
            log_probability = tl.where(active, (at_target - m) - log_rest, 0.0)
            tl.store(values, rounded(log_probability, values_ptr.dtype.element_ty))
            entropy = tl.where(active, log_rest + distance, 0.0)
            tl.store(values + inner, rounded(entropy, values_ptr.dtype.element_ty))
            tl.store(state_ptr + row, tl.where(active, m, 0.0))
            tl.store(state_ptr + rows + row, tl.where(active, rest, 0.0))
            tl.store(state_ptr + 2 * rows + row, tl.where(active, distance, 0.0))
            tl.store(state_ptr + 3 * rows + row, tl.where(active & correct, 1.0, 0.0))
        else:
            m = tl.load(state_ptr + row)
            rest = tl.load(state_ptr + rows + row)
            distance = tl.load(state_ptr + 2 * rows + row)
            whole = 1.0 + rest
            grad_output = grad_output_ptr + sample * grad_outer + position * grad_inner
            g = tl.where(active, tl.load(grad_output).to(COMPUTE), 0.0)
            h = tl.where(active, tl.load(grad_output + grad_field).to(COMPUTE), 0.0)
            gradient_base = gradient_ptr + (sample * gradient_outer + position * gradient_inner - shift)
            if GRADIENT_ALIKE:
                gradient_base = tl.multiple_of(gradient_base, GRADIENT_ALIKE)
            # The gradient may take the memory of the logits: the target's and the two ends are read by now.
            tl.debug_barrier()
            last = shift + classes
            if ADJACENT:
                last = tl.multiple_of(last // VEC * VEC, VEC)
            for first in range(low, last, BLOCK):
                place = first + places(0, GROUPS, VEC)
                following = place + BLOCK
                if not SINGLE:
                    step = following if ADJACENT else following.to(tl.int64) * x_class
                    next_x = tl.load(x_base + step, mask=following < high, other=float("-inf"))
                gradient = gradient_of(
                    x,
                    place < high,
                    m,
                    whole,
                    distance,
                    g,
                    h,
                    logit_scale,
                    logit_softcap,
                    SCALED,
                    CAPPED,
                    COMPUTE,
                    DTYPE,
                )
                step = place if ADJACENT else place.to(tl.int64) * gradient_class
                tl.store(gradient_base + step, gradient, mask=place < last)
                if not SINGLE:
                    x = next_x
            if not ALIGNED:
                end_places, written = ends(shift, shift + classes, VEC)
                gradient = gradient_of(
                    x_ends, end_valid, m, whole, distance, g, h, logit_scale, logit_softcap, SCALED, CAPPED, COMPUTE,
                    DTYPE,
                )  # fmt: skip
                tl.store(gradient_base + end_places, gradient, mask=written)
            # Behind all that other threads have written.
            tl.debug_barrier()
            e = fast_exp(at_target - m)
            others = tl.where(at_target == m, rest, whole - e)
            of_entropy = h * e * (tl.where(e > 0.0, at_target - m, 0.0) + distance)
            gradient = (g * others - of_entropy) / whole * (slope * slope_of_all)
            tl.store(gradient_base + shift + target * gradient_class, rounded(gradient, DTYPE), mask=active)
