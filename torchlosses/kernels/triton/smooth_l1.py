# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""The smooth L1 loss on a GPU: e²/(2 β) below |e| = β, |e| - β/2 from there on, e = x - t; for β = 0 it is |e|."""

from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.elementwise import Elementwise


@triton.jit
def smooth_l1(x, t, q, beta):
    """The loss of each element, and its gradient by x."""
    error = x - t
    size = tl.abs(error)
    inside = size < beta
    loss = tl.where(inside, 0.5 * error * error / beta, size - 0.5 * beta)
    # A comparison that a nan fails keeps it, as 0 stays 0.
    sign = tl.where(error > 0.0, 1.0, tl.where(error < 0.0, -1.0, error))
    return loss, tl.where(inside, error / beta, sign)


_LOSS = Elementwise(smooth_l1, option=lambda options: options.beta)
forward, backward = _LOSS.forward, _LOSS.backward
