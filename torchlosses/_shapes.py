"""To rows of classes and back, as views. No checks.

The operators and the Functions see classes along dimension 1 and at most three dimensions: (N, C), or (N, C, M) with
the dimensions behind the classes flattened into one. A row is one sample: a vector of C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_rows(input: Tensor) -> Tensor:
    """(C) -> (1, C); (N, C) as it is; (N, C, d1, ...) -> (N, C, d1·…)."""
    if input.dim() == 1:
        return input.unsqueeze(0)
    return input.flatten(2) if input.dim() > 3 else input


def indices_to_rows(target: Tensor) -> Tensor:
    """Class indices without the class dimension: () -> (1); (N) as it is; (N, d1, ...) -> (N, d1·…)."""
    if target.dim() == 0:
        return target.unsqueeze(0)
    return target.flatten(1) if target.dim() > 2 else target


def row_shape(input: Tensor) -> torch.Size:
    """The shape of the input without its class dimension."""
    return torch.Size(() if input.dim() == 1 else (*input.shape[:1], *input.shape[2:]))


def from_rows(losses: Tensor, input: Tensor) -> Tensor:
    """One loss a row, back to the shape of the input without its class dimension."""
    if input.dim() == 1:
        return losses.reshape(())
    return losses.unflatten(1, input.shape[2:]) if input.dim() > 3 else losses


def per_class(rows: Tensor) -> Tensor:
    """One number a row, or one for all rows, so that it broadcasts along the class dimension."""
    return rows if rows.dim() == 0 else rows.unsqueeze(1)
