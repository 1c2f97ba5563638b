"""DTensors and each process's own part of them, with derivatives of all orders.

`DTensor.to_local` gives a gradient that cannot be differentiated again: it wraps the local one outside of autograd.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Replicate, Shard

from torchlosses._options import RowStatistics


def mesh_of(name: str, group: dist.ProcessGroup | None, tensor: Tensor, along: int) -> tuple[Any, Any]:
    """The mesh of a DTensor that is split along its classes, and the group over which it is."""
    if not isinstance(tensor, DTensor):
        return None, group
    split = [dimension for dimension, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if len(split) != 1 or tensor.placements[split[0]] not in (Shard(along), Shard(along - tensor.dim())):
        raise ValueError(
            f"{name}: expected a DTensor with Shard({along}), the class dimension, along one dimension of its mesh and "
            f"Replicate() along the others, but got placements {tensor.placements}. Use .redistribute(...)."
        )
    if group is not None:
        raise ValueError(f"{name}: a DTensor has the group of its mesh; leave group out.")
    return tensor.device_mesh, tensor.device_mesh.get_group(split[0])


def local(tensor: Any) -> Any:
    """This process's part of a DTensor; everything else as it is."""
    return _ToLocal.apply(tensor) if isinstance(tensor, DTensor) else tensor


def replicated(result: Any, mesh: Any) -> Any:
    """The result in the form of the arguments: each process has all of it."""
    if mesh is None:
        return result
    if isinstance(result, Tensor):
        return _FromLocal.apply(result, (mesh, [Replicate()] * mesh.ndim, result.shape, result.stride()))
    loss, statistics = result
    return replicated(loss, mesh), RowStatistics(*(replicated(field, mesh) for field in statistics))


class _ToLocal(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        assert isinstance(tensor, DTensor)
        ctx.layout = tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()
        own = tensor.to_local()
        return own.view_as(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _FromLocal.apply(grad, ctx.layout)


class _FromLocal(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, layout: tuple[Any, ...]) -> Tensor:  # type: ignore[override]
        ctx.layout = mesh, placements, shape, stride = layout
        return DTensor.from_local(own, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mesh, placements, *_ = ctx.layout
        assert isinstance(grad, DTensor)
        if grad.placements != tuple(placements):
            grad = grad.redistribute(mesh, placements)
        return _ToLocal.apply(grad), None
