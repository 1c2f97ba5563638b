"""torch's losses, also where the installed torch is older than they are."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def _composition(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """What torch's own does without `options`."""
    logits = F.linear(input, linear_weight, linear_bias)
    return F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


torchs_linear_cross_entropy: Callable[..., Tensor] = getattr(F, "linear_cross_entropy", _composition)
