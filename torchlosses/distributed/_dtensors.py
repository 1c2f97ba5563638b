"""Losses of DTensors, by way of each process's own part of them.

A DTensor stands for one tensor of which each process of a mesh has a part. A loss of DTensors is that of the tensors
they stand for. `torchlosses._declare` passes every call that has one on to `apply`, which

- chooses for each dimension of the mesh what is split along it: rows, the classes of a cross-entropy, or nothing;
- redistributes what lies in another way, as PyTorch's own operators do; a plain tensor is the same in each process;
- computes the loss of the process's own rows, by its class-parallel form where classes are split;
- adds up over the processes that have other rows, and gives the loss to all of them (`Replicate`); losses one by one
  stay where their rows are.

`_groups` says how a derivative passes between what all processes have and what one has: so all orders follow.
`DTensor.to_local` gives a gradient that cannot be differentiated again: it wraps the local one outside of autograd.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Replicate, Shard

from torchlosses import _validation
from torchlosses._rows import compute_dtype
from torchlosses.cross_entropy import CrossEntropy
from torchlosses.distributed import _agreement, _groups
from torchlosses.distributed._split import SplitCrossEntropy, SplitLinearCrossEntropy
from torchlosses.linear_cross_entropy import LinearCrossEntropy, LinearLoss

_SPLIT: dict[Any, Any] = {CrossEntropy: SplitCrossEntropy, LinearCrossEntropy: SplitLinearCrossEntropy}
# What stands along the dimensions of the tensors of rows: samples n, classes c, further places m, features f, and
# what a teacher is known by k.
_CLASSES, _ROWS = "c", "nm"
_OF_LINEAR = {
    "input": "nf", "linear_weight": "cf", "linear_bias": "c", "low_rank_a": "rf", "low_rank_b": "cr", "target": "nc",
    "weight": "w", "sample_weight": "n", "teacher": "nk", "teacher_weight": "ck", "teacher_bias": "c",
    "teacher_indices": "nk",
}  # fmt: skip


def any_of(*tensors: Any) -> bool:
    """Whether there is a DTensor among them."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def check_split(function: str, group: dist.ProcessGroup | None, tensor: Any, name: str, along: int) -> None:
    """A DTensor whose classes are split."""
    placements = tensor.placements if isinstance(tensor, DTensor) else None
    if placements is None or not any(p in (Shard(along), Shard(along - tensor.dim())) for p in placements):
        found = "a plain tensor" if placements is None else f"placements {placements}"
        raise ValueError(
            f"{function}: expected a DTensor with Shard({along}), the class dimension, along a dimension of its mesh "
            f"for {name}, as other arguments are DTensors, but got {found}. Use .redistribute(...), or the loss that "
            "is not class-parallel; or give plain tensors all through, each process its own part."
        )
    if group is not None:
        raise ValueError(f"{function}: a DTensor has the group of its mesh; leave group out.")


def apply(
    loss: Any, tensors: Sequence[Tensor | None], normalizer: Tensor | float | None, options: Any
) -> tuple[Tensor, Tensor | None]:
    """The loss, and the rows' state, as DTensors."""
    mesh = _mesh_of(loss.name, (*tensors, normalizer))
    labels = _labels_of(loss, tensors)
    splits = _splits_of(loss, mesh, tensors, labels)
    own = [
        None if tensor is None else _own(tensor, mesh, _placements(splits, along))
        for tensor, along in zip(tensors, labels, strict=True)
    ]
    if isinstance(normalizer, Tensor):
        normalizer = _own(normalizer, mesh, _placements(splits, ""))
    if "inplace_backward" in options._fields:
        # The memory of a process's own part is not this function's to write to.
        options = options._replace(inplace_backward=False)
    split = [label for label, _ in splits]
    of_rows = [(dimension, label) for dimension, label in enumerate(split) if label not in (None, _CLASSES)]
    groups = {_groups.name_of(mesh.get_group(dimension)): label for dimension, label in of_rows}
    if _CLASSES in split:
        loss, options = _class_parallel(loss, own, normalizer, options, mesh.get_group(split.index(_CLASSES)))
    _check_values(loss, own, options, groups)
    # What processes with other rows have as well gets a part of its gradient from each.
    for group, label in groups.items():
        own = [
            tensor if tensor is None or label in along else _groups.entering(tensor, group)
            for tensor, along in zip(own, labels, strict=True)
        ]
    if options.reduction == "mean":
        if normalizer is None:
            of_all: Tensor = loss.divisor((*own, loss.denominator(*own, options)), options)
            for group in groups:
                of_all = _groups.summed(of_all, group)
            normalizer = of_all
        if isinstance(normalizer, Tensor):
            for group in groups:
                normalizer = _groups.entering(normalizer, group)
    dtype = options.dtype
    if groups and options.reduction != "none":
        options = options._replace(dtype=compute_dtype(*own))
    result, state = loss.apply(*own, normalizer=normalizer, options=options)
    rows = "".join(label for label in labels[0] if loss.elementwise or label in _ROWS)
    shape = loss.rows(tensors[0])
    if options.reduction == "none":
        results = loss.results(tensors[0])
        # Several numbers of a row stand where its classes were.
        along = rows if len(results) == len(shape) else f"{rows[0]}v{rows[1:]}"
        result = _wrapped(result, mesh, _placements(splits, along), results)
    else:
        for group in groups:
            result = _groups.summed(result, group)
        result = _wrapped(result.to(dtype), mesh, _placements(splits, ""), ())
    if state is not None:
        state = _wrapped(state, mesh, _placements(splits, "s" + rows), (state.shape[0], *shape))
    return result, state


def alike(function: str, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The plain ones among them as DTensors, the same in each process, for an operation of PyTorch on all of them."""
    mesh = _mesh_of(function, tensors)
    everywhere = (Replicate(),) * mesh.ndim
    return tuple(
        tensor if tensor is None or isinstance(tensor, DTensor) else _wrapped(tensor, mesh, everywhere, tensor.shape)
        for tensor in tensors
    )


def flattenable(tensor: Any, dimensions: int) -> Tensor:
    """Split so that PyTorch can make the first dimensions one: evenly along these, or not."""
    if dimensions < 2:
        return tensor
    parts, placements = [1] * dimensions, list(tensor.placements)
    for place, placement in enumerate(placements):
        split = getattr(placement, "dim", dimensions)
        if split < dimensions:
            parts[split] *= tensor.device_mesh.size(place)
            if type(placement) is not Shard or tensor.shape[split] % parts[split]:
                placements[place] = Replicate()
    return tensor.redistribute(placements=placements)


def _mesh_of(function: str, tensors: Sequence[Any]) -> Any:
    meshes = [tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)]
    if any(mesh != meshes[0] for mesh in meshes):
        raise ValueError(
            f"{function}: expected DTensors of one mesh, but got {meshes[0]} and "
            f"{next(mesh for mesh in meshes if mesh != meshes[0])}. Distribute them over the same one."
        )
    return meshes[0]


def _labels_of(loss: Any, tensors: Sequence[Tensor | None]) -> list[str]:
    """What stands along each tensor's dimensions, a letter each."""
    input = tensors[0]
    assert input is not None
    if loss.elementwise:
        return [string.ascii_uppercase[: input.dim()]] * len(tensors)
    if issubclass(loss, LinearLoss):
        of_linear = [_OF_LINEAR[name.rstrip("?")] for name in loss.tensors]
        return [along[: 2 if t is None else t.dim()] for t, along in zip(tensors, of_linear, strict=True)]

    def along(name: str, tensor: Tensor | None) -> str:
        if tensor is None or name == "weight?":
            return "w"
        return ("ncm" if tensor.dim() == input.dim() else "nm")[: tensor.dim()]

    return [along(name, tensor) for name, tensor in zip(loss.tensors, tensors, strict=True)]


def _splits_of(loss: Any, mesh: Any, tensors: Sequence[Any], labels: Sequence[str]) -> list[tuple[str | None, Any]]:
    """What is split along each dimension of the mesh, and a placement that does it."""
    splits: list[tuple[str | None, Any]] = []
    # The classes are where the logits or the layer's weight have them.
    holder = 1 if issubclass(loss, LinearLoss) else 0
    for dimension in range(mesh.ndim):
        found: dict[str, Any] = {}
        for place, (tensor, along) in enumerate(zip(tensors, labels, strict=True)):
            placement = tensor.placements[dimension] if isinstance(tensor, DTensor) else Replicate()
            split = getattr(placement, "dim", None)
            if split is None:
                continue
            label = along[split]
            is_row = loss.elementwise or label in _ROWS
            is_class = label == _CLASSES and place == holder and loss in _SPLIT and type(placement) is Shard
            if (is_row or is_class) and label not in found:
                found[label] = placement
        taken = any(label == _CLASSES for label, _ in splits)
        if _CLASSES in found and not loss.elementwise:
            classes = found.pop(_CLASSES)
            if not taken:
                found = {_CLASSES: classes}
        splits.append(next(iter(found.items()), (None, None)))
    return splits


def _placements(splits: Sequence[tuple[str | None, Any]], along: str) -> tuple[Any, ...]:
    """How a tensor with these dimensions lies on the mesh."""
    placements = []
    for label, placement in splits:
        if label is None or label not in along:
            placements.append(Replicate())
        elif type(placement) is Shard:
            placements.append(Shard(along.index(label)))
        else:
            # Rows of several dimensions made one, of which another than the first is split.
            placements.append(type(placement)(along.index(label), split_factor=placement.split_factor))
    return tuple(placements)


def _own(tensor: Tensor, mesh: Any, placements: tuple[Any, ...]) -> Tensor:
    """The process's own part of a tensor that is made to lie like this."""
    whole = tensor
    if not isinstance(whole, DTensor):
        whole = _wrapped(tensor, mesh, (Replicate(),) * mesh.ndim, tensor.shape)
    if tuple(whole.placements) != placements:
        whole = whole.redistribute(mesh, placements)
    return _ToLocal.apply(whole)


def _wrapped(own: Tensor, mesh: Any, placements: tuple[Any, ...], shape: Sequence[int]) -> Any:
    stride = torch.empty(tuple(shape), device="meta").stride()
    return _FromLocal.apply(own, (mesh, placements, tuple(shape), stride))


@torch.no_grad()
def _check_values(loss: Any, own: Sequence[Tensor | None], options: Any, groups: dict[str, str]) -> None:
    """What is wrong in the rows of one process raises in all that would wait for it."""
    if own[0] is None or own[0].device.type != "cpu" or not groups:
        return
    error: Exception | None = None
    try:
        if loss in _SPLIT.values():
            _validation.check_indices_in_range(own[loss.tensors.index("target")], options.total, options.ignore_index)
        loss.check(*own, options)
    except (IndexError, ValueError) as caught:
        error = caught
    wrong = torch.tensor([error is not None], dtype=torch.int64)
    for group in groups:
        wrong = _groups.maximum(wrong, group)
    if error is not None:
        raise error
    if wrong.item():
        raise RuntimeError(f"{loss.name}: the rows of another process are wrong; the error there says how.")


def _class_parallel(
    loss: Any, own: Sequence[Tensor | None], normalizer: Any, options: Any, group: dist.ProcessGroup
) -> tuple[Any, Any]:
    """The loss of classes that are split over a group, and its options."""
    split = _SPLIT[loss]
    named = dict(zip((name.rstrip("?") for name in loss.tensors), own, strict=True))
    holder, target = own[1 if loss is LinearCrossEntropy else 0], named["target"]
    assert holder is not None
    assert target is not None
    parts = {"linear_weight", "linear_bias", "low_rank_b"} if loss is LinearCrossEntropy else {"input"}
    if target.is_floating_point():
        parts.add("target")
    agreed = _agreement.agree(
        loss.name,
        group,
        holder.device,
        holder.shape[0 if loss is LinearCrossEntropy else 1],
        target,
        split={name: tensor for name, tensor in named.items() if name in parts},
        replicated={**{name: t for name, t in named.items() if name not in parts}, "normalizer": normalizer},
        same=options._asdict(),
    )
    inner = len(CrossEntropy.options._fields)
    return split, split.options(*options[:inner], *agreed.of_operator(), *options[inner:])


class _ToLocal(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        assert isinstance(tensor, DTensor)
        ctx.layout = tensor.device_mesh, tensor.placements, tuple(tensor.shape), tensor.stride()
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
        if tuple(grad.placements) != tuple(placements):
            grad = grad.redistribute(mesh, placements)
        return _ToLocal.apply(grad), None
