"""What the loss files and the operators compute alike: in which dtype, and a logarithm that keeps its digits."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where an argument is float64, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def log_plus_delta(p: Tensor, delta: float) -> Tensor:
    """log(p + δ), right to rounding also next to p = 1, where p + δ would round δ away."""
    return torch.where(p < 0.5, torch.log(p + delta), torch.log1p((p - 1) + delta))
