# type: ignore  (kernels are written in Triton's language, whose types are not Python's)
"""Binary cross-entropy on logits on a GPU.

With t' = (1 - ε) t + ε/2 and the weight q of the positive class

    loss     = q t' softplus(-x) + (1 - t') softplus(x),     softplus(x) = max(x, 0) + log1p(exp(-|x|))
    gradient = (1 - t') σ(x) - q t' σ(-x)
"""

from __future__ import annotations

import triton
import triton.language as tl

from torchlosses.kernels.triton.elementwise import Elementwise
from torchlosses.kernels.triton.functions import accurate_exp, log1p


@triton.jit
def binary_cross_entropy(x, t, q, label_smoothing):
    """The loss of each element, and its gradient by x."""
    t = (1.0 - label_smoothing) * t + 0.5 * label_smoothing
    positive = q * t
    negative = 1.0 - t
    small = accurate_exp(-tl.abs(x))
    # Both sides have log1p(exp(-|x|)), and one has |x|. Without a share it counts for nothing, also where that is
    # infinite; nan stays nan.
    share = tl.where(x < 0.0, positive, negative)
    loss = tl.where(share == 0.0, 0.0, share * tl.abs(x)) + (positive + negative) * log1p(small)
    likely = 1.0 / (1.0 + small)
    unlikely = small / (1.0 + small)
    slope = negative * tl.where(x < 0.0, unlikely, likely) - positive * tl.where(x < 0.0, likely, unlikely)
    return loss, slope


_LOSS = Elementwise(
    binary_cross_entropy,
    option=lambda options: options.label_smoothing,
    ignore_index=lambda options: options.ignore_index,
)
forward, backward = _LOSS.forward, _LOSS.backward
