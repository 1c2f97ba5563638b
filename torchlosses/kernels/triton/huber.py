# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""The Huber loss on a GPU: e²/2 up to |e| = δ, δ (|e| - δ/2) beyond, e = x - t; its gradient is e, held within ±δ."""

from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.elementwise import Elementwise


@triton.jit
def huber(x, t, q, delta):
    """The loss of each element, and its gradient by x."""
    error = x - t
    size = tl.abs(error)
    loss = tl.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))
    # Comparisons that a nan fails keep it.
    return loss, tl.where(error > delta, delta, tl.where(error < -delta, -delta, error))


_LOSS = Elementwise(huber, option=lambda options: options.delta)
forward, backward = _LOSS.forward, _LOSS.backward
