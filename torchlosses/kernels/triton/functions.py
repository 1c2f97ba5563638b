# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""What the kernels share on the device: functions of numbers, the weighing of rows, denominators and sums.

Names of constants in capitals are known when a kernel is compiled; what they exclude is not in its code.
"""

# ruff: noqa: N803, N806  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

# The interpreter has no fused multiply-add, so that a remainder it keeps exactly would be lost there.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))

LOG2E = tl.constexpr(1.4426950408889634)
LOG2E_LOW = tl.constexpr(1.925963033500011e-08)  # log2(e) less its nearest float32
LN2 = tl.constexpr(0.6931471805599453)
BEYOND = tl.constexpr(2147483647)  # a place behind every class


@triton.jit
def number(value, DTYPE: tl.constexpr):
    """An option, which came as a double, in the dtype that is computed in."""
    return tl.full((), value, DTYPE)


@triton.jit
def places(start, GROUPS: tl.constexpr, VEC: tl.constexpr):
    """The places of a tile [GROUPS, VEC] of neighbours."""
    return start + tl.arange(0, GROUPS)[:, None] * VEC + tl.arange(0, VEC)[None, :]


@triton.jit
def ends(shift, end, VEC: tl.constexpr):
    """The places of a run before its first whole vector and behind its last one, and which of them it has."""
    low = (shift + VEC - 1) // VEC * VEC
    high = end // VEC * VEC
    lane = tl.arange(0, VEC)[None, :]
    behind = tl.arange(0, 2)[:, None] == 1
    place = tl.where(behind, high + lane, lane)
    return place, tl.where(behind, (place >= low) & (place < end), (place >= shift) & (place < low) & (place < end))


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """The value in the dtype it is stored in."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # The interpreter's own conversion loses the carry of a mantissa that rounds up to the next power of two.
        wide = value.to(tl.float32)
        bits = wide.to(tl.uint32, bitcast=True)
        bits = tl.where((wide == wide), bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        result = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(DTYPE)
    return result


@triton.jit
def fast_exp(x):
    """exp(x) by the device's own exp2: as good as x is small, and the fastest."""
    return tl.exp(x) if x.dtype == tl.float64 or INTERPRETED else tl.exp2(x * LOG2E)


@triton.jit
def accurate_exp(x):
    """exp(x), right to a few units in the last place for every x: what rounding took from x log2(e) is put back."""
    if x.dtype == tl.float64 or INTERPRETED:
        result = tl.exp(x)
    else:
        power = x * LOG2E
        remainder = tl.fma(x, LOG2E, -power) + x * LOG2E_LOW
        result = tl.exp2(power)
        # Beyond that the result is 0 or inf, and inf - inf would make it nan.
        result = tl.where(tl.abs(power) < 200.0, tl.fma(result, remainder * LN2, result), result)
    return result


@triton.jit
def exponentials(x, shift, along_shift):
    """exp(x - shift) in one fused multiply-add an element, and the factor by which that is off, one for each shift.

    exp2(x log2(e) - s) with s = shift log2(e) rounded; exp2 of what the rounding took is the same for the whole group.
    """
    if x.dtype == tl.float64 or INTERPRETED:
        e = tl.exp(x - along_shift)
        correction = tl.zeros_like(shift) + 1.0
    else:
        lost = tl.fma(shift, LOG2E, -(shift * LOG2E)) * LN2
        e = tl.exp2(tl.fma(x, LOG2E, -(along_shift * LOG2E)))
        correction = 1.0 - lost * (1.0 - 0.5 * lost)  # exp(-lost), next to 1
    return e, correction


@triton.jit
def log1p(z):
    """log(1 + z) for z >= -1/2 with all digits: 2 artanh(s), s = z / (2 + z), by its series.

    From 1/2 on it is log(2) + log(1 + (z - 1) / 2), which is as good again.
    """
    high = z > 0.5
    s = tl.where(high, z - 1.0, z) / (tl.where(high, 3.0, 2.0) + z)
    square = s * s
    TERMS: tl.constexpr = 15 if z.dtype == tl.float64 else 6
    series = square * 0.0
    for term in tl.static_range(TERMS):
        series = series * square + 1.0 / (2 * (TERMS - term) + 1)
    # The first term, which is most of it, is added last.
    result = 2.0 * s + 2.0 * s * (square * series)
    result = tl.where(high, result + LN2, result)
    return tl.where(z <= 1.0, result, tl.log(1.0 + tl.where(z <= 1.0, 1.0, z)))


@triton.jit
def reciprocal(d):
    """1 / d of a number that is far from the largest and the smallest ones, so that it is not scaled before."""
    return 1.0 / d if d.dtype == tl.float64 or INTERPRETED else libdevice.fast_dividef(1.0, d)


@triton.jit
def reciprocals(d):
    """1 / d of a tile [groups, 4 n], with one division for four neighbours: one that is nan makes all of them nan."""
    first, second = tl.split(tl.reshape(d, [d.shape[0], d.shape[1] // 2, 2]))
    left, right = tl.split(tl.reshape(first * second, [d.shape[0], d.shape[1] // 4, 2]))
    of_four = reciprocal(left * right)
    of_two = tl.reshape(tl.join(of_four * right, of_four * left), first.shape)
    return tl.reshape(tl.join(of_two * second, of_two * first), d.shape)


@triton.jit
def signed(magnitude, x):
    """The magnitude, or less than 0 where x is."""
    if x.dtype == tl.float64:
        sign = x.to(tl.uint64, bitcast=True) & 0x8000000000000000
        bits = magnitude.to(tl.uint64, bitcast=True) ^ sign
    else:
        sign = x.to(tl.uint32, bitcast=True) & 0x80000000
        bits = magnitude.to(tl.uint32, bitcast=True) ^ sign
    return bits.to(x.dtype, bitcast=True)


@triton.jit
def capped(x, logit_scale, logit_softcap, COARSE: tl.constexpr):
    """c tanh(k x / c); and of its slope k (1 - tanh²) what differs from one to the next, and what does not.

    With u = |k x / c| and e = exp(-2 u) the tangent of u is 1 - 2 e / (1 + e), next to 0 Cephes' rational function, and
    the slope 4 e / (1 + e)², which keeps its digits where the tangent is close to 1. COARSE, of tiles, has the former
    next to 0 too: its error is a unit in the last place of c, much less than what 16 bits leave of a logit.
    """
    ratio = tl.abs(logit_scale / logit_softcap)
    height = tl.where(logit_scale < 0.0, -logit_softcap, logit_softcap)
    magnitude = tl.abs(x)
    # exp2(u log2(e)), whose factors are one number.
    e = tl.exp2(magnitude * (-2.0 * LOG2E * ratio)) if x.dtype == tl.float32 else tl.exp(magnitude * (-2.0 * ratio))
    of_sum = reciprocals(1.0 + e) if COARSE else reciprocal(1.0 + e)
    share = e * of_sum
    y = tl.fma(share, -2.0 * height, height)
    if not COARSE:
        u = magnitude * ratio
        z = u * u
        if x.dtype == tl.float64:
            # A constant that is an argument would have float32.
            p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
            p = p / (((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3)
        else:
            p = tl.fma(z, -5.70498872745e-3, 2.06390887954e-2)
            p = tl.fma(p, z, -5.37397155531e-2)
            p = tl.fma(p, z, 1.33314422036e-1)
            p = tl.fma(p, z, -3.33332819422e-1)
        y = tl.where(u < 0.625, height * tl.fma(p * z, u, u), y)
    return signed(y, x), share * of_sum, 4.0 * logit_scale


@triton.jit
def logits(x, logit_scale, logit_softcap, SCALED: tl.constexpr, CAPPED: tl.constexpr, COARSE: tl.constexpr):
    """y = logit_scale x, then c tanh(y / c); and dy / dx as two factors, the second of which is the same for all."""
    if CAPPED:
        y, slope, slope_of_all = capped(x, logit_scale, logit_softcap, COARSE)
    else:
        y, slope, slope_of_all = x * logit_scale if SCALED else x, 1.0, logit_scale
    return y, slope, slope_of_all


@triton.jit
def accumulated(
    state,
    y,
    share,
    taken,
    t,
    place,
    EXACT: tl.constexpr,
    SHARES: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    STATISTICS: tl.constexpr,
    SPLIT: tl.constexpr = False,
):
    """What is known of each group of classes, with one more tile of [groups, classes] taken in; `taken` is its Σ a.

    state holds for each group
        m       the largest logit
        s       Σ exp(y - m); if EXACT without the 1 of one that is the largest, so that a small rest keeps its digits
        product Σ exp(y - m) (y - m)                    (STATISTICS: for the entropy)
        first   the first place of the largest          (STATISTICS)
        total, weighed      Σ a, Σ a (y - m)            (SHARES; a class without a share counts for nothing)
        beside  Σ a of the classes that are not the largest     (SPLIT, PROBABILITIES)
        raw, raw_weighed    Σ t, Σ t (y - m)            (STATISTICS of PROBABILITIES)
        most, most_first    the largest t and its place (STATISTICS of PROBABILITIES)
    """
    m, s, product, first, total, weighed, raw, raw_weighed, most, most_first, beside = state
    new = tl.maximum(m, tl.max(y, 1))
    shift = tl.where(new == float("-inf"), 0.0, new)
    change = tl.where(m == float("-inf"), 0.0, m - shift)
    factor = tl.where(m == float("-inf"), 0.0, fast_exp(change))
    if SHARES or STATISTICS:
        difference = y - shift[:, None]
        e = fast_exp(difference)
        correction = 1.0
    else:
        difference = y
        e, correction = exponentials(y, shift, shift[:, None])
    if STATISTICS:
        mass = s + 1.0 if EXACT else s
        product = (product + mass * change) * factor + tl.sum(tl.where(e > 0.0, e * difference, 0.0), 1)
        candidate = tl.min(tl.where(y == new[:, None], place, BEYOND), 1)
        first = tl.where(new > m, candidate, tl.minimum(first, candidate))
    if EXACT:
        top = y == new[:, None]
        others = tl.sum(tl.where(top, 0.0, e), 1) * correction
        ties = tl.where(new == float("-inf"), 0.0, tl.sum(tl.where(top, 1.0, 0.0).to(y.dtype), 1))
        s = tl.where(m < new, tl.where(m == float("-inf"), s, (s + 1.0) * factor) + (ties - 1.0), s + ties) + others
    else:
        s = s * factor + tl.sum(e, 1) * correction
    if SPLIT and PROBABILITIES:
        beside = tl.where(m < new, total, beside) + tl.sum(tl.where(y == new[:, None], 0.0, share), 1)
    if SHARES:
        weighed += total * change + tl.sum(tl.where(share == 0.0, 0.0, share * difference), 1)
        total += taken
    if STATISTICS and PROBABILITIES:
        raw_weighed += raw * change + tl.sum(tl.where(t == 0.0, 0.0, t * difference), 1)
        raw += tl.sum(t, 1)
        largest = tl.max(tl.where(place == BEYOND, float("-inf"), t), 1)
        candidate = tl.min(tl.where((t == largest[:, None]) & (place != BEYOND), place, BEYOND), 1)
        most_first = tl.where(
            largest > most, candidate, tl.where(largest == most, tl.minimum(most_first, candidate), most_first)
        )
        most = tl.maximum(most, largest)
    return new, s, product, first, total, weighed, raw, raw_weighed, most, most_first, beside


@triton.jit
def nothing_yet(GROUPS: tl.constexpr, DTYPE: tl.constexpr):
    """The state of `accumulated` before the first tile."""
    lowest = tl.full([GROUPS], float("-inf"), DTYPE)
    zero = tl.zeros([GROUPS], DTYPE)
    beyond = tl.full([GROUPS], BEYOND, tl.int32)
    return lowest, zero, zero, beyond, zero, zero, zero, zero, lowest, beyond, zero


@triton.jit
def merged(state, EXACT: tl.constexpr):
    """The state of all groups together: numbers, and `s` as Σ exp(y - m) - 1."""
    m, s, product, first, total, weighed, raw, raw_weighed, most, most_first, beside = state
    new = tl.max(m, 0)
    shift = tl.where(new == float("-inf"), 0.0, new)
    change = tl.where(m == float("-inf"), 0.0, m - shift)
    factor = tl.where(m == float("-inf"), 0.0, fast_exp(change))
    if EXACT:
        mass = s + 1.0
        top = m == new
        rest = tl.sum(tl.where(top, s, mass * factor), 0) + (tl.sum(tl.where(top, 1.0, 0.0).to(m.dtype), 0) - 1.0)
    else:
        mass = s
        rest = tl.sum(s * factor, 0) - 1.0
    product = tl.sum((product + mass * change) * factor, 0)
    weighed = tl.sum(weighed + total * change, 0)
    raw_weighed = tl.sum(raw_weighed + raw * change, 0)
    first = tl.min(tl.where(m == new, first, BEYOND), 0)
    largest = tl.max(most, 0)
    most_first = tl.min(tl.where(most == largest, most_first, BEYOND), 0)
    beside = tl.sum(tl.where(m == new, beside, total), 0)
    total, raw = tl.sum(total, 0), tl.sum(raw, 0)
    return new, rest, product, first, total, weighed, raw, raw_weighed, largest, most_first, beside


@triton.jit
def seeded(state, GROUPS: tl.constexpr, DTYPE: tl.constexpr, EXACT: tl.constexpr):
    """The state of many groups, the first of which knows what two know in `state`; their `merged` one."""
    m, rest, product, first, total, weighed, raw, raw_weighed, most, most_first, beside = merged(state, EXACT)
    here = tl.arange(0, GROUPS) == 0
    # A group that has seen nothing has no 1 of its own.
    known = rest if EXACT else rest + 1.0
    known = tl.where(m == float("-inf"), tl.where(known == known, 0.0, known), known)
    zero = tl.zeros([GROUPS], DTYPE)
    return (
        tl.where(here, m, float("-inf")),
        tl.where(here, known, zero),
        tl.where(here, product, zero),
        tl.where(here, first, BEYOND),
        tl.where(here, total, zero),
        tl.where(here, weighed, zero),
        tl.where(here, raw, zero),
        tl.where(here, raw_weighed, zero),
        tl.where(here, most, float("-inf")),
        tl.where(here, most_first, BEYOND),
        tl.where(here, beside, zero),
    )


@triton.jit
def shares(t, weight, valid, kept, even, PROBABILITIES: tl.constexpr, SMOOTHED: tl.constexpr, WEIGHTED: tl.constexpr):
    """a_c = w_c ((1 - ε) t_c + ε / C); for class indices w_c, whose part ε / C is smoothed. 0 unless valid."""
    if PROBABILITIES:
        share = t * kept + even if SMOOTHED else t
        if WEIGHTED:
            share = share * weight
    elif WEIGHTED:
        share = weight
    else:
        share = tl.full(t.shape, 1.0, t.dtype)
    return tl.where(valid, share, 0.0)


@triton.jit
def row_loss(
    m,
    rest,
    at_target,
    weight,
    total,
    weighed,
    kept,
    even,
    z_loss,
    PROBABILITIES: tl.constexpr,
    SMOOTHED: tl.constexpr,
    Z_LOSS: tl.constexpr,
):
    """The loss of a row whose logits sum to exp(m) (1 + rest): -log p_c = log1p(rest) - (y_c - m)."""
    log_rest = log1p(rest)
    if PROBABILITIES:
        loss = total * log_rest - weighed
        own = total
    else:
        own = kept * weight
        # A class without weight counts for nothing, also where its logit is -inf.
        loss = tl.where(own == 0.0, 0.0, own * (log_rest - (at_target - m)))
        if SMOOTHED:
            loss += even * (total * log_rest - weighed)
            own += even * total
    if Z_LOSS:
        l = m + log_rest
        loss += tl.where(own == 0.0, 0.0, z_loss * l * l)
    return loss


@triton.jit
def row_gradient(
    m,
    rest,
    at_target,
    weight,
    total,
    kept,
    even,
    z_loss,
    PROBABILITIES: tl.constexpr,
    SMOOTHED: tl.constexpr,
    Z_LOSS: tl.constexpr,
):
    """The gradient by y is `multiplier` exp(y - m) - a; where a class holds all but everything, `special` instead.

    `total` is Σ a, of class indices that part of it which is smoothed over all classes. `special` is the target's entry
    for class indices, and for probabilities what the largest logit has beside A - a.
    There p - 1 would lose the digits of the small rest: it is -rest / s with s = 1 + rest.
    """
    s = 1.0 + rest
    if PROBABILITIES:
        own = total
        drawn = own * 0.0
        if Z_LOSS:
            drawn = tl.where(own == 0.0, 0.0, 2.0 * z_loss * (m + log1p(rest)))
        special = (drawn - own * rest) / s
    else:
        direct = kept * weight
        own = direct + total if SMOOTHED else direct
        drawn = own * 0.0
        if Z_LOSS:
            drawn = tl.where(own == 0.0, 0.0, 2.0 * z_loss * (m + log1p(rest)))
        e = fast_exp(at_target - m)
        special = (drawn * e - direct * tl.where(at_target == m, rest, s - e)) / s
        if SMOOTHED:
            special += total * e / s - even * weight
    return (own + drawn) / s, special


@triton.jit
def row_statistics(
    m, rest, product, first, target, at_target, raw, raw_weighed, most_first, PROBABILITIES: tl.constexpr
):
    """The fields of `RowStatistics`."""
    log_rest = log1p(rest)
    if PROBABILITIES:
        log_probability = raw_weighed - raw * log_rest
        correct = first == most_first
    else:
        log_probability = (at_target - m) - log_rest
        correct = first.to(tl.int64) == target
    # Which of nan or infinite logits is the largest says nothing.
    correct = correct & (rest - rest == 0.0)
    return m + log_rest, log_probability, tl.where(correct, 1.0, 0.0).to(m.dtype), log_rest - product / (1.0 + rest)


@triton.jit
def store_loss(
    loss_ptr, state_ptr, rows, row, exists, active, found, target, at_target, target_weight, sample_weight,
    kept, even, z_loss,
    PROBABILITIES: tl.constexpr, SMOOTHED: tl.constexpr, Z_LOSS: tl.constexpr, STATISTICS: tl.constexpr,
    REDUCTION: tl.constexpr,
):  # fmt: skip
    """What a row is found to have, as it is `merged`: its state, its statistics, and its loss if nothing is summed.

    Gives the loss, the largest logit and the rest; a row that leaves no trace has zeros.
    """
    m, rest, product, first, total, weighed, raw, raw_weighed, _most, most_first, _beside = found
    SHARES: tl.constexpr = PROBABILITIES or SMOOTHED
    # An infinite maximum makes the row's probabilities 0/0 or inf/inf.
    rest += m - m
    loss = row_loss(
        m, rest, at_target, target_weight, total, weighed, kept, even, z_loss, PROBABILITIES, SMOOTHED, Z_LOSS
    )
    if SHARES:
        # Where no class has a share, nothing of the row counts.
        loss = tl.where((total == 0.0) & (loss - loss != 0.0), 0.0, loss)
    loss = tl.where(active, loss * sample_weight, 0.0)
    m = tl.where(active, m, 0.0)
    rest = tl.where(active, rest, 0.0)
    tl.store(state_ptr + row, m, mask=exists)
    tl.store(state_ptr + rows + row, rest, mask=exists)
    if STATISTICS:
        traced = active & (total != 0.0) if SHARES else active
        log_sum_exp, log_probability, correct, entropy = row_statistics(
            m, rest, product, first, target, at_target, raw, raw_weighed, most_first, PROBABILITIES
        )
        tl.store(state_ptr + 2 * rows + row, tl.where(traced, log_sum_exp, 0.0), mask=exists)
        tl.store(state_ptr + 3 * rows + row, tl.where(traced, log_probability, 0.0), mask=exists)
        tl.store(state_ptr + 4 * rows + row, tl.where(traced, correct, 0.0), mask=exists)
        tl.store(state_ptr + 5 * rows + row, tl.where(traced, entropy, 0.0), mask=exists)
    if REDUCTION == "none":
        tl.store(loss_ptr + row, rounded(loss, loss_ptr.dtype.element_ty), mask=exists)
    return loss, m, rest


@triton.jit
def store_parts(
    parts_ptr,
    largest_ptr,
    rows,
    row,
    exists,
    active,
    at_target,
    found,
    SHARES: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """What other processes, which have other classes of the row, need to know: the fields of `Parts`.

    As they are `merged`; a row that leaves no trace has zeros.
    """
    m, rest, product, first, total, weighed, raw, raw_weighed, most, most_first, beside = found
    # Where all logits are -inf another process may have more, and where one is nan none has: m is then inf in each.
    rest = tl.where(m == float("-inf"), rest * 0.0, rest + (m - m))
    m = tl.where(rest == rest, m, float("inf"))
    tl.store(parts_ptr + row, tl.where(active, m, 0.0), mask=exists)
    tl.store(parts_ptr + rows + row, tl.where(active, rest, 0.0), mask=exists)
    if not PROBABILITIES:
        tl.store(parts_ptr + 2 * rows + row, tl.where(active, at_target, 0.0), mask=exists)
    if SHARES:
        tl.store(parts_ptr + 3 * rows + row, tl.where(active, total, 0.0), mask=exists)
        tl.store(parts_ptr + 4 * rows + row, tl.where(active, weighed, 0.0), mask=exists)
    if PROBABILITIES:
        tl.store(parts_ptr + 5 * rows + row, tl.where(active, beside, 0.0), mask=exists)
    if STATISTICS:
        tl.store(parts_ptr + 6 * rows + row, tl.where(active, product, 0.0), mask=exists)
        tl.store(largest_ptr + row, tl.where(active & (first != BEYOND), first, 0), mask=exists)
        if PROBABILITIES:
            tl.store(parts_ptr + 7 * rows + row, tl.where(active, raw, 0.0), mask=exists)
            tl.store(parts_ptr + 8 * rows + row, tl.where(active, raw_weighed, 0.0), mask=exists)
            tl.store(parts_ptr + 9 * rows + row, tl.where(active, most, 0.0), mask=exists)
            tl.store(largest_ptr + rows + row, tl.where(active & (most_first != BEYOND), most_first, 0), mask=exists)


@triton.jit
def count_in_parts(counts_ptr, PARTS: tl.constexpr):
    """The sum of the numbers that the programs of `reduction.count` found."""
    return tl.sum(tl.load(counts_ptr + tl.arange(0, PARTS)), 0)


@triton.jit
def denominator(normalizer_ptr, counts_ptr, rows, MEAN: tl.constexpr, PARTS: tl.constexpr):
    """What the sum of the losses is divided by, as a double."""
    if not MEAN:
        return tl.full((), 1.0, tl.float64)
    if normalizer_ptr is not None:
        return tl.load(normalizer_ptr).to(tl.float64)
    if counts_ptr is not None:
        return count_in_parts(counts_ptr, PARTS).to(tl.float64)
    return tl.full((), rows, tl.float64)


@triton.jit
def quotient(total, divisor, empty):
    """total / divisor; what a mean over nothing is where both are 0."""
    return tl.where((divisor == 0.0) & (total == 0.0), tl.full((), empty, tl.float64), total / divisor)


@triton.jit
def share_of_mean(grad, divisor, DTYPE: tl.constexpr):
    """The gradient by one row's loss, 0 where there is nothing to average over."""
    return tl.where(divisor == 0.0, 0.0, grad.to(tl.float64) / divisor).to(DTYPE)


@triton.jit
def scaled(gradient, grad_output, DTYPE: tl.constexpr, UNIT_FIRST: tl.constexpr):
    """What is stored; if UNIT_FIRST the gradient for an incoming gradient of 1, rounded, times grad_output.

    The second is what torch makes of a gradient that came along with the loss of a small batch.
    """
    if UNIT_FIRST:
        unit = rounded(gradient, DTYPE).to(grad_output.dtype)
        gradient = tl.where(unit == 0.0, unit, unit * grad_output)
    return rounded(gradient, DTYPE)
