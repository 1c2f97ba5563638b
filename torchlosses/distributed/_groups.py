"""Process groups: sizes, ranks and sums, and one process alone where torch.distributed is not in use.

How a derivative goes through them. A tensor is either *replicated*, the same in each process, and so is its gradient,
which counts all that the processes make of it; or it is a process's own, and so is its gradient. Two operations lead
from one kind to the other, and each is the other's derivative:

    replicated -> own     `entering`   the tensor itself;               its gradient is the sum over the processes
    own -> replicated     `summed`     the sum over the processes;      its gradient is the sum's gradient itself

What is made of these two and of operations within one kind has derivatives of all orders. A scalar of a process's own
that it calls backward on counts as one summand, a replicated one counts once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from torchlosses._transforms import forward_ad_rule


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


def entering(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """A replicated tensor, for use with what is the process's own."""
    return _Entering.apply(tensor, group) if size(group) > 1 else tensor


def summed(own: Tensor, group: dist.ProcessGroup | None, known: Tensor | None = None) -> Tensor:
    """The sum over the processes, differentiable; where it is `known`, nothing is sent."""
    return _Summed.apply(own, known, group)


class _Entering(Function):
    @staticmethod
    def forward(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:  # type: ignore[override]
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return summed(grad, ctx.group), None

    @staticmethod
    @forward_ad_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], tangent: Tensor, _: None) -> Tensor:
        return entering(tangent, ctx.group).view_as(tangent)


class _Summed(Function):
    @staticmethod
    def forward(own: Tensor, known: Tensor | None, group: dist.ProcessGroup | None) -> Tensor:  # type: ignore[override]
        return sum_of(own.clone(memory_format=torch.contiguous_format), group) if known is None else known.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return entering(grad, ctx.group), None, None
