# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""Two small kernels around those of the losses: how many rows count, before them, and one loss of many, after them.

Both take the same steps in the same order from run to run.
"""

# ruff: noqa: N803  (constants are written in capitals, as Triton's users do)
from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.functions import denominator, quotient, rounded


@triton.jit
def counted(target_ptr, start, stop, step, inner, target_outer, target_inner, ignore_index, BLOCK: tl.constexpr):
    """How many of the targets from `start` on, BLOCK of them every `step`, are not ignore_index; lane by lane."""
    found = tl.zeros([BLOCK], tl.int64)
    for first in range(start, stop, step):
        row = first + tl.arange(0, BLOCK).to(tl.int64)
        at = target_ptr + (row // inner) * target_outer + (row % inner) * target_inner
        target = tl.load(at, mask=row < stop, other=0)
        # A target that is a floating-point number is compared as one.
        ignored = (
            target.to(tl.float64) == ignore_index if target.dtype.is_floating() else target.to(tl.int64) == ignore_index
        )
        found += ((row < stop) & (ignored == 0)).to(tl.int64)
    return found


@triton.jit(do_not_specialize=["rows", "inner", "target_outer", "target_inner", "ignore_index"])
def count(
    target_ptr,
    grad_output_ptr,
    counts_ptr,
    rows,
    inner,
    target_outer,
    target_inner,
    ignore_index,
    HELD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program's number of rows that count; rows are counted along `inner`, then along the outer dimension."""
    stop = rows
    if HELD:
        stop = tl.where(tl.load(grad_output_ptr) == 1.0, 0, rows)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    step = tl.num_programs(0) * BLOCK
    found = counted(target_ptr, start, stop, step, inner, target_outer, target_inner, ignore_index, BLOCK)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(found, 0))


@triton.jit(do_not_specialize=["programs", "rows"])
def finish(
    partials_ptr,
    normalizer_ptr,
    counts_ptr,
    loss_ptr,
    programs,
    rows,
    empty: tl.float64,
    MEAN: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of what the programs found, or the mean."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, programs, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.load(partials_ptr + place, mask=place < programs, other=0.0)
    loss = quotient(tl.sum(total, 0), denominator(normalizer_ptr, counts_ptr, rows, MEAN, PARTS), empty)
    tl.store(loss_ptr, rounded(loss, loss_ptr.dtype.element_ty))
