"""none, mean and sum, and what a mean divides by."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rows_in_mean(input: Tensor, target: Tensor, ignore_index: int) -> Tensor | int:
    """What a mean of (N, C) or (N, C, M) logits divides by: the rows that are not ignored."""
    if target.dim() < input.dim():
        return (target != ignore_index).sum()
    # Without classes there is no row either.
    return math.prod((input.shape[0], *input.shape[2:])) if input.shape[1] else 0


def reduce_rows(losses: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    """The losses themselves, their sum, or their sum over `count`, the number of losses that are not ignored."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / count


def reduce_samples(losses: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    """The same for each of the first dimension's entries, as torch.vmap needs it."""
    if reduction == "none":
        return losses
    total = losses.flatten(1).sum(1) if losses.dim() > 1 else losses
    return total if reduction == "sum" else total / count


def scale_gradient(grad_output: Tensor, reduction: str, count: Tensor | int) -> Tensor:
    """The gradient of the reduced loss with respect to one loss, as a number or one a loss.

    At least in float32: in float16, 1/n would keep few digits for a large n, and in the end none.
    """
    if reduction != "mean":
        return grad_output
    return grad_output.to(torch.promote_types(grad_output.dtype, torch.float32)) / count
