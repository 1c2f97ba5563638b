"""Losses of jagged tensors: batches whose samples differ in one size, their values in one tensor.

A loss is a sum over rows, whichever sample they belong to. So it is the loss of the values, and what has a value a row
is put together as a jagged tensor again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._pytorch import ragged_dimension

_OF_CLASSES = ("cross_entropy", "cee_loss")
# What has one number for each class, sample or loss: it is not ragged.
_SHARED = {
    "cross_entropy": ("weight", "normalizer"),
    "cee_loss": ("normalizer",),
    "binary_cross_entropy_with_logits": ("weight", "pos_weight", "normalizer"),
}


def any_nested(tensors: tuple[Any, ...]) -> bool:
    """Whether one of them is a nested tensor; other subclasses are not asked, who may answer as they like."""
    return any(
        type(tensor).__name__ == "NestedTensor" or (type(tensor) in (Tensor, nn.Parameter) and tensor.is_nested)
        for tensor in tensors
    )


def over_values(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """The loss of jagged tensors; with 'none', and for statistics, jagged tensors of its rows.

    Raises:
        NotImplementedError: The layout is not jagged, or the loss takes none.
        RuntimeError: The tensors differ in the sizes of their samples, or one that must be jagged is not.
    """
    name = function.__name__
    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
    for key, tensor in tensors.items():
        if tensor.is_nested:
            _validation.check_jagged(name, key, tensor)
    input: Any = tensors["input"]
    shared = _SHARED.get(name, ("normalizer",))
    if not input.is_nested:
        nested = next(key for key, tensor in tensors.items() if tensor.is_nested)
        raise RuntimeError(f"{name}: {nested} is a nested tensor, but input is not: give both alike.")
    ragged = ragged_dimension(input)
    dimension = arguments.get("dim", 1) % input.dim() if name in _OF_CLASSES else None
    if dimension in (0, ragged):
        raise RuntimeError(
            f"{name}: the classes are dimension {dimension} of input, along which the samples of shape "
            f"{tuple(input.shape)} differ or lie: use input.transpose(...) so that dimension 1 holds the classes"
            f"{', or dim=' if 'dim' in arguments else ''}."
        )
    dense = dict(arguments)
    for key, tensor in tensors.items():
        if not tensor.is_nested:
            if key not in shared or (dimension is None and tensor.dim() >= input.dim() - ragged):
                raise RuntimeError(
                    f"{name}: input is a nested tensor, but {key} is a plain one of shape {tuple(tensor.shape)}: make "
                    "it jagged with torch.nested.nested_tensor_from_jagged(..., input.offsets())."
                )
            continue
        if tensor.size(ragged_dimension(tensor)) != input.size(ragged):
            raise RuntimeError(
                f"{name}: the samples of input and {key} differ in size, {tuple(input.shape)} and "
                f"{tuple(tensor.shape)}: two jagged tensors are alike where they share their offsets, as with "
                "torch.nested.nested_tensor_from_jagged(..., input.offsets())."
            )
        values = _values(tensor)
        if dimension is not None and tensor.dim() == input.dim():
            # Without the dimension of the samples, and the classes second.
            values = values.movedim(dimension - 1, 1)
        dense[key] = values
    if "dim" in dense:
        dense["dim"] = 1
    place = ragged if dimension is None or dimension > ragged else ragged - 1
    lengths = input.lengths()
    offsets = input.offsets() if lengths is None else F.pad(lengths.cumsum(0), (1, 0))
    result = function(**dense)

    def ragged_again(rows: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(rows, offsets, jagged_dim=place)

    if not arguments.get("return_stats"):
        return ragged_again(result) if arguments["reduction"] == "none" else result
    loss, statistics = result
    loss = ragged_again(loss) if arguments["reduction"] == "none" else loss
    return loss, type(statistics)(*map(ragged_again, statistics))


def _values(tensor: Any) -> Tensor:
    """The samples one behind the other; without what lies between them, as torch.nested.narrow leaves it."""
    if tensor.lengths() is None:
        return tensor.values()
    return torch.cat(tensor.unbind(), ragged_dimension(tensor) - 1)
