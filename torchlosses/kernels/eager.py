"""The operators in plain PyTorch, as the losses write them: every device, every floating-point dtype, no compiler.

On the CPU a tensor is worked through in blocks that stay in cache: a block is read from memory once, its intermediates
never leave the cache, and no temporary of the input's size is allocated. On other devices one block is the whole
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchlosses._rows import compute_dtype

# Elements of a block: 2 MiB of float32, large enough to hide the cost of calling an operation.
BLOCK = 1 << 19


@torch.no_grad()
def forward(loss: Any, tensors: Sequence[Any], options: Any) -> tuple[Tensor, ...]:
    """The reduced loss or one a row, the gradients that are to come along with it, and the rows' state."""
    *own, _ = tensors
    input = tensors[0]
    assert input is not None
    for name, tensor in zip(loss.tensors, own, strict=True):
        if tensor is not None:
            check_dense(loss.name, name.rstrip("?"), tensor)
    on_cpu, compute = input.device.type == "cpu", compute_dtype(*own)
    gradients = [torch.empty_like(own[i]) if options.gradients >> i & 1 else None for i in range(loss.derived)]
    grad_rows = None
    if options.gradients:
        one = torch.ones((), dtype=torch.float64 if on_cpu else compute, device=input.device)
        grad_rows = loss.grad_of_rows(one, tensors, options).expand(loss.results(input))
    losses = _like_rows(loss, input, options.dtype) if options.reduction == "none" else None
    state = None
    if loss.keeps:
        state = input.new_zeros([loss.state_fields(options), *loss.rows(input)], dtype=compute)
    # The blocks' sums meet in double precision.
    total = torch.zeros((), dtype=torch.float64 if on_cpu else compute, device=input.device)
    if not input.numel():
        loss.check(*own, options)
    for some, (g, out, kept, gradient) in _blocks(loss, own, (grad_rows, losses, state, gradients[0])):
        try:
            loss.check(*some, options)
        except (IndexError, ValueError):
            # Of the whole, it can say where.
            loss.check(*own, options)
            raise
        of_block, found = loss.losses_of(some, options)
        if out is not None:
            out.copy_(of_block)
        else:
            total += of_block.sum(dtype=total.dtype)
        if kept is not None:
            kept.copy_(found)
        if gradient is not None:
            gradient.copy_(loss.backward(g, *some, options))
    if losses is None:
        losses = loss.reduced(total, tensors, options)
    given = [input.new_empty(0) if gradient is None else gradient for gradient in gradients]
    return (losses, *given) if state is None else (losses, *given, state)


def check_dense(function: str, name: str, tensor: Tensor) -> None:
    """Sparse tensors, which every other backend passes on to here, are refused."""
    if tensor.layout is not torch.strided and tensor.layout is not torch.jagged:
        raise NotImplementedError(
            f"{function}: {name} has the layout {tensor.layout}, for which the loss is not implemented: call "
            ".to_dense()."
        )


@torch.no_grad()
def backward(loss: Any, grad_output: Tensor, tensors: Sequence[Any], options: Any, *_: Tensor) -> Tensor:
    """The gradient by the first tensor."""
    gradient = torch.empty_like(tensors[0])
    _write(loss, grad_output, gradient, tensors, options)
    return gradient


@torch.no_grad()
def backward_(
    loss: Any, grad_output: Tensor, gradient: Tensor, tensors: Sequence[Tensor | None], options: Any, *_: Tensor
) -> None:
    """The same, written to `gradient`, which holds that for an incoming gradient of 1 or is the input itself."""
    on_cpu = grad_output.device.type == "cpu"
    if not (options.gradients and on_cpu and grad_output.item() == 1):
        _write(loss, grad_output, gradient, tensors, options)


def _write(loss: Any, grad_output: Tensor, out: Tensor, tensors: Sequence[Tensor | None], options: Any) -> None:
    *own, _ = tensors
    if grad_output.device.type == "cpu":
        grad_output = grad_output.double()
    grad_rows = loss.grad_of_rows(grad_output, tensors, options).expand(loss.results(tensors[0]))
    for some, (g, _, _, part) in _blocks(loss, own, (grad_rows, None, None, out)):
        part.copy_(loss.backward(g, *some, options))


def _like_rows(loss: Any, input: Tensor, dtype: torch.dtype) -> Tensor:
    if loss.elementwise:
        return torch.empty_like(input, dtype=dtype)
    # Without classes nothing is written to them.
    return input.new_zeros(loss.results(input), dtype=dtype)


def _blocks(
    loss: Any, tensors: Sequence[Tensor | None], others: Sequence[Tensor | None]
) -> Iterator[tuple[list[Tensor | None], list[Any]]]:
    """Views of some rows of the tensors and of `others` at a time; what the rows share is in each block."""
    input, count = tensors[0], len(tensors)
    assert input is not None
    if not input.numel():
        return
    if input.numel() <= BLOCK or input.device.type != "cpu":
        yield list(tensors), list(others)
        return
    own = [None if loss.tensors[place].rstrip("?") in loss.shared else t for place, t in enumerate(tensors)]
    split = _element_blocks if loss.elementwise else _row_blocks
    for some in split([*own, *others], input):
        block = [t if own[place] is None else some[place] for place, t in enumerate(tensors)]
        yield block, list(some[count:])


def _element_blocks(tensors: list[Tensor | None], first: Tensor) -> Iterator[list[Tensor | None]]:
    if all(tensor is None or tensor.is_contiguous() for tensor in tensors):
        tensors = [None if tensor is None else tensor.view(-1) for tensor in tensors]
    yield from _split(tensors)


def _split(tensors: list[Tensor | None]) -> Iterator[list[Tensor | None]]:
    first = tensors[0]
    assert first is not None
    if first.numel() <= BLOCK:
        yield tensors
        return
    dimension = next(d for d, size in enumerate(first.shape) if size > 1)
    length = first.shape[dimension]
    step = max(1, BLOCK * length // first.numel())
    for start in range(0, length, step):
        stop = min(step, length - start)
        yield from _split([None if t is None else t.narrow(dimension, start, stop) for t in tensors])


def _row_blocks(tensors: list[Tensor | None], input: Tensor) -> Iterator[list[Tensor | None]]:
    """Of (N, C) or (N, C, M) tensors, of those without the class dimension, and of the state, (fields, N) or so."""
    samples = max(1, BLOCK // max(1, input[0].numel()))
    # Where the samples stand: behind the fields of the state.
    state = len(tensors) - 2
    for start in range(0, input.shape[0], samples):
        stop = min(samples, input.shape[0] - start)
        some = [None if t is None else t.narrow(int(i == state), start, stop) for i, t in enumerate(tensors)]
        if input.dim() == 2 or stop * input[0].numel() <= BLOCK:
            yield some
            continue
        positions = max(1, BLOCK // input.shape[1])
        for first in range(0, input.shape[2], positions):
            last = min(positions, input.shape[2] - first)
            yield [None if tensor is None else tensor.narrow(-1, first, last) for tensor in some]
