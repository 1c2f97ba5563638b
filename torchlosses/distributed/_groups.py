"""Process groups: sizes, ranks and sums, and one process alone where torch.distributed is not in use.

How a derivative goes through them. A tensor is either *replicated*, the same in each process, and so is its gradient,
which counts all that the processes make of it; or it is a process's own, and so is its gradient. Two operations lead
from one kind to the other, and each is the other's derivative:

    replicated -> own     `entering`   the tensor itself;               its gradient is the sum over the processes
    own -> replicated     `summed`     the sum over the processes;      its gradient is the sum's gradient itself

What is made of these two and of operations within one kind has derivatives of all orders. A scalar of a process's own
that it calls backward on counts as one summand, a replicated one counts once.

They are operators, so that a derivative passes wherever it is taken. An operator is told of a group by its name.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from torchlosses._declare import define_linear
from torchlosses._pytorch import recording

_named: WeakValueDictionary[str, dist.ProcessGroup] = WeakValueDictionary()
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def name_of(group: dist.ProcessGroup | None) -> str:
    """By which the operators know a group; nothing stands for all processes."""
    if group is None:
        return ""
    _named[group.group_name] = group
    return group.group_name


def in_use(group: dist.ProcessGroup | None) -> bool:
    """Whether there is a group of processes to talk to."""
    return group is not None or (dist.is_available() and dist.is_initialized())


def size(group: dist.ProcessGroup | None) -> int:
    """The number of processes."""
    return dist.get_world_size(group) if in_use(group) else 1


def rank(group: dist.ProcessGroup | None) -> int:
    """The place of this process among them."""
    return dist.get_rank(group) if in_use(group) else 0


def check_member(function: str, group: dist.ProcessGroup | None) -> None:
    """That this process is one of the group, so that the others do not wait for it or it for them."""
    if rank(group) < 0 or (group is not None and not isinstance(group, dist.ProcessGroup)):
        raise ValueError(
            f"{function}: this process (rank {dist.get_rank()} of all) is none of the group: only those that "
            "torch.distributed.new_group was given may call it with that group."
        )


def reduced(tensor: Tensor, operation: str, group: dist.ProcessGroup | None) -> Tensor:
    """The sum, maximum or minimum over the processes, without a derivative; `tensor` itself where there is one."""
    if size(group) < 2:
        return tensor
    # Sums go by memory, and strides may differ between processes.
    result = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, _OPERATIONS[operation], group)
    return result


def entering(tensor: Tensor, group: str) -> Tensor:
    """A replicated tensor, for use with what is the process's own."""
    return _enter(tensor, group) if recording() and tensor.is_floating_point() and _several(group) else tensor


def summed(own: Tensor, group: str) -> Tensor:
    """The sum over the processes."""
    return _reduce(own, "sum", group) if _several(group) else own


def maximum(own: Tensor, group: str) -> Tensor:
    """The maximum over the processes, without a derivative."""
    return _extreme(own.detach(), "max", group) if _several(group) else own.detach()


def minimum(own: Tensor, group: str) -> Tensor:
    """The minimum over the processes, without a derivative."""
    return _extreme(own.detach(), "min", group) if _several(group) else own.detach()


def _found(group: str) -> dist.ProcessGroup | None:
    return _named[group] if group else None


def _several(group: str) -> bool:
    return size(_found(group)) > 1


def _all_reduce(own: Tensor, operation: str, group: str) -> Tensor:
    return reduced(own, operation, _found(group))


_enter = define_linear(
    "enter_processes",
    "(Tensor replicated, str group) -> Tensor",
    lambda replicated, group: replicated.clone(),
    lambda grad, group: summed(grad, group),
)
_reduce = define_linear(
    "sum_over_processes",
    "(Tensor own, str operation, str group) -> Tensor",
    _all_reduce,
    lambda grad, operation, group: _enter(grad, group),
)
_extreme = define_linear(
    "extreme_over_processes", "(Tensor own, str operation, str group) -> Tensor", _all_reduce, None
)
