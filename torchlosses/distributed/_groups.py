"""Process groups: sizes, ranks and sums, and one process alone where torch.distributed is not in use."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def in_use(group: dist.ProcessGroup | None) -> bool:
    """Whether there is a group of processes to talk to."""
    return group is not None or (dist.is_available() and dist.is_initialized())


def size(group: dist.ProcessGroup | None) -> int:
    """The number of processes."""
    return dist.get_world_size(group) if in_use(group) else 1


def rank(group: dist.ProcessGroup | None) -> int:
    """The place of this process among them."""
    return dist.get_rank(group) if in_use(group) else 0


def sum_of(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the processes; in place, where there are several."""
    return _reduced(tensor, dist.ReduceOp.SUM, group)


def maximum_of(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The maximum over the processes; in place, where there are several."""
    return _reduced(tensor, dist.ReduceOp.MAX, group)


def minimum_of(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The minimum over the processes; in place, where there are several."""
    return _reduced(tensor, dist.ReduceOp.MIN, group)


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    if size(group) > 1:
        dist.all_reduce(tensor, operation, group)
    return tensor
