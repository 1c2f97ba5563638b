"""The operators of the linear losses: the logits exist for a block of rows at a time, and never all at once.

A block's logits are computed into a buffer, which the next block uses again. The operators of the loss of logits read
the losses from it and write the gradient over it, and what the gradient is multiplied with is added to the results:

    logits = x Wᵀ + b + r (x Aᵀ) Bᵀ    loss = of_logits(logits, target)            G = d loss / d logits
    d loss / dx = G W + r (G B) A       d loss / dW = Σ_blocks Gᵀ x                 d loss / db = Σ_rows G
    d loss / dA = r (G B)ᵀ x            d loss / dB = r Gᵀ (x Aᵀ)

Rows that leave no trace are dropped before the first product, where their number can be had without waiting for a
device, or that is asked for. Products are of `product_dtype`; what is summed over the blocks is summed in float32 at
least, on an accelerator only where there are more than `FEW_BLOCKS` of them, or that is asked for. In float16 the
gradients wait for the backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlosses import kernels
from torchlosses._rows import autocast_enabled, compute_dtype
from torchlosses.kernels.called import calling

# A block's logits on the CPU: large enough for the products to run at their full speed, small beside the gradients.
BLOCK_BYTES = 42 << 20
# Fewer rows than this cost the products more than the memory is worth; more rows gain nothing.
FEWEST_ROWS, MOST_ROWS = 128, 1024
# An accelerator's products want more rows: this many at least, and up to twice as many in a block of so many bytes.
ACCELERATOR_ROWS, ACCELERATOR_BLOCK_BYTES = 2048, 2 << 30
# Blocks whose sum loses little by being taken in the dtype of the weight.
FEW_BLOCKS = 8
# Columns of the weight's gradient that are computed at a time where they are then added in a wider dtype.
WIDENED_CLASSES = 4096
# Small gradients are multiplied in float16 as if the largest of them were about this power of two.
_LARGEST_EXPONENT = -6


def looking_is_free(tensor: Tensor) -> bool:
    """Whether to read a value of the tensor is to wait for nothing."""
    return tensor.device.type == "cpu"


def product_dtype(operand: Tensor) -> torch.dtype:
    """The dtype of its products: that of the operand or, where autocast is on, the one which that asks for."""
    if operand.dtype == torch.float64 or not autocast_enabled(operand.device):
        return operand.dtype
    return torch.get_autocast_dtype(operand.device.type)


def default_block_rows(classes: int, itemsize: int, device: str = "cpu", rows: int | None = None) -> int:
    """How many rows a block takes at most; on an accelerator that depends on how many there are, where it is given.

    There few rows save memory, as long as there are no more than `FEW_BLOCKS` blocks.
    """
    size = max(1, classes * itemsize)
    if device == "cpu":
        return max(FEWEST_ROWS, min(MOST_ROWS, BLOCK_BYTES // size // 8 * 8))
    most = max(ACCELERATOR_ROWS, min(2 * ACCELERATOR_ROWS, ACCELERATOR_BLOCK_BYTES // size // 8 * 8))
    if rows is None:
        return most
    # Without a comparison: the number may be a symbol.
    parts: Any = torch.sym_max(1, torch.sym_min(rows // ACCELERATOR_ROWS, FEW_BLOCKS))
    found: Any = torch.sym_min(torch.sym_max(-(-rows // parts), ACCELERATOR_ROWS), most)
    return found


def rows_at_a_time(count: int, block_rows: int, device: str = "cpu") -> int:
    """How many of `count` rows each block takes but the last one, which may have fewer.

    Blocks are of equal size, as a last one of a few rows would cost the products as much as a full one. On an
    accelerator that must not make all of them small.
    """
    parts = math.ceil(count / block_rows)
    if parts < 2:
        return max(1, count)
    fewest = ACCELERATOR_ROWS if device != "cpu" and block_rows >= ACCELERATOR_ROWS else 1
    return max(fewest, math.ceil(count / parts))


class _Block(NamedTuple):
    """Some rows: where they stand, their arguments, their logits or the gradient by these, and what was found."""

    rows: slice | Tensor
    x: Tensor
    others: list[Any]  # the target, and what else the loss of logits takes
    reduced: Any  # x Aᵀ
    logits: Tensor
    losses: Tensor
    state: Any


class Problem:
    """The arguments in the dtypes of the computation, without the rows that leave no trace."""

    def __init__(self, loss: Any, tensors: Sequence[Any], options: Any) -> None:
        input, product_dtype = tensors[0], options.product_dtype
        self.input, self.others = input, tensors[loss.derived :]
        operands = tensors[1 : loss.derived]
        cast: list[Any] = [None if tensor is None else tensor.to(product_dtype) for tensor in operands]
        self.linear_weight, self.linear_bias, self.a, self.b = cast
        self.options, self.product_dtype = options, product_dtype
        self.compute = compute_dtype(*tensors)
        self.loss, self.of_logits = loss, loss.of_logits
        self.inner = loss.inner(options)._replace(reduction="none", dtype=self.compute, gradients=0)
        self.active: Tensor | None = None
        # Of a tensor on the CPU a value is read for nothing.
        self.may_look = may_look = looking_is_free(input)
        if may_look:
            loss.check(*tensors, options)
        if may_look or options.drop_ignored:
            without = loss.without_trace(*self.others, options)
            if without is not None and (not may_look or bool(without.any())):
                self.active = without.logical_not().nonzero().squeeze(1)

    def blocks(self, grad_rows: Tensor | None) -> Iterator[_Block]:
        """All rows, worked on; where there is a gradient by their losses, with the one by the logits in their place."""
        count = self.input.shape[0] if self.active is None else self.active.shape[0]
        classes = self.linear_weight.shape[0]
        size = rows_at_a_time(count, self.options.block_rows, self.input.device.type)
        widely = math.ceil(count / size) > FEW_BLOCKS or self.may_look or self.options.wide_sums
        self.widens = self.product_dtype != self.compute and widely
        buffer = self.input.new_empty((size, classes), dtype=self.product_dtype)
        for start in range(0, count, size):
            stop = min(count, start + size)
            rows = slice(start, stop) if self.active is None else self.active[start:stop]
            x = self.input[rows].to(self.product_dtype)
            names = self.of_logits.tensors[1:]
            others = [
                tensor if tensor is None or name.rstrip("?") in self.of_logits.shared else tensor[rows]
                for name, tensor in zip(names, self.others, strict=True)
            ]
            logits, reduced = self._logits(x, buffer[: stop - start])
            losses, state = self.work(logits, others, None if grad_rows is None else grad_rows[rows])
            yield _Block(rows, x, others, reduced, logits, losses, state)

    def _logits(self, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        product(x, self.linear_weight, self.linear_bias, out)
        if self.a is None:
            return out, None
        reduced = x @ self.a.t()
        return out.addmm_(reduced, self.b.t(), alpha=self.options.low_rank_scale), reduced

    def work(self, logits: Tensor, others: Sequence[Any], grad_rows: Tensor | None) -> tuple[Tensor, Any]:
        """What the rows of these logits have, and their state; the gradient for `grad_rows` is written over them."""
        with calling(self.loss.name):
            over = None if grad_rows is None else kernels._forward_over(self.of_logits, logits.device)
            if over is not None:
                return over(grad_rows, logits, *others, self.inner)
            losses, _, state = self.of_logits.operator(logits, *others, None, *self.inner)
            if grad_rows is not None:
                self.of_logits.backward_operator_(grad_rows, logits, logits, *others, None, state, *self.inner)
        return losses, state


def product(x: Tensor, linear_weight: Any, linear_bias: Tensor | None, out: Tensor) -> Tensor:
    """x Wᵀ + b, in the memory of `out`."""
    if linear_bias is None:
        return torch.mm(x, linear_weight.t(), out=out)
    return torch.addmm(linear_bias, x, linear_weight.t(), out=out)


class _Gradients:
    """The gradients by the operands of the product, summed over the blocks; an empty tensor where one is not wanted.

    They are those of the blocks times 2 to the power of `exponent`, if there is one.
    """

    def __init__(self, problem: Problem, tensors: Sequence[Any], wanted: int, exponent: Tensor | None = None) -> None:
        self._problem, self._tensors, self._exponent = problem, tensors[:5], exponent
        input = problem.input
        self._wanted = [bool(wanted >> place & 1) for place in range(5)]
        # Rows that were dropped are never written.
        new = torch.empty_like if problem.active is None else torch.zeros_like
        # Where a sum over processes follows, it is not rounded before.
        self._by_input = new(input, dtype=problem.compute if problem.loss.split else None) if self._wanted[0] else None
        self._sums: list[Tensor | None] = [None] * 5

    def add(self, block: _Block) -> None:
        problem, wanted = self._problem, self._wanted
        x, gradient = block.x, block.logits
        if problem.active is None and (wanted[1] or wanted[3]):
            x = self._visible(block, x)
        if self._by_input is not None:
            self._put_input(block, gradient)
        if wanted[1]:
            self._add_product(1, gradient.t(), x)
        if wanted[2]:
            self._add(2, gradient.sum(0, dtype=problem.compute))
        if wanted[3] or wanted[4]:
            scale = problem.options.low_rank_scale
            if wanted[3]:
                self._add(3, ((gradient @ problem.b).t() @ x).to(problem.compute).mul_(scale))
            if wanted[4]:
                self._add(4, (gradient.t() @ self._visible(block, block.reduced)).to(problem.compute).mul_(scale))

    def _visible(self, block: _Block, x: Tensor) -> Tensor:
        """Where rows that leave no trace could not be dropped: 0 · nan is not 0."""
        problem = self._problem
        if problem.may_look or problem.active is not None:
            return x
        inert = problem.loss.without_trace(*block.others, problem.options)
        return x if inert is None else x.masked_fill(inert.unsqueeze(1), 0)

    def finished(self) -> tuple[Tensor, ...]:
        problem, results = self._problem, []
        for place, tensor in enumerate(self._tensors):
            found = self._sums[place] if place else self._by_input
            if self._wanted[place] and found is None:
                found = torch.zeros_like(tensor)
            if found is not None and place in (0, 3):
                found = problem.loss.summed(found, problem.options)
            if found is not None and self._exponent is not None:
                found = found.to(torch.promote_types(found.dtype, tensor.dtype)).ldexp_(self._exponent)
            results.append(None if found is None else found.to(tensor.dtype))
        return tuple(self._problem.input.new_empty(0) if found is None else found for found in results)

    def _put_input(self, block: _Block, gradient: Tensor) -> None:
        problem, out = self._problem, self._by_input
        assert out is not None
        whole = isinstance(block.rows, slice) and out.dtype == gradient.dtype
        found = torch.mm(gradient, problem.linear_weight, out=out[block.rows] if whole else None)
        if problem.a is not None:
            found.addmm_(gradient @ problem.b, problem.a, alpha=problem.options.low_rank_scale)
        if not whole:
            out[block.rows] = found.to(out.dtype)

    def _add(self, place: int, part: Tensor) -> None:
        total = self._sums[place]
        self._sums[place] = part if total is None else total.add_(part)

    def _add_product(self, place: int, gradient: Tensor, x: Tensor) -> None:
        problem, total = self._problem, self._sums[place]
        if not problem.widens:
            self._sums[place] = torch.mm(gradient, x) if total is None else total.addmm_(gradient, x)
            return
        first = total is None
        if total is None:
            total = torch.empty((gradient.shape[0], x.shape[1]), dtype=problem.compute, device=x.device)
            self._sums[place] = total
        for start in range(0, total.shape[0], WIDENED_CLASSES):
            some = slice(start, start + WIDENED_CLASSES)
            part = gradient[some] @ x
            total[some].copy_(part) if first else total[some].add_(part)


@torch.no_grad()
def forward(loss: Any, tensors: Sequence[Any], options: Any) -> tuple[Tensor, ...]:
    """The losses one by one or reduced, with the gradients that are to come along, and what is shown of the rows."""
    *own, _ = tensors
    problem = loss.problem(loss, own, options)
    input = own[0]
    losses = input.new_zeros(loss.results(input), dtype=problem.compute)
    state = input.new_zeros((loss.state_fields(options), input.shape[0]), dtype=problem.compute)
    gradients = _Gradients(problem, own, options.gradients)
    grad_rows = None
    if options.gradients:
        one = torch.ones((), dtype=torch.float64, device=input.device)
        grad_rows = loss.grad_of_rows(one, tensors, options).expand(losses.shape)
    for block in problem.blocks(grad_rows):
        losses[block.rows] = block.losses
        if state.shape[0]:
            state[:, block.rows] = block.state[-state.shape[0] :]
        if options.gradients:
            gradients.add(block)
    found = losses if options.reduction == "none" else losses.sum()
    return loss.reduced(found, tensors, options), *gradients.finished(), state


@torch.no_grad()
def backward(loss: Any, grad_output: Tensor, tensors: Sequence[Any], options: Any, *_: Tensor) -> tuple[Tensor, ...]:
    """The gradients for `grad_output`, from logits that are computed again."""
    *own, _ = tensors
    problem = loss.problem(loss, own, loss.of_gradient(options))
    # Multiplied at the end, as gradients that came along with the loss are: to the same bits. None did in float16.
    at_the_end = options.reduction != "none" and not is_narrow(options)
    incoming = torch.ones((), dtype=torch.float64, device=own[0].device) if at_the_end else grad_output
    grad_rows = loss.grad_of_rows(incoming, tensors, options).expand(loss.results(own[0]))
    exponent = None
    if is_narrow(options) and grad_rows.numel():
        exponent = _common_exponent(grad_rows)
        grad_rows = torch.ldexp(grad_rows, -exponent)
    gradients = _Gradients(problem, own, options.gradients, exponent)
    for block in problem.blocks(grad_rows):
        gradients.add(block)
    found = gradients.finished()
    return tuple(part.mul_(grad_output) for part in found) if at_the_end else found


def is_narrow(options: Any) -> bool:
    """Whether the products are of float16, in which a small incoming gradient makes gradients of nothing.

    Those that come along with the loss would not have the factor by which `torch.amp.GradScaler` keeps them large.
    """
    return options.product_dtype == torch.float16


def _common_exponent(grad_rows: Tensor) -> Tensor:
    """A power of two that small gradients have in common; without it their sums are far from the largest float16."""
    largest = grad_rows.abs().amax().nan_to_num(1, 1, 1)
    return (torch.frexp(largest).exponent - _LARGEST_EXPONENT).clamp(-100, 0)
