"""A function of many rows, worked through a block of rows at a time, with derivatives of all orders in every mode.

What is wanted: the memory of one block, whatever is derived. What PyTorch's automatic differentiation would keep for
the backward, a block's intermediates, is computed again instead; and the derivative of such a function is again such a
function. Let f map some rows and shared tensors to some rows and sums over rows. Then

- its gradient maps rows, the gradients of its row outputs, shared tensors and the gradients of its sums, to the
  gradients of the row inputs (rows) and of the shared inputs (sums over rows);
- its directional derivative maps rows, their tangents, shared tensors and their tangents, to tangents of its outputs;
- mapped over a batch (torch.vmap), its rows have one more dimension, behind that of the rows.

So one Function, whose backward, jvp and vmap call it on another f, is closed under all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from torchlosses._declare import front_of
from torchlosses._pytorch import forward_ad_rule, functions_apply, save, vjp
from torchlosses._rows import compute_dtype


class BlockFunction(NamedTuple):
    """A function of tensors, of which the first `row_inputs` and the first `row_outputs` have rows along dimension 0.

    Its other inputs are shared by all rows, its other outputs are sums over the rows. The last `auxiliary` outputs have
    no derivative.
    """

    call: Callable[..., tuple[Tensor, ...]]
    row_inputs: int
    row_outputs: int
    sum_outputs: int = 0
    auxiliary: int = 0


def over_row_blocks(function: BlockFunction, block_rows: int, *arguments: Tensor) -> tuple[Tensor, ...]:
    """The outputs of `function` for all rows: row outputs one behind the other, the others summed over the blocks."""
    if not functions_apply():
        # The same in plain operations, of which each has its own derivative there.
        return _RowBlocks.forward(function, block_rows, *arguments)
    return _RowBlocks.apply(function, block_rows, *arguments)


def over_given(
    of_block: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor | None],
    shared: set[int],
    block_rows: int,
    row_outputs: int,
    sum_outputs: int = 0,
    auxiliary: int = 0,
) -> tuple[Tensor, ...]:
    """`of_block(*tensors)` of some rows at a time; tensors that are None are so in each call.

    Those at the places `shared` have no rows.
    """
    given = [place for place, tensor in enumerate(tensors) if tensor is not None]
    with_rows = [place for place in given if place not in shared]
    places = with_rows + [place for place in given if place in shared]

    def call(*found: Tensor) -> tuple[Tensor, ...]:
        arguments: list[Any] = [None] * len(tensors)
        for place, tensor in zip(places, found, strict=True):
            arguments[place] = tensor
        return of_block(*arguments)

    function = BlockFunction(call, len(with_rows), row_outputs, sum_outputs, auxiliary)
    chosen: list[Any] = [tensors[place] for place in places]
    return over_row_blocks(function, block_rows, *chosen)


def _blocks(function: BlockFunction, block_rows: int, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rows, shared = arguments[: function.row_inputs], arguments[function.row_inputs :]
    count = rows[0].shape[0]
    row_outputs: list[list[Tensor]] = [[] for _ in range(function.row_outputs)]
    sums: list[Tensor] = []
    dtypes: list[torch.dtype] = []
    for start in range(0, max(1, count), block_rows):
        outputs = function.call(*(tensor[start : start + block_rows] for tensor in rows), *shared)
        for blocks, output in zip(row_outputs, outputs, strict=False):
            blocks.append(output)
        parts = outputs[function.row_outputs :]
        if not start:
            dtypes = [part.dtype for part in parts]
            sums = [part.to(compute_dtype(part)) for part in parts]
        else:
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
    joined = (blocks[0] if len(blocks) == 1 else torch.cat(blocks) for blocks in row_outputs)
    return *joined, *(total.to(dtype) for total, dtype in zip(sums, dtypes, strict=True))


class _RowBlocks(Function):
    @staticmethod
    def forward(function: BlockFunction, block_rows: int, *arguments: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return _blocks(function, block_rows, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, ctx.block_rows, *arguments = inputs
        ctx.set_materialize_grads(False)
        if ctx.function.auxiliary:
            ctx.mark_non_differentiable(*output[-ctx.function.auxiliary :])
        save(ctx, *arguments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        function, arguments = ctx.function, ctx.saved_tensors
        wanted = [place for place in range(len(arguments)) if ctx.needs_input_grad[2 + place]]
        given = {place: grad for place, grad in enumerate(grad_outputs) if grad is not None}
        found: dict[int, Tensor] = {}
        if wanted and given:
            gradient = _gradient(function, len(arguments), wanted, list(given))
            rows = sum(place < function.row_outputs for place in given)
            joined = _joined(arguments, function.row_inputs, tuple(given.values()), rows)
            found = dict(zip(wanted, over_row_blocks(gradient, ctx.block_rows, *joined), strict=True))
        return None, None, *(found.get(place) for place in range(len(arguments)))

    @staticmethod
    @forward_ad_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        function, given = ctx.function, {place: t for place, t in enumerate(tangents[2:]) if t is not None}
        rows = sum(place < function.row_inputs for place in given)
        joined = _joined(saved, function.row_inputs, tuple(given.values()), rows)
        derivative = _directional_derivative(function, len(saved), list(given))
        return *over_row_blocks(derivative, ctx.block_rows, *joined), *(None,) * function.auxiliary

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], function: BlockFunction, block_rows: int, *arguments: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # The dimension of the batch: behind that of the rows, or in front.
        places = tuple(
            None if dim is None else int(place < function.row_inputs) for place, dim in enumerate(in_dims[2:])
        )
        mapped = [
            tensor if place is None or dim is None else front_of(tensor, dim, info.batch_size).movedim(0, place)
            for tensor, dim, place in zip(arguments, in_dims[2:], places, strict=True)
        ]
        out_dims = (1,) * function.row_outputs + (0,) * function.sum_outputs

        def call(*arguments: Tensor) -> tuple[Tensor, ...]:
            return torch.vmap(function.call, places, out_dims)(*arguments)

        fewer_rows = max(1, block_rows // max(1, info.batch_size))
        return over_row_blocks(function._replace(call=call), fewer_rows, *mapped), out_dims


def _gradient(function: BlockFunction, count: int, wanted: Sequence[int], given: Sequence[int]) -> BlockFunction:
    """The gradients of the outputs `given` by the inputs `wanted`."""
    row_grads = sum(place < function.row_outputs for place in given)

    def call(*arguments: Tensor) -> tuple[Tensor, ...]:
        own, grads = _separate(arguments, function.row_inputs, row_grads, count)
        return vjp(_restricted(function, own, wanted, given), *(own[place] for place in wanted))[1](grads)

    row_outputs = sum(place < function.row_inputs for place in wanted)
    return BlockFunction(call, function.row_inputs + row_grads, row_outputs, len(wanted) - row_outputs)


def _directional_derivative(function: BlockFunction, count: int, given: Sequence[int]) -> BlockFunction:
    """The outputs' tangents for tangents of the inputs `given`.

    The gradient is linear in the gradients of the outputs, and its own gradient by those is the directional derivative.
    torch.func.jvp would do it in one step, but not where forward-mode AD is switched on around it.
    """
    row_tangents = sum(place < function.row_inputs for place in given)
    row_outputs = function.row_outputs - function.auxiliary

    def call(*arguments: Tensor) -> tuple[Tensor, ...]:
        own, tangents = _separate(arguments, function.row_inputs, row_tangents, count)
        restricted = _restricted(function, own, given, range(row_outputs + function.sum_outputs))
        values, pull_back = vjp(restricted, *(own[place] for place in given))
        zeros = tuple(torch.zeros_like(value) for value in values)
        found: Any = vjp(pull_back, zeros)[1](tangents)
        return found[0]

    return BlockFunction(call, function.row_inputs + row_tangents, row_outputs, function.sum_outputs)


def _restricted(
    function: BlockFunction, arguments: tuple[Tensor, ...], inputs: Sequence[int], outputs: Sequence[int]
) -> Callable[..., tuple[Tensor, ...]]:
    """Some outputs as a function of some inputs, the others held fixed."""

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        merged = list(arguments)
        for place, value in zip(inputs, values, strict=True):
            merged[place] = value
        results = function.call(*merged)
        return tuple(results[place] for place in outputs)

    return call


def _joined(own: tuple[Tensor, ...], row_inputs: int, others: tuple[Tensor, ...], row_others: int) -> Any:
    """The arguments of a derivative: the function's own and what it has beside them, those with rows first."""
    return *own[:row_inputs], *others[:row_others], *own[row_inputs:], *others[row_others:]


def _separate(
    arguments: tuple[Tensor, ...], row_inputs: int, row_others: int, count: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The function's own arguments, and what `_joined` has put beside them."""
    behind = row_inputs + row_others
    shared = behind + count - row_inputs
    own = arguments[:row_inputs] + arguments[behind:shared]
    return own, arguments[row_inputs:behind] + arguments[shared:]
