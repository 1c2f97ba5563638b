# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""The squared error (x - t)² on a GPU, and its gradient 2 (x - t)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it beside every function)

from torchlosses.kernels.triton.elementwise import Elementwise


@triton.jit
def squared_error(x, t, q, option):
    """The loss of each element, and its gradient by x."""
    error = x - t
    return error * error, 2.0 * error


_LOSS = Elementwise(squared_error)
forward, backward = _LOSS.forward, _LOSS.backward
