r"""Cross-entropy over classes that are split over processes.

Each process has all rows and some of the classes. What a row's loss needs of the other processes is a few numbers:

    m    = max_j x_j                  the maximum of the processes' maxima
    rest = Σ_j exp(x_j - m) - 1       a sum over the processes; the one that has the maximum leaves its own 1 out
    d    = Σ_c a_c (x_c - m)          a sum over the processes, a_c the target's share of class c
    A    = Σ_c a_c                    known from the class index, or a sum over the processes

    loss = A log1p(rest) - d,         gradient by x_c = A p_c - a_c,   p_c = exp(x_c - m) / (1 + rest)

The gradient by a process's logits needs nothing more from the others. That by the input of a linear layer, whose
weights are split, is a sum over the processes. So all that is sent is a few numbers a row (and with a linear layer one
row of features), whatever the number of classes. The gradient by the class weights is a sum of one number a class.

Derivatives of the gradient need p·v and a·v of each row, v being each process's part of the gradient's own gradient: a
few numbers a row more. `_groups` says how a derivative passes between what all processes have and what one has; with it
all orders follow. So a penalty on a process's part of the gradient is a summand of the whole penalty, and each
process calls backward on its own; a penalty on the gradient by what all processes have is the same in all, and counts
once. All processes must ask for the same derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function, forward_ad

from torchlosses import _validation
from torchlosses._numerics import compute_dtype
from torchlosses._options import (
    Change,
    RowStatistics,
    class_indices_denominator,
    drawn,
    mean_of,
    rows_denominator,
    soft_cap,
)
from torchlosses._row_blocks import BlockFunction, gradient_over_row_blocks, over_row_blocks
from torchlosses._transforms import autocast_enabled, result_dtype
from torchlosses.distributed import _dtensors, _groups
from torchlosses.kernels import linear


class _Classes(NamedTuple):
    """Which classes this process has: `own` of `total`, from `first` on; and the most that any process has."""

    group: dist.ProcessGroup | None
    rank: int
    first: int
    own: int
    total: int
    most: int


class _Settings(NamedTuple):
    classes: _Classes
    ignore_index: int
    label_smoothing: float
    z_loss: float
    logit_softcap: float | None
    compute: torch.dtype
    statistics: bool
    frozen_in_some: bool  # a tensor that is split requires grad in some of the processes only


class _Exchanged(NamedTuple):
    """What is known of each row after the processes have talked: the same in all of them."""

    maximum: Tensor
    rest: Tensor
    total: Tensor  # A = Σ_c a_c
    others: Tensor  # A - a, at the target of class indices or at the maximum; summed, not subtracted
    losses: Tensor
    statistics: Tensor  # (fields of RowStatistics, rows), or (0, rows)


class _Known(NamedTuple):
    """What the derivatives need to know of each row: see `_Exchanged`."""

    maximum: Tensor
    rest: Tensor
    total: Tensor
    others: Tensor
    hidden: Tensor  # rows without a share or a weight whose logits are nan or infinite; they leave no trace

    def of(self, rows: slice) -> _Known:
        return _Known(*(field[rows] for field in self))


class _Shares:
    """The target's share a of this process's classes, for (rows, classes) logits."""

    def __init__(self, target: Tensor, weight: Tensor | None, settings: _Settings) -> None:
        classes, smoothing = settings.classes, settings.label_smoothing
        self.target, self.settings, self.indices = target, settings, target.dim() == 1
        self.weight = None
        if weight is not None:
            self.weight = weight[classes.first : classes.first + classes.own].to(settings.compute)
        if not self.indices:
            share = (1 - smoothing) * target.to(settings.compute) + smoothing / classes.total
            self.share = share if self.weight is None else share * self.weight
            return
        self.ignored = target == settings.ignore_index
        inside = (target >= classes.first) & (target < classes.first + classes.own) & ~self.ignored
        self.rows = inside.nonzero().squeeze(1)
        self.places = target[self.rows] - classes.first
        of_target = torch.ones_like(target, dtype=settings.compute)
        of_all: Tensor | float = classes.total
        if weight is not None:
            wide = weight.to(settings.compute)
            of_target, of_all = wide[target.masked_fill(self.ignored, 0)], wide.sum()
        self.hard = ((1 - smoothing) * of_target).masked_fill(self.ignored, 0)
        self.smooth = torch.full_like(self.hard, smoothing / classes.total).masked_fill(self.ignored, 0)
        self.others = self.smooth * of_all
        self.total = self.hard + self.others

    def dot(self, shifted: Tensor) -> Tensor:
        """Σ_c a_c (x_c - m) over this process's classes; a class without a share counts for nothing."""
        if not self.indices:
            return (self.share * shifted).masked_fill(self.share == 0, 0).sum(1)
        result = torch.zeros_like(self.hard)
        hard = self.hard[self.rows]
        result[self.rows] = (hard * shifted[self.rows, self.places]).masked_fill(hard == 0, 0)
        if self.settings.label_smoothing:
            weighted = shifted if self.weight is None else (shifted * self.weight).masked_fill(self.weight == 0, 0)
            result += (self.smooth * weighted.sum(1)).masked_fill(self.ignored, 0)
        return result

    def smoothed(self, shape: torch.Size) -> Tensor:
        """(1-ε) t + ε/C of each of this process's classes, where there is no weight."""
        if not self.indices:
            return self.share
        smooth = self.smooth.unsqueeze(1).expand(shape)
        return smooth.index_put((self.rows, self.places), self.hard[self.rows], accumulate=True)

    def gradient(self, shifted: Tensor, rest: Tensor, total: Tensor, others: Tensor) -> Tensor:
        """A p - a for each of this process's classes."""
        sums = (1 + rest).unsqueeze(1)
        gradient = shifted.exp().mul_(total.unsqueeze(1) / sums)
        if not self.indices:
            gradient -= self.share
            # At a class that has more than half, (A - a) - A (1 - p) keeps the digits that A p - a loses.
            at_most_probable = (others - total * rest / (1 + rest)).unsqueeze(1)
            return torch.where((shifted == 0) & (rest < 1).unsqueeze(1), at_most_probable, gradient)
        hard, own = self.hard[self.rows], shifted[self.rows, self.places]
        e, one_plus_rest = own.exp(), 1 + rest[self.rows]
        # p_t - 1 = -Σ_{j≠t} p_j, likewise.
        other_classes = torch.where(own == 0, rest[self.rows], 1 + (rest[self.rows] - e))
        at_target = others[self.rows] * (e / one_plus_rest) - hard * (other_classes / one_plus_rest)
        gradient[self.rows, self.places] = at_target
        if self.settings.label_smoothing:
            smooth = self.smooth.unsqueeze(1)
            gradient -= smooth if self.weight is None else smooth * self.weight
        return gradient


def _capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)


def _exchange(logits: Tensor, shares: _Shares, settings: _Settings) -> _Exchanged:
    """The rows' losses and statistics, of capped (rows, classes) logits in the dtype of the computation."""
    classes, rows = settings.classes, logits.shape[0]
    if classes.own:
        own_maximum, largest = logits.max(1)
    else:
        own_maximum, largest = logits.new_full((rows,), -math.inf), None
    maximum = _groups.maximum_of(own_maximum.clone(), classes.group)
    mine = own_maximum == maximum
    first = torch.where(mine, classes.rank, _groups.size(classes.group))
    mine &= _groups.minimum_of(first, classes.group) == classes.rank
    shifted = logits - maximum.unsqueeze(1)
    exponentials = shifted.exp()
    kept = exponentials.clone() if settings.statistics else None
    if largest is not None:
        # The process that has the maximum leaves its 1 out, so that log1p keeps the digits of a small rest.
        exponentials[mine, largest[mine]] = 0
    sums = [exponentials.sum(1), shares.dot(shifted)]
    if not shares.indices:
        others, at_maximum = shares.share, torch.zeros_like(sums[0])
        if largest is not None:
            at_maximum[mine] = others[mine, largest[mine]]
            others = others.clone()
            others[mine, largest[mine]] = 0
        sums += [others.sum(1), at_maximum]
    if kept is not None:
        sums += _statistics_sums(shifted, kept, largest, mine, shares, settings)
    # A row in which some logit is nan or +inf is nan in each process that has such a logit, and so in the sum.
    rest, dot, *further = _groups.sum_of(torch.stack(sums), classes.group).unbind()
    others = shares.others if shares.indices else further.pop(0)
    total = shares.total if shares.indices else others + further.pop(0)
    log_rest = rest.log1p()
    losses = total * log_rest - dot
    if settings.z_loss:
        losses = losses + settings.z_loss * (maximum + log_rest).square().masked_fill(total == 0, 0)
    if shares.indices:
        losses = losses.masked_fill(shares.ignored, 0)
    statistics = losses.new_empty((0, rows))
    if settings.statistics:
        statistics = _statistics(maximum, rest, further, shares, settings)
    return _Exchanged(maximum, rest, total, others, losses, statistics)


def _statistics_sums(
    shifted: Tensor,
    exponentials: Tensor,
    largest: Tensor | None,
    mine: Tensor,
    shares: _Shares,
    settings: _Settings,
) -> list[Tensor]:
    """This process's parts of Σ e_c (x_c - m), the place of the maximum, Σ t_c (x_c - m) and Σ t_c."""
    first, target = settings.classes.first, shares.target
    weighted = (exponentials * shifted).masked_fill(exponentials == 0, 0).sum(1)
    place = torch.zeros_like(weighted)
    if largest is not None:
        place = torch.where(mine, (largest + first).to(weighted.dtype), place)
    if shares.indices:
        at_target = torch.zeros_like(weighted)
        at_target[shares.rows] = shifted[shares.rows, shares.places]
        return [weighted, place, at_target, torch.zeros_like(weighted)]
    wide = target.to(weighted.dtype)
    return [weighted, place, (wide * shifted).masked_fill(wide == 0, 0).sum(1), wide.sum(1)]


def _statistics(maximum: Tensor, rest: Tensor, sums: list[Tensor], shares: _Shares, settings: _Settings) -> Tensor:
    weighted, place, at_target, shares_of_target = sums
    log_rest = rest.log1p()
    if shares.indices:
        target, log_probability = shares.target, at_target - log_rest
    else:
        target, log_probability = (
            _largest_share(shares.target, settings.classes),
            at_target - shares_of_target * log_rest,
        )
    # Which of nan or infinite logits is the largest says nothing.
    correct = ((place == target) & rest.isfinite()).to(place.dtype)
    return torch.stack([maximum + log_rest, log_probability, correct, log_rest - weighted / (1 + rest)])


def _largest_share(target: Tensor, classes: _Classes) -> Tensor:
    """The class that has the largest share of each row, over all processes."""
    if classes.own:
        own, place = target.max(1)
        place = place + classes.first
    else:
        own = target.new_full(target.shape[:1], -math.inf)
        place = torch.zeros_like(own, dtype=torch.int64)
    largest = _groups.maximum_of(own.clone(), classes.group)
    return _groups.minimum_of(torch.where(own == largest, place, classes.total), classes.group)


def _logits_gradient(
    logits: Tensor, shares: _Shares, known: _Known, grad_losses: Tensor, settings: _Settings
) -> Tensor:
    """g (B p - a) dy/dx for each of this process's classes, in the dtype of the computation."""
    maximum, rest, total, others, hidden = known
    shifted = _capped(logits, settings.logit_softcap) - maximum.unsqueeze(1)
    gradient = shares.gradient(shifted, rest, total, others)
    if settings.z_loss:
        factor = (2 * settings.z_loss * (maximum + rest.log1p()) / (1 + rest)).masked_fill(total == 0, 0)
        gradient += shifted.exp().mul_(factor.unsqueeze(1))
    gradient *= grad_losses.to(settings.compute).unsqueeze(1)
    if settings.logit_softcap is not None:
        # 1 - tanh² = 4 e / (1 + e)², e = exp(-2 |x / c|), which keeps its digits where tanh is close to 1.
        e = (logits / settings.logit_softcap).abs_().mul_(-2).exp_()
        gradient *= e.mul(4).div_(e.add_(1).square_())
    return gradient.masked_fill_((hidden | (total == 0)).unsqueeze(1), 0)


class _Rows(NamedTuple):
    """The quantities of the derivation for this process's classes, differentiable.

    Those of one number a row are replicated, the others the process's own.
    """

    negative_log_probability: Tensor
    probability: Tensor
    smoothed: Tensor  # (1-ε) t + ε/C
    share: Tensor  # a = w ((1-ε) t + ε/C)
    total: Tensor  # A = Σ a
    d_share_d_target: Tensor | float  # w (1-ε)
    excluded: Tensor  # (rows, 1): rows that leave no trace in any derivative
    drawing: Change | None  # of λ l² by l
    capping: Change | None  # of y by x


def _rows_of(logits: Tensor, target: Tensor, own_weight: Tensor | None, known: _Known, settings: _Settings) -> _Rows:
    group, compute = settings.classes.group, settings.compute
    shares = _Shares(target, None, settings)
    smoothed = shares.smoothed(logits.shape)
    hidden = known.hidden.unsqueeze(1)
    x = logits.to(compute).masked_fill(hidden, 0)
    capping = None
    if settings.logit_softcap is not None:
        x, capping = soft_cap(x, settings.logit_softcap)
    maximum = known.maximum.masked_fill(known.hidden, 0)
    shifted = x - maximum.unsqueeze(1)
    # Their values are known, so that nothing is sent; their derivatives are those of the sums.
    rest = _groups.summed(shifted.exp().sum(1), group, known.rest.masked_fill(known.hidden, 0))
    share = smoothed if own_weight is None else smoothed * own_weight.to(compute)
    total = _groups.summed(share.sum(1), group, known.total)
    log_rest = rest.log1p()
    negative_log_probability = _groups.entering(log_rest, group).unsqueeze(1) - shifted
    drawing = drawn(maximum + log_rest, known.total, settings.z_loss) if settings.z_loss else None
    weight_of_class: Tensor | float = 1.0 if own_weight is None else own_weight.to(compute)
    return _Rows(
        negative_log_probability=negative_log_probability,
        probability=torch.exp(-negative_log_probability),
        smoothed=smoothed,
        share=share,
        total=total,
        d_share_d_target=weight_of_class * (1 - settings.label_smoothing),
        excluded=hidden | shares.ignored.unsqueeze(1) if shares.indices else hidden,
        drawing=drawing,
        capping=capping,
    )


class _Logits(Function):
    """The losses of logits whose classes are split, and what the backward needs; statistics if asked for.

    `own_weight` is the part of `weight` for this process's classes, the one of the two that has a derivative.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        logits: Tensor,
        target: Tensor,
        own_weight: Tensor | None,
        weight: Tensor | None,
        weightless: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        capped = _capped(logits.to(settings.compute), settings.logit_softcap)
        found = _exchange(capped, _Shares(target, weight, settings), settings)
        losses, known = _known(found, weightless)
        return losses, found.statistics, *known

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _weightless, ctx.settings = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[2:])

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_losses is None:
            return (None,) * 6
        settings: _Settings = ctx.settings
        _check_second_derivative(settings)
        logits, target, own_weight, weight, *known = ctx.saved_tensors
        grad_logits = grad_target = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_logits = _LogitsGradient.apply(grad_losses, logits, target, own_weight, weight, *known, settings)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            by_target, by_weight = _share_gradients(
                logits, target, own_weight, _Known(*known), grad_losses, settings, ctx.needs_input_grad[1:3]
            )
            grad_target = None if by_target is None else by_target.to(target.dtype)
            grad_weight = None if by_weight is None else by_weight.to(own_weight.dtype)
        return grad_logits, grad_target, grad_weight, None, None, None


class _LogitsGradient(Function):
    """gradient = g (B p - a) dy/dx for this process's classes.

    A Function of its own, so that the gradient can be differentiated again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        grad_losses: Tensor,
        logits: Tensor,
        target: Tensor,
        own_weight: Tensor | None,
        weight: Tensor | None,
        maximum: Tensor,
        rest: Tensor,
        total: Tensor,
        others: Tensor,
        hidden: Tensor,
        settings: _Settings,
    ) -> Tensor:
        known = _Known(maximum, rest, total, others, hidden)
        shares = _Shares(target, weight, settings)
        return _logits_gradient(logits.to(settings.compute), shares, known, grad_losses, settings).to(logits.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # What is known of the rows is a function of the logits: its part in the derivative is contained in theirs.
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # As in `torchlosses.cross_entropy`, whose `_CrossEntropyGradient.backward` has the derivation. Each process has
        # its classes' part of v, so that p·v and a·u are sums over the processes.
        grad_losses, logits, target, own_weight, _, *known = ctx.saved_tensors
        settings: _Settings = ctx.settings
        group = settings.classes.group
        rows = _rows_of(logits, target, own_weight, _Known(*known), settings)
        v = v.to(settings.compute).masked_fill(rows.excluded, 0)
        along = v if rows.capping is None else rows.capping.slope * v
        mean = _groups.summed((rows.probability * along).sum(1), group)
        of_rows = grad_losses.to(settings.compute).masked_fill(rows.excluded.squeeze(1), 0)
        total = rows.total if rows.drawing is None else rows.total + rows.drawing.slope
        entered = _groups.entering(torch.stack([of_rows, total, mean]), group)
        g, of_probability, own_mean = entered.unsqueeze(2).unbind()
        u = along - own_mean
        grad_grad = grad_logits = grad_target = grad_weight = None
        if ctx.needs_input_grad[0]:
            derivative = -_groups.summed((rows.share * u).sum(1), group)
            if rows.drawing is not None:
                derivative = derivative + rows.drawing.slope * mean
            grad_grad = derivative.masked_fill(rows.excluded.squeeze(1), 0).to(grad_losses.dtype)
        if ctx.needs_input_grad[1]:
            change = of_probability * u
            if rows.drawing is not None:
                change = change + rows.drawing.curvature.unsqueeze(1) * own_mean
            gradient = g * rows.probability * change
            if rows.capping is not None:
                by_logits = of_probability * rows.probability - rows.share
                gradient = gradient * rows.capping.slope + g * v * by_logits * rows.capping.curvature
            grad_logits = gradient.to(logits.dtype)
        grad_share = -g * u
        if ctx.needs_input_grad[2]:
            grad_target = (rows.d_share_d_target * grad_share).to(target.dtype)
        if ctx.needs_input_grad[3]:
            grad_weight = (rows.smoothed * grad_share).sum(0).to(own_weight.dtype)
        return grad_grad, grad_logits, grad_target, grad_weight, *(None,) * 7


def _share_gradients(
    logits: Tensor,
    target: Tensor,
    own_weight: Tensor | None,
    known: _Known,
    grad_losses: Tensor,
    settings: _Settings,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by target probabilities and by the class weights of this process: -log p is the cost of a share."""
    rows = _rows_of(logits, target, own_weight, known, settings)
    of_rows = grad_losses.to(settings.compute).masked_fill(rows.excluded.squeeze(1), 0)
    g = _groups.entering(of_rows, settings.classes.group).unsqueeze(1)
    costs = rows.negative_log_probability.masked_fill(rows.excluded, 0)
    by_target = g * rows.d_share_d_target * costs if wanted[0] else None
    by_weight = None
    if wanted[1]:
        # A class without a share counts for nothing, also where it is ruled out.
        infinite = (rows.smoothed == 0) & costs.isinf()
        by_weight = (g * rows.smoothed * costs.masked_fill(infinite, 0)).sum(0)
    return by_target, by_weight


def _known(found: _Exchanged, weightless: Tensor | None) -> tuple[Tensor, _Known]:
    """The losses, 0 where a row leaves no trace; and what the derivatives need to know of the rows."""
    inactive = found.total == 0
    hidden = inactive & found.rest.isfinite().logical_not()
    if weightless is not None:
        hidden = hidden | (weightless & found.losses.isfinite().logical_not())
    losses = found.losses.masked_fill(hidden | inactive, 0)
    return losses, _Known(found.maximum, found.rest, found.total, found.others, hidden)


def _check_second_derivative(settings: _Settings) -> None:
    """Where only some processes have something to differentiate, the others would wait for them for ever."""
    if settings.frozen_in_some and torch.is_grad_enabled():
        raise RuntimeError(
            "The class-parallel losses have a second derivative only if a tensor that is split requires grad in all "
            "processes or in none, but here it requires grad in some of them. Let it require grad in each process, or "
            "leave create_graph out."
        )


class _Linear(Function):
    """The losses of a linear layer's logits whose classes are split, a block of rows at a time.

    The backward computes the logits again, and needs no more from the other processes than the sum of the gradients by
    the input. A gradient that is to be differentiated again is made of the blocks' differentiable steps.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        own_weight: Tensor | None,
        weight: Tensor | None,
        weightless: Tensor | None,
        settings: _Settings,
        product_dtype: torch.dtype,
        block_rows: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.settings, ctx.product_dtype, ctx.block_rows = settings, product_dtype, block_rows
        operands = _operands(linear_weight, linear_bias, product_dtype)
        blocks: list[_Exchanged] = []
        for rows in _blocks(input.shape[0], block_rows):
            logits = _capped(_project(input[rows], *operands, settings), settings.logit_softcap)
            blocks.append(_exchange(logits, _Shares(target[rows], weight, settings), settings))
        found = _Exchanged(*(torch.cat(parts, -1) for parts in zip(*blocks, strict=True)))
        losses, known = _known(found, weightless)
        ctx.mark_non_differentiable(found.statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, linear_weight, linear_bias, target, own_weight, weight, *known)
        return losses, found.statistics

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_losses is None:
            return (None,) * 10
        settings: _Settings = ctx.settings
        wanted = ctx.needs_input_grad
        *arguments, weight, maximum, rest, total, others, hidden = ctx.saved_tensors
        input, linear_weight, linear_bias, target, own_weight = arguments
        if torch.is_grad_enabled():
            _check_second_derivative(settings)
            options = (weight, settings, ctx.product_dtype, ctx.block_rows)
            return *_differentiable_gradients(grad_losses, arguments, hidden, wanted, *options), *(None,) * 5
        operands = _operands(linear_weight, linear_bias, ctx.product_dtype)
        grad_input = torch.empty_like(input, dtype=settings.compute) if wanted[0] else None
        grad_linear_weight, grad_linear_bias, grad_weight = (
            torch.zeros_like(tensor, dtype=settings.compute) if want and tensor is not None else None
            for tensor, want in ((linear_weight, wanted[1]), (linear_bias, wanted[2]), (own_weight, wanted[4]))
        )
        grad_target = torch.empty_like(target) if wanted[3] else None
        for rows in _blocks(input.shape[0], ctx.block_rows):
            logits = _project(input[rows], *operands, settings)
            known = _Known(maximum, rest, total, others, hidden).of(rows)
            if grad_target is not None or grad_weight is not None:
                by_target, by_weight = _share_gradients(
                    logits, target[rows], own_weight, known, grad_losses[rows], settings, wanted[3:5]
                )
                if grad_target is not None and by_target is not None:
                    grad_target[rows] = by_target.to(target.dtype)
                if grad_weight is not None and by_weight is not None:
                    grad_weight += by_weight
            if not any(wanted[:3]):
                continue
            shares = _Shares(target[rows], weight, settings)
            gradient = _logits_gradient(logits, shares, known, grad_losses[rows], settings)
            narrow = gradient.to(ctx.product_dtype)
            if grad_input is not None:
                grad_input[rows] = (narrow @ operands[0]).to(settings.compute)
            if grad_linear_weight is not None:
                # A hidden row may hold nan, and 0 · nan would be nan.
                x = input[rows].masked_fill((known.hidden | (known.total == 0)).unsqueeze(1), 0)
                grad_linear_weight += narrow.t() @ x.to(ctx.product_dtype)
            if grad_linear_bias is not None:
                grad_linear_bias += gradient.sum(0)
        if grad_input is not None:
            grad_input = _groups.sum_of(grad_input, settings.classes.group)
        gradients = (grad_input, grad_linear_weight, grad_linear_bias, grad_target, grad_weight)
        return *_in_dtypes_of(arguments, gradients), *(None,) * 5


def _in_dtypes_of(arguments: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(
        gradient if gradient is None or argument is None else gradient.to(argument.dtype)
        for argument, gradient in zip(arguments, gradients, strict=True)
    )


def _differentiable_gradients(
    grad_losses: Tensor,
    arguments: Sequence[Tensor | None],
    hidden: Tensor,
    wanted: Sequence[bool],
    weight: Tensor | None,
    settings: _Settings,
    product_dtype: torch.dtype,
    block_rows: int,
) -> tuple[Tensor | None, ...]:
    """The gradients by the arguments of a linear layer's losses, from logits that are computed again."""
    settings = settings._replace(statistics=False)
    function, given, present = _linear_function([*arguments, weight], hidden, settings, product_dtype)
    places = [position for position, place in enumerate(present) if wanted[place]]
    found = gradient_over_row_blocks(function, block_rows, given, places, [grad_losses])
    gradients: list[Tensor | None] = [None] * len(arguments)
    for position, gradient in zip(places, found, strict=True):
        gradients[present[position]] = gradient
    if gradients[0] is not None:
        gradients[0] = _groups.summed(gradients[0], settings.classes.group)
    return _in_dtypes_of(arguments, gradients)


def _linear_function(
    arguments: Sequence[Tensor | None], hidden: Tensor, settings: _Settings, product_dtype: torch.dtype
) -> tuple[BlockFunction, list[Tensor], list[int]]:
    """The losses of a block of rows in differentiable steps, its arguments, and which of `arguments` they are."""
    input, linear_weight, _, target, *_ = arguments
    assert input is not None
    assert linear_weight is not None
    assert target is not None
    x = input.to(settings.compute).masked_fill(hidden.unsqueeze(1), 0)
    x = _groups.entering(x, settings.classes.group)
    optional = [place for place in (2, 4, 5) if arguments[place] is not None]

    def call(x: Tensor, target: Tensor, linear_weight: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        linear_bias, own_weight, weight = (dict(zip(optional, others, strict=True)).get(place) for place in (2, 4, 5))
        logits = _project(x, *_operands(linear_weight, linear_bias, product_dtype), settings)
        losses, statistics, *_ = _Logits.apply(logits, target, own_weight, weight, None, settings)
        return losses, *statistics

    given = [x, target, linear_weight, *(tensor for place in optional if (tensor := arguments[place]) is not None)]
    return _block_function(call, 2, settings), given, [0, 3, 1, *optional]


def _operands(linear_weight: Tensor, linear_bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return linear_weight.to(dtype), None if linear_bias is None else linear_bias.to(dtype)


def _project(x: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, settings: _Settings) -> Tensor:
    """The logits, before the soft cap."""
    return torch.nn.functional.linear(x.to(linear_weight.dtype), linear_weight, linear_bias).to(settings.compute)


def _blocks(rows: int, size: int) -> Iterator[slice]:
    """The same in every process, as they talk about each block; one block where there are no rows."""
    for start in range(0, max(1, rows), size):
        yield slice(start, start + size)


class _Prepared(NamedTuple):
    """What both functions make of their arguments, before the losses."""

    settings: _Settings
    target: Tensor  # (rows) or (rows, classes)
    sample_weight: Tensor | None  # (rows)
    weight: Tensor | None
    own_weight: Tensor | None  # of this process's classes
    shape: torch.Size
    reduction: str
    normalizer: Tensor | float | None
    empty: str
    dtype: torch.dtype

    def result(self, losses: Tensor, statistics: Tensor) -> Tensor | tuple[Tensor, RowStatistics]:
        """The reduced loss, and with it the statistics if they are wanted."""
        weighted = losses if self.sample_weight is None else losses * self.sample_weight
        loss = weighted.reshape(self.shape) if self.reduction == "none" else weighted.sum()
        if self.reduction == "mean":
            loss = mean_of(loss, self._denominator(losses), self.empty)
        loss = loss.to(self.dtype)
        if not self.settings.statistics:
            return loss
        if self.target.dim() == 1:
            statistics = statistics.masked_fill(self.target == self.settings.ignore_index, 0)
        if self.sample_weight is not None:
            statistics = statistics.masked_fill(self.sample_weight.detach() == 0, 0)
        fields = [field.reshape(self.shape) for field in statistics.unbind()]
        return loss, RowStatistics(fields[0], fields[1], fields[2] != 0, fields[3])

    def _denominator(self, losses: Tensor) -> Tensor | float:
        if self.normalizer is not None:
            return self.normalizer
        if self.target.dim() == 1:
            index = self.settings.ignore_index
            return class_indices_denominator(self.target, index, self.weight, self.sample_weight, losses.dtype)
        return rows_denominator(losses, self.sample_weight, losses.dtype)

    def constant_weight(self) -> Tensor | None:
        """The class weights where they have no derivative, which `own_weight` has."""
        return None if self.weight is None else self.weight.detach()

    def weightless(self) -> Tensor | None:
        """Rows whose sample weight is 0."""
        return None if self.sample_weight is None else self.sample_weight.detach() == 0


def class_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    return_stats: bool = False,
) -> Any:
    r"""`torchlosses.cross_entropy` of logits whose classes are split over processes, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}} + \lambda \Big(\log \sum_j \exp x_{nj}\Big)^2

    over the classes of all processes. The value, the same in each of them, is that of one process with all classes; the
    gradient is that of this process's logits. Some five numbers a row are sent, whatever the number of classes. Every
    process of the group has to call this, with the same rows, targets and options.

    Args:
        input: This process's logits, of shape (C_p), (N, C_p) or (N, C_p, d1, ...), the classes in the order of the
            processes, any number of them in each; or a DTensor with `Shard` on the class dimension.
        target: Class indices of shape (), (N) or (N, d1, ...) that count over all classes, the same in each process; or
            this process's class probabilities, of the shape of `input`, split like it.
        weight: One factor a class, of shape (C), for all classes, in each process.
        group: The processes that have the classes. None is all of them; for a DTensor, those of its mesh.
        ignore_index: As in `torchlosses.cross_entropy`, and so are all further options.
        reduction: 'mean', 'sum' or 'none'.
        label_smoothing: ε in [0, 1].
        normalizer: What 'mean' divides by.
        sample_weight: One weight a row, the same in each process.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ.
        logit_softcap: c of x -> c tanh(x / c).
        return_stats: Whether to return a `RowStatistics` beside the loss.

    Returns:
        As `torchlosses.cross_entropy`; of a DTensor, a DTensor with `Replicate`. Dtypes as there.

    Raises:
        RuntimeError: `weight`, `sample_weight` or `normalizer` requires grad in some of the processes only; a second
            derivative is asked for where `input` or `target` does; and as `torchlosses.cross_entropy`.
        ValueError: The DTensor is not split along its class dimension; and as `torchlosses.cross_entropy`.
        IndexError: A class index is out of bounds (on the CPU).

    Edge cases: as for `torchlosses.cross_entropy`. A process may have no class.
    Differentiable to all orders with respect to all floating-point tensors, also DTensors, and in forward mode
    (plain tensors); every process asks for the same derivatives. Each process calls backward on what it makes of its
    own part of a gradient: together they count as the sum. vmap raises. `torch.compile` breaks the graph where numbers
    are sent; a second derivative of what it compiled raises.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import class_parallel_cross_entropy
        >>> class_parallel_cross_entropy(torch.zeros(2, 4), torch.tensor([3, 0]))  # one process that has all classes
        tensor(1.3863)

    Source: M. Shoeybi et al., *Megatron-LM* (2019), section 3, for class indices.
    """
    name = "class_parallel_cross_entropy"
    _validation.check_tensors(name, input=input, target=target)
    along = min(1, input.dim() - 1)
    mesh, group = _dtensors.mesh_of(name, group, input, along)
    input, target, weight, sample_weight = (
        _dtensors.local(tensor) for tensor in (input, target, weight, sample_weight)
    )
    _validation.check_floating_input(name, input)
    _validation.check_classification_shapes(name, input, target)
    indices = target.shape != input.shape
    shape = torch.Size(size for dimension, size in enumerate(input.shape) if dimension != along)
    prepared = _prepare(
        name,
        target.reshape(-1) if indices else _rows(target, along),
        shape,
        input,
        input.shape[along],
        weight,
        group,
        (ignore_index, reduction, label_smoothing, normalizer, sample_weight, empty, z_loss, logit_softcap),
        return_stats,
        split={"input": input, "target": target},
        replicated={"weight": weight, "sample_weight": sample_weight, "normalizer": normalizer},
    )
    losses, statistics = _losses_of_logits(_rows(input, along), prepared)
    return _dtensors.replicated(prepared.result(losses, statistics), mesh)


def class_parallel_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: _validation.Reduction = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    empty: _validation.Empty = "nan",
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    return_stats: bool = False,
    block_rows: int | None = None,
) -> Any:
    r"""`torchlosses.linear_cross_entropy` of a linear layer whose classes are split over processes, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp y_{nc}}{\sum_j \exp y_{nj}} + \lambda \Big(\log \sum_j \exp y_{nj}\Big)^2,
        \qquad y_n = W x_n + b

    over the classes of all processes. The value and the gradient by `input`, the same in each of them, are those of one
    process with all classes; the gradients by `linear_weight` and `linear_bias` are those of this process's classes.
    Some five numbers a row are sent, and in the backward a row's features. This process's logits exist for a block of
    rows at a time; the backward computes them again. Every process of the group has to call this, with the same rows,
    targets and options.

    Args:
        input: Features of shape (..., features), the same in each process; or a DTensor with `Replicate`.
        linear_weight: This process's rows of W, of shape (C_p, features), the classes in the order of the processes;
            or a DTensor with `Shard(0)`.
        target: Class indices of the shape of `input` without features that count over all classes; or this process's
            class probabilities, of shape (..., C_p).
        linear_bias: b of shape (C_p), split like `linear_weight`.
        weight: One factor a class, of shape (C), for all classes, in each process.
        group: The processes that have the classes. None is all of them; for a DTensor, those of its mesh.
        ignore_index: As in `torchlosses.linear_cross_entropy`, and so are all further options.
        reduction: 'mean', 'sum' or 'none'.
        label_smoothing: ε in [0, 1].
        normalizer: What 'mean' divides by.
        sample_weight: One weight a row, the same in each process.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        z_loss: λ.
        logit_softcap: c of y -> c tanh(y / c).
        return_stats: Whether to return a `RowStatistics` beside the loss.
        block_rows: How many rows are worked on at a time, the same in each process.

    Returns:
        As `torchlosses.linear_cross_entropy`; of a DTensor, a DTensor with `Replicate`. Dtypes as there.

    Raises:
        RuntimeError: `input`, `weight`, `sample_weight` or `normalizer` requires grad in some of the processes only; a
            second derivative is asked for where `linear_weight`, `linear_bias` or `target` does; and as
            `torchlosses.linear_cross_entropy`.
        ValueError: The DTensor is not split along its classes; and as `torchlosses.linear_cross_entropy`.
        IndexError: A class index is out of bounds (on the CPU).

    Edge cases: as for `torchlosses.linear_cross_entropy`. A process may have no class.
    Differentiable as `class_parallel_cross_entropy` is; beyond the gradient the logits are computed again, block by
    block too.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import class_parallel_linear_cross_entropy
        >>> class_parallel_linear_cross_entropy(torch.ones(2, 8), torch.zeros(4, 8), torch.tensor([3, 0]))
        tensor(1.3863)

    Source: as for `class_parallel_cross_entropy`.
    """
    name = "class_parallel_linear_cross_entropy"
    _validation.check_tensors(name, input=input, linear_weight=linear_weight, target=target)
    mesh, group = _dtensors.mesh_of(name, group, linear_weight, 0)
    input, linear_weight, target, linear_bias, weight, sample_weight = (
        _dtensors.local(tensor) for tensor in (input, linear_weight, target, linear_bias, weight, sample_weight)
    )
    _validation.check_floating_input(name, input)
    _validation.check_linear(name, input, linear_weight, linear_bias)
    autocast = autocast_enabled(input.device)
    _validation.check_linear_dtypes(name, autocast, input, linear_weight=linear_weight, linear_bias=linear_bias)
    block_rows = _validation.check_block_rows(block_rows)
    shape, count = input.shape[:-1], linear_weight.shape[0]
    indices = _validation.check_linear_target(name, target, [*shape], [*shape, count], ignore_index)
    prepared = _prepare(
        name,
        target.reshape(-1) if indices else _rows(target, -1),
        shape,
        input,
        count,
        weight,
        group,
        (ignore_index, reduction, label_smoothing, normalizer, sample_weight, empty, z_loss, logit_softcap),
        return_stats,
        split={"linear_weight": linear_weight, "linear_bias": linear_bias, "target": target},
        replicated={"input": input, "weight": weight, "sample_weight": sample_weight, "normalizer": normalizer},
    )
    product_dtype = torch.get_autocast_dtype(input.device.type) if autocast else input.dtype
    if input.dtype == torch.float64:
        product_dtype = torch.float64
    if block_rows is None:
        wide = prepared.settings.compute.itemsize
        block_rows = linear.default_block_rows(prepared.settings.classes.most, wide, logit_softcap)
    arguments = (_rows(input, -1), linear_weight, linear_bias, prepared.target, prepared.own_weight)
    losses, statistics = _losses_of_linear(arguments, prepared, product_dtype, block_rows)
    return _dtensors.replicated(prepared.result(losses, statistics), mesh)


def _transformed() -> bool:
    """Whether forward-mode AD or a transform of torch.func is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _losses_of_logits(logits: Tensor, prepared: _Prepared) -> tuple[Tensor, Tensor]:
    """The rows' losses and statistics."""
    settings, target, own_weight = prepared.settings, prepared.target, prepared.own_weight
    weight, weightless = prepared.constant_weight(), prepared.weightless()
    if not _transformed():
        losses, statistics, *_ = _Logits.apply(logits, target, own_weight, weight, weightless, settings)
        return losses, statistics

    rows = [logits, target] if weightless is None else [logits, target, weightless]
    shared = [] if own_weight is None or weight is None else [own_weight, weight]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        logits, target = given[:2]
        nowhere = None if weightless is None else given[2]
        weights = given[len(rows) :] if shared else (None, None)
        losses, statistics, *_ = _Logits.apply(logits, target, *weights, nowhere, settings)
        return losses, *statistics

    function = _block_function(call, len(rows), settings)
    losses, *found = over_row_blocks(function, max(1, logits.shape[0]), *rows, *shared)
    return losses, torch.stack(found) if found else losses.new_empty((0, *losses.shape))


def _losses_of_linear(
    arguments: tuple[Tensor | None, ...], prepared: _Prepared, product_dtype: torch.dtype, block_rows: int
) -> tuple[Tensor, Tensor]:
    settings, weight, weightless = prepared.settings, prepared.constant_weight(), prepared.weightless()
    if not _transformed():
        return _Linear.apply(*arguments, weight, weightless, settings, product_dtype, block_rows)
    input, target = arguments[0], arguments[3]
    assert input is not None
    assert target is not None
    shares = _Shares(target, weight, settings)
    inactive = shares.total == 0 if shares.indices else torch.zeros_like(input[:, :1], dtype=torch.bool).squeeze(1)
    if weightless is not None:
        inactive = inactive | weightless
    hidden = inactive & input.isfinite().all(1).logical_not()
    function, given, _ = _linear_function([*arguments, weight], hidden, settings, product_dtype)
    losses, *found = over_row_blocks(function, block_rows, *given)
    return losses, torch.stack(found) if found else losses.new_empty((0, *losses.shape))


def _block_function(call: Callable[..., tuple[Tensor, ...]], row_inputs: int, settings: _Settings) -> BlockFunction:
    """Losses, and beside them statistics if they are wanted."""
    fields = len(RowStatistics._fields) if settings.statistics else 0
    return BlockFunction(call, row_inputs, 1 + fields, auxiliary=fields)


def _prepare(
    name: str,
    target: Tensor,
    shape: torch.Size,
    input: Tensor,
    count: int,
    weight: Tensor | None,
    group: dist.ProcessGroup | None,
    options: tuple[Any, ...],
    statistics: bool,
    *,
    split: Mapping[str, Any],
    replicated: Mapping[str, Any],
) -> _Prepared:
    ignore_index, reduction, label_smoothing, normalizer, sample_weight, empty, z_loss, logit_softcap = options
    _validation.check_reduction(reduction)
    _validation.check_empty(empty)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    ignore_index = _validation.check_ignore_index(ignore_index)
    _validation.check_same_device(name, input, target=target, weight=weight, sample_weight=sample_weight)
    classes, frozen_in_some = _classes(name, count, group, input.device, split, replicated)
    indices = target.dim() == 1
    autocast = autocast_enabled(input.device)
    dtype = input.dtype if indices else torch.promote_types(input.dtype, target.dtype)
    if indices:
        _validation.check_index_dtype(target)
        target = target.to(torch.int64)
        outside = ((target < 0) | (target >= classes.total)) & (target != ignore_index)
        if target.device.type == "cpu" and bool(outside.any()):
            _validation.raise_target_out_of_bounds(target, classes.total, ignore_index)
    elif ignore_index >= 0 or not target.is_floating_point():
        _validation.check_cross_entropy_target(target, target, ignore_index)
    if weight is not None:
        _validation.check_weight_of_classes(classes.total, input.dtype, indices, weight, autocast, name)
        dtype = torch.promote_types(dtype, weight.dtype)
    compute = compute_dtype(input, None if indices else target, weight)
    own_weight = None
    if weight is not None:
        # Numerator and denominator share one wide weight, so that its gradient is rounded once.
        weight = weight.to(compute)
        own_weight = _groups.entering(weight, group)[classes.first : classes.first + classes.own]
    if sample_weight is not None:
        _validation.check_sample_weight(name, sample_weight, shape)
        sample_weight = sample_weight.to(compute).expand(shape).reshape(-1)
    settings = _Settings(
        classes,
        ignore_index,
        _validation.check_label_smoothing(label_smoothing),
        _validation.check_z_loss(z_loss),
        _validation.check_logit_softcap(logit_softcap),
        compute,
        statistics,
        frozen_in_some,
    )
    return _Prepared(
        settings,
        target,
        sample_weight,
        weight,
        own_weight,
        shape,
        reduction,
        normalizer,
        empty,
        result_dtype(dtype, input.device),
    )


def _classes(
    name: str,
    count: int,
    group: dist.ProcessGroup | None,
    device: torch.device,
    split: Mapping[str, Any],
    replicated: Mapping[str, Any],
) -> tuple[_Classes, bool]:
    """Two numbers a process are sent: how many classes it has, and which of its tensors require grad.

    Gives the classes, and whether a tensor that is split requires grad in some of the processes only.
    """
    processes, rank = _groups.size(group), _groups.rank(group)
    tensors = [*replicated.values(), *split.values()]
    recording = torch.is_grad_enabled()
    wanted = [recording and isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors]
    told = torch.zeros((processes, 2), dtype=torch.int64, device=device)
    told[rank, 0] = count
    told[rank, 1] = sum(1 << place for place, want in enumerate(wanted) if want)
    counts, gradients = _groups.sum_of(told, group).t().tolist()
    for place, argument in enumerate(replicated):
        if len({flags >> place & 1 for flags in gradients}) > 1:
            raise RuntimeError(
                f"{name}: {argument} requires grad in some of the processes, but its gradient is a sum over all of "
                "them. Let it require grad in each process or in none."
            )
    classes = _Classes(group, rank, sum(counts[:rank]), count, sum(counts), max(counts))
    return classes, len(set(gradients)) > 1


def _rows(tensor: Tensor, along: int) -> Tensor:
    last = tensor.movedim(along, -1)
    return last.reshape(math.prod(last.shape[:-1]), last.shape[-1])
