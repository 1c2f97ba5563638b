"""The operators of the linear cross-entropy: the logits exist for a block of rows at a time, and never all at once.

A block's logits are computed into a buffer, which the next block uses again. The cross-entropy's own operators read the
losses from it and write the gradient over it, and what the gradient is multiplied with is added to the results:

    logits = x Wᵀ + b        loss = cross_entropy(logits, target)        G = d loss / d logits
    d loss / dx = G W        d loss / dW = Σ_blocks Gᵀ x                 d loss / db = Σ_rows G

Rows that leave no trace are dropped before the first product. Products are of `product_dtype`; what is summed over the
blocks is summed in float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlosses import _options
from torchlosses._numerics import compute_dtype
from torchlosses.kernels import (
    cross_entropy_backward_,
    cross_entropy_extended_backward_,
    cross_entropy_extended_forward,
    cross_entropy_forward,
    without_autocast,
    without_derivative,
)
from torchlosses.kernels.targets import class_indices, effective_target, without_weight

_ARGUMENTS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, Tensor? sample_weight"
)
_OPTIONS = (
    "int ignore_index, float label_smoothing, float z_loss, float? logit_softcap, ScalarType product_dtype, "
    "SymInt block_rows"
)
_SCHEMAS = {
    # `wanted`: the gradients of the sum by input, linear_weight and linear_bias, and the losses without sample_weight.
    "linear_cross_entropy_forward": (
        f"({_ARGUMENTS}, str reduction, {_OPTIONS}, bool[] wanted, bool statistics) -> (Tensor loss, "
        "Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias, Tensor losses, Tensor statistics)"
    ),
    # `wanted`: the gradients by each of the tensors.
    "linear_cross_entropy_backward": (
        f"(Tensor grad_output, {_ARGUMENTS}, {_OPTIONS}, bool[] wanted) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    # The gradients of a sum, times that of what was made of the sum; the arguments in front have no part in it.
    "linear_cross_entropy_scale": (
        "(Tensor grad_output, Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor? sample_weight, "
        "Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias, Tensor losses) -> "
        "(Tensor, Tensor, Tensor, Tensor)"
    ),
}

# A block's logits: large enough for the products to run at their full speed, small beside the gradients.
BLOCK_BYTES = 42 << 20
# Fewer rows than this cost the products more than the memory is worth; more rows gain nothing.
FEWEST_ROWS, MOST_ROWS = 128, 1024
# Columns of the weight's gradient that are computed at a time where they are then added in a wider dtype.
_WIDENED_CLASSES = 4096


def default_block_rows(classes: int, itemsize: int, logit_softcap: float | None = None) -> int:
    """How many rows a block takes: a multiple of 8. A caller that caps them beside the logits gives its soft cap."""
    buffers = 1 if logit_softcap is None else 2
    rows = BLOCK_BYTES // max(1, classes * itemsize * buffers)
    return max(FEWEST_ROWS, min(MOST_ROWS, rows // 8 * 8))


class _Tensors(NamedTuple):
    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None

    def has_indices(self) -> bool:
        return self.target.dim() < self.input.dim()

    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return compute_dtype(self.input, self.linear_weight, None if self.has_indices() else self.target, self.weight)


class _Options(NamedTuple):
    ignore_index: int
    label_smoothing: float
    z_loss: float
    logit_softcap: float | None
    product_dtype: torch.dtype
    block_rows: int


class _Block(NamedTuple):
    """Some rows: where they stand, their arguments, their logits before the soft cap, and what the forward found."""

    rows: slice | Tensor
    x: Tensor
    target: Tensor
    sample_weight: Tensor | None
    logits: Tensor
    losses: Tensor
    maximum: Tensor
    rest: Tensor
    statistics: Tensor  # nothing where they are not asked for


class _Problem:
    """The arguments in the dtypes of the computation, without the rows that leave no trace."""

    def __init__(
        self,
        tensors: _Tensors,
        options: _Options,
        keep_weightless: bool,
        keep_classes_without_weight: bool,
        statistics: bool,
    ) -> None:
        input, linear_weight, linear_bias, target, weight, sample_weight = tensors
        self.options, self.statistics, self.keep_weightless = options, statistics, keep_weightless
        self.indices = tensors.has_indices()
        self.compute = tensors.dtype()
        self.input = input
        self.linear_weight = linear_weight.to(options.product_dtype)
        self.linear_bias = None if linear_bias is None else linear_bias.to(options.product_dtype)
        self.weight = None if weight is None else weight.to(self.compute)
        self.sample_weight = None if sample_weight is None else sample_weight.to(self.compute)
        self.has_extras = bool(options.z_loss) or options.logit_softcap is not None
        self.target = target
        inactive = None
        if self.indices:
            self.target, inactive = class_indices(target, linear_weight.shape[0], options.ignore_index)
            if not keep_classes_without_weight:
                inactive = without_weight(inactive, self.target, self.weight, options.label_smoothing)
        if self.sample_weight is not None:
            weightless = self.sample_weight == 0
            if keep_weightless:
                weightless &= input.isfinite().all(1).logical_not()
            inactive = weightless if inactive is None else inactive | weightless
        self.active: Tensor | None = None
        if inactive is not None and bool(inactive.any()):
            self.active = inactive.logical_not().nonzero().squeeze(1)

    def blocks(self) -> Iterator[_Block]:
        count = self.input.shape[0] if self.active is None else self.active.shape[0]
        # Blocks of equal size: a last one of a few rows would cost the products as much as a full one.
        parts = max(1, math.ceil(count / self.options.block_rows))
        classes, size = self.linear_weight.shape[0], max(1, math.ceil(count / parts))
        buffer = self.input.new_empty((size, classes), dtype=self.options.product_dtype)
        for start in range(0, count, size):
            stop = min(count, start + size)
            rows = slice(start, stop) if self.active is None else self.active[start:stop]
            x = self.input[rows].to(self.options.product_dtype)
            target = self.target[rows]
            logits = self._logits(x, buffer[: stop - start])
            losses, *found = self._losses(logits, target)
            sample_weight = None if self.sample_weight is None else self.sample_weight[rows]
            if sample_weight is not None and self.keep_weightless:
                # The derivative by a weight of 0 is the loss, if there is one.
                losses = losses.masked_fill((sample_weight == 0) & losses.isnan(), 0)
            yield _Block(rows, x, target, sample_weight, logits, losses, *found)

    def _logits(self, x: Tensor, out: Tensor) -> Tensor:
        if self.linear_bias is None:
            return torch.mm(x, self.linear_weight.t(), out=out)
        return torch.addmm(self.linear_bias, x, self.linear_weight.t(), out=out)

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, maximum and rest of each row, and its statistics where they are asked for."""
        ignore_index, label_smoothing, z_loss, logit_softcap, *_ = self.options
        options = ("none", ignore_index, label_smoothing)
        if not self.has_extras and not self.statistics:
            return *cross_entropy_forward(logits, target, self.weight, *options, self.compute), logits.new_empty(0)
        # The weight of a row is a factor of its gradient, which the backward takes; its own derivative is the loss.
        extras = (z_loss, logit_softcap, self.statistics, self.compute)
        return cross_entropy_extended_forward(logits, target, self.weight, None, *options, *extras)

    def write_gradient(self, block: _Block, grad_rows: Tensor) -> Tensor:
        """g d loss / d logits of each row, written over the block's logits."""
        ignore_index, label_smoothing, z_loss, logit_softcap, *_ = self.options
        front, stats = (grad_rows, block.logits, block.target, self.weight), (block.maximum, block.rest)
        if self.has_extras:
            extras = (z_loss, logit_softcap)
            cross_entropy_extended_backward_(*front, None, *stats, ignore_index, label_smoothing, *extras)
        else:
            cross_entropy_backward_(*front, *stats, "none", ignore_index, label_smoothing)
        return self.without_weightless(block, block.logits)

    def without_weightless(self, block: _Block, of_block: Tensor) -> Tensor:
        """The same with rows of 0 where the weight is 0, since 0 · nan is not."""
        if block.sample_weight is None or not self.keep_weightless:
            return of_block
        return of_block.index_fill_(0, (block.sample_weight == 0).nonzero().squeeze(1), 0)

    def costs(self, block: _Block) -> Tensor:
        """-log p of each class."""
        y, cap = block.logits.to(self.compute), self.options.logit_softcap
        if cap is not None:
            y = (y / cap).tanh_().mul_(cap)
        return block.rest.log1p().unsqueeze(1) - (y - block.maximum.unsqueeze(1))

    def smoothed(self, target: Tensor) -> Tensor:
        """(1-ε) t + ε/C, the share of each class before its weight."""
        if self.indices:
            one_hot = torch.zeros(
                target.shape[0], self.linear_weight.shape[0], dtype=self.compute, device=target.device
            )
            target = one_hot.scatter_(1, target.unsqueeze(1), 1)
        return effective_target(target.to(self.compute), None, self.options.label_smoothing)


class _Gradients:
    """The gradients by the operands of the product, summed over the blocks; an empty tensor where one is not wanted."""

    def __init__(self, problem: _Problem, wanted: Sequence[bool]) -> None:
        input, weight, bias, compute = problem.input, problem.linear_weight, problem.linear_bias, problem.compute
        self._linear_weight = weight
        self.wanted = wanted
        # An operator must not return one tensor twice.
        self.input, self.linear_weight, self.linear_bias = (input.new_empty(0) for _ in range(3))
        if wanted[0]:
            # Rows that were dropped are never written.
            self.input = torch.empty_like(input) if problem.active is None else torch.zeros_like(input)
        if wanted[1]:
            self.linear_weight = torch.empty(weight.shape, dtype=compute, device=weight.device)
        if wanted[2]:
            assert bias is not None
            self.linear_bias = torch.zeros(bias.shape, dtype=compute, device=bias.device)
        self._is_first = True

    def add(self, block: _Block, gradient: Tensor) -> None:
        if self.wanted[0]:
            self._put_input(block.rows, gradient)
        if self.wanted[1]:
            self._add_linear_weight(gradient.t(), block.x)
        if self.wanted[2]:
            self.linear_bias += gradient.sum(0, dtype=self.linear_bias.dtype)
        self._is_first = False

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._is_first:
            self.linear_weight.zero_()
        return self.input, self.linear_weight, self.linear_bias

    def _put_input(self, rows: slice | Tensor, gradient: Tensor) -> None:
        if isinstance(rows, Tensor):
            self.input.index_copy_(0, rows, (gradient @ self._linear_weight).to(self.input.dtype))
        elif self.input.dtype == gradient.dtype:
            torch.mm(gradient, self._linear_weight, out=self.input[rows])
        else:
            self.input[rows] = gradient @ self._linear_weight

    def _add_linear_weight(self, gradient: Tensor, x: Tensor) -> None:
        total = self.linear_weight
        if total.dtype == gradient.dtype:
            torch.mm(gradient, x, out=total) if self._is_first else total.addmm_(gradient, x)
            return
        for start in range(0, total.shape[0], _WIDENED_CLASSES):
            some = slice(start, start + _WIDENED_CLASSES)
            part = gradient[some] @ x
            total[some].copy_(part) if self._is_first else total[some].add_(part)


def linear_cross_entropy_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Losses one by one or summed, with the gradients of the sum and the rows' statistics as far as they are wanted."""
    tensors, (reduction, *options, wanted, statistics) = _Tensors(*arguments[:6]), arguments[6:]
    problem = _Problem(tensors, _Options(*options), wanted[3], False, statistics)
    input, rows = tensors.input, tensors.input.shape[0]
    losses = input.new_zeros(rows, dtype=problem.compute)
    found = input.new_zeros((len(_options.RowStatistics._fields), rows if statistics else 0), dtype=problem.compute)
    gradients = _Gradients(problem, wanted)
    one = losses.new_ones(())
    for block in problem.blocks():
        losses[block.rows] = block.losses
        if statistics:
            found[:, block.rows] = problem.without_weightless(block, block.statistics.t()).t()
        if any(wanted[:3]):
            grad_rows = one.expand_as(block.losses) if block.sample_weight is None else block.sample_weight
            gradients.add(block, problem.write_gradient(block, grad_rows))
    unweighted = losses if wanted[3] else losses.new_empty(0)
    loss = losses
    if problem.sample_weight is not None:
        loss = (losses * problem.sample_weight).masked_fill(problem.sample_weight == 0, 0)
    loss = loss.sum() if reduction == "sum" else loss
    return loss, *gradients.finished(), unweighted, found


def linear_cross_entropy_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of losses whose own gradients are given one by one; an empty tensor where one is not wanted."""
    tensors, (*options, wanted) = _Tensors(*arguments[:6]), arguments[6:]
    problem = _Problem(tensors, _Options(*options), wanted[5], wanted[4], False)
    gradients = _Gradients(problem, wanted)
    input, linear_weight = tensors.input, tensors.linear_weight
    grad_target = torch.zeros_like(tensors.target) if wanted[3] else input.new_empty(0)
    grad_weight, grad_sample_weight = (
        input.new_zeros(size if want else 0, dtype=problem.compute)
        for size, want in ((linear_weight.shape[0], wanted[4]), (input.shape[0], wanted[5]))
    )
    smoothing = problem.options.label_smoothing
    for block in problem.blocks():
        grad_losses = grad_output[block.rows].to(problem.compute)
        grad_rows = grad_losses if block.sample_weight is None else grad_losses * block.sample_weight
        if wanted[5]:
            grad_sample_weight[block.rows] = grad_losses * block.losses
        if wanted[3] or wanted[4]:
            costs = problem.without_weightless(block, problem.costs(block).mul_(grad_rows.unsqueeze(1)))
            if wanted[3]:
                grad_target[block.rows] = (
                    costs * ((1 - smoothing) * (1 if problem.weight is None else problem.weight))
                ).to(grad_target.dtype)
            if wanted[4]:
                share = problem.smoothed(block.target)
                # A class without a share counts for nothing, also where its cost is infinite.
                grad_weight += costs.masked_fill_(share == 0, 0).mul_(share).sum(0)
        if any(wanted[:3]):
            gradients.add(block, problem.write_gradient(block, grad_rows))
    grad_input, grad_linear_weight, grad_linear_bias = gradients.finished()
    return grad_input, grad_linear_weight, grad_linear_bias, grad_target, grad_weight, grad_sample_weight


def linear_cross_entropy_scale(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of the sum, times a number, each in its argument's dtype."""
    gradients = arguments[4:]
    dtypes = _dtypes(gradients[0], *arguments[:4])
    return tuple((gradient * grad_output).to(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True))


def _dtypes(like: Tensor, *arguments: Tensor | None) -> list[torch.dtype]:
    return [(like if argument is None else argument).dtype for argument in arguments]


def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    tensors, (reduction, *_, wanted, statistics) = _Tensors(*arguments[:6]), arguments[6:]
    input, linear_weight, compute, rows = tensors.input, tensors.linear_weight, tensors.dtype(), tensors.input.shape[0]
    return (
        input.new_empty(() if reduction == "sum" else rows, dtype=compute),
        torch.empty_like(input) if wanted[0] else input.new_empty(0),
        input.new_empty(linear_weight.shape, dtype=compute) if wanted[1] else input.new_empty(0),
        input.new_empty(linear_weight.shape[0], dtype=compute) if wanted[2] else input.new_empty(0),
        input.new_empty(rows if wanted[3] else 0, dtype=compute),
        input.new_empty((len(_options.RowStatistics._fields), rows if statistics else 0), dtype=compute),
    )


def _fake_backward(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, wanted = _Tensors(*arguments[:6]), arguments[-1]
    input, linear_weight, compute = tensors.input, tensors.linear_weight, tensors.dtype()
    classes = linear_weight.shape[0]
    return (
        torch.empty_like(input) if wanted[0] else input.new_empty(0),
        input.new_empty(linear_weight.shape, dtype=compute) if wanted[1] else input.new_empty(0),
        input.new_empty(classes, dtype=compute) if wanted[2] else input.new_empty(0),
        torch.empty_like(tensors.target) if wanted[3] else input.new_empty(0),
        input.new_empty(classes if wanted[4] else 0, dtype=compute),
        input.new_empty(input.shape[0] if wanted[5] else 0, dtype=compute),
    )


def _fake_scale(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    gradients = arguments[4:]
    dtypes = _dtypes(gradients[0], *arguments[:4])
    return tuple(torch.empty_like(gradient, dtype=dtype) for gradient, dtype in zip(gradients, dtypes, strict=True))


_library = torch.library.Library("torchlosses", "FRAGMENT")
_IMPLEMENTATIONS = {
    "linear_cross_entropy_forward": (linear_cross_entropy_forward, _fake_forward),
    "linear_cross_entropy_backward": (linear_cross_entropy_backward, _fake_backward),
    "linear_cross_entropy_scale": (linear_cross_entropy_scale, _fake_scale),
}
for _name, (_operator, _fake) in _IMPLEMENTATIONS.items():
    _library.define(_name + _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, without_autocast(_operator), "CompositeExplicitAutograd")
    if _operator is not linear_cross_entropy_forward:
        _library.impl(_name, without_derivative(_name), "Autograd")
    torch.library.register_fake(f"torchlosses::{_name}", _fake, lib=_library)

forward = torch.ops.torchlosses.linear_cross_entropy_forward.default
backward = torch.ops.torchlosses.linear_cross_entropy_backward.default
scale = torch.ops.torchlosses.linear_cross_entropy_scale.default


def register_derivative(call: Callable[..., tuple[Tensor, ...]]) -> None:
    """What runs in front of the forward operator where it is differentiated; the loss's file has the derivative."""
    _library.impl("linear_cross_entropy_forward", call, "Autograd")
