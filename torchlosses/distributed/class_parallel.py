r"""Cross-entropy over classes that are split over processes.

Each process has all rows and some of the classes. What a row's loss needs of the other processes is a few numbers:

    m    = max_j x_j                  the maximum of the processes' maxima
    rest = Σ_j exp(x_j - m) - 1       a sum over the processes; the one that has the maximum leaves its own 1 out
    d    = Σ_c a_c (x_c - m)          a sum over the processes, a_c the target's share of class c
    A    = Σ_c a_c                    known from the class index, or a sum over the processes

    loss = A log1p(rest) - d,         gradient by x_c = A p_c - a_c,   p_c = exp(x_c - m) / (1 + rest)

The gradient by a process's logits needs nothing more from the others. That by the input of a linear layer, whose
weights are split, is a sum over the processes. So all that is sent is a few numbers a row (and with a linear layer one
row of features), whatever the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Replicate, Shard

from torchlosses import _validation
from torchlosses._numerics import compute_dtype
from torchlosses._options import RowStatistics, class_indices_denominator, mean_of, rows_denominator
from torchlosses._transforms import autocast_enabled, result_dtype
from torchlosses.distributed import _groups
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


class _Exchanged(NamedTuple):
    """What is known of each row after the processes have talked: the same in all of them."""

    maximum: Tensor
    rest: Tensor
    total: Tensor  # A = Σ_c a_c
    others: Tensor  # A - a, at the target of class indices or at the maximum; summed, not subtracted
    losses: Tensor
    statistics: Tensor  # (fields of RowStatistics, rows), or (0, rows)


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
    correct = (place == target).to(place.dtype)
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
    logits: Tensor,
    shares: _Shares,
    maximum: Tensor,
    rest: Tensor,
    total: Tensor,
    others: Tensor,
    grad_rows: Tensor,
    settings: _Settings,
) -> Tensor:
    """g d loss / d logits, before the soft cap, of capped logits."""
    shifted = logits - maximum.unsqueeze(1)
    gradient = shares.gradient(shifted, rest, total, others)
    if settings.z_loss:
        factor = (2 * settings.z_loss * (maximum + rest.log1p()) / (1 + rest)).masked_fill(total == 0, 0)
        gradient += shifted.exp().mul_(factor.unsqueeze(1))
    gradient *= grad_rows.unsqueeze(1)
    if settings.logit_softcap is not None:
        gradient *= 1 - (logits / settings.logit_softcap).square()
    return gradient


def _target_gradient(
    logits: Tensor, shares: _Shares, maximum: Tensor, rest: Tensor, grad_rows: Tensor, settings: _Settings
) -> Tensor:
    """g w (1-ε) (-log p) for each of this process's classes."""
    costs = rest.log1p().unsqueeze(1) - (logits - maximum.unsqueeze(1))
    factor = (1 - settings.label_smoothing) * grad_rows.unsqueeze(1)
    return costs * factor * (1 if shares.weight is None else shares.weight)


def _refuse_second_derivative() -> None:
    """Without this, a gradient that is used in a further loss would count as a constant there."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The class-parallel losses have no second derivative: leave create_graph out, or gather the classes and "
            "call torchlosses.cross_entropy."
        )


class _Logits(Function):
    """The losses of logits whose classes are split."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, weightless: Tensor | None, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        capped = _capped(logits.to(settings.compute), settings.logit_softcap)
        found = _exchange(capped, _Shares(target, weight, settings), settings)
        losses, hidden = _hide(found, target, weightless, settings)
        ctx.settings = settings
        ctx.mark_non_differentiable(found.statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, found.maximum, found.rest, found.total, found.others, hidden)
        return losses, found.statistics

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _refuse_second_derivative()
        if grad_losses is None:
            return (None,) * 5
        logits, target, weight, maximum, rest, total, others, hidden = ctx.saved_tensors
        settings: _Settings = ctx.settings
        shares = _Shares(target, weight, settings)
        capped = _capped(logits.to(settings.compute), settings.logit_softcap)
        grad_rows = grad_losses.to(settings.compute)
        grad_logits = grad_target = None
        if ctx.needs_input_grad[0]:
            gradient = _logits_gradient(capped, shares, maximum, rest, total, others, grad_rows, settings)
            grad_logits = gradient.masked_fill_(hidden.unsqueeze(1), 0).to(logits.dtype)
        if ctx.needs_input_grad[1]:
            gradient = _target_gradient(capped, shares, maximum, rest, grad_rows, settings)
            grad_target = gradient.masked_fill_(hidden.unsqueeze(1), 0).to(target.dtype)
        return grad_logits, grad_target, None, None, None


def _hide(found: _Exchanged, target: Tensor, weightless: Tensor | None, settings: _Settings) -> tuple[Tensor, Tensor]:
    """The losses, 0 where a row leaves no trace; and where that is."""
    hidden = found.total == 0
    if weightless is not None:
        hidden = hidden | (weightless & found.losses.isfinite().logical_not())
    return found.losses.masked_fill(hidden, 0), hidden


class _Linear(Function):
    """The losses of a linear layer's logits whose classes are split, a block of rows at a time.

    The backward computes the logits again, and needs no more from the other processes than the sum of the gradients by
    the input.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
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
            logits = _project(input[rows], *operands, product_dtype, settings)
            blocks.append(_exchange(logits, _Shares(target[rows], weight, settings), settings))
        found = _Exchanged(*(torch.cat(parts, -1) for parts in zip(*blocks, strict=True)))
        losses, hidden = _hide(found, target, weightless, settings)
        ctx.mark_non_differentiable(found.statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *(input, linear_weight, linear_bias, target, weight),
            *(found.maximum, found.rest, found.total, found.others, hidden),
        )
        return losses, found.statistics

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _refuse_second_derivative()
        if grad_losses is None:
            return (None,) * 9
        input, linear_weight, linear_bias, target, weight, maximum, rest, total, others, hidden = ctx.saved_tensors
        settings: _Settings = ctx.settings
        wanted = ctx.needs_input_grad
        operands = _operands(linear_weight, linear_bias, ctx.product_dtype)
        grad_input = torch.empty_like(input, dtype=settings.compute) if wanted[0] else None
        grad_linear_weight, grad_linear_bias = (
            torch.zeros_like(tensor, dtype=settings.compute) if want and tensor is not None else None
            for tensor, want in ((linear_weight, wanted[1]), (linear_bias, wanted[2]))
        )
        grad_target = torch.empty_like(target) if wanted[3] else None
        for rows in _blocks(input.shape[0], ctx.block_rows):
            shares = _Shares(target[rows], weight, settings)
            logits = _project(input[rows], *operands, ctx.product_dtype, settings)
            stats, grad_rows = (maximum[rows], rest[rows]), grad_losses[rows].to(settings.compute)
            nowhere = hidden[rows].unsqueeze(1)
            if grad_target is not None:
                gradient = _target_gradient(logits, shares, *stats, grad_rows, settings)
                grad_target[rows] = gradient.masked_fill_(nowhere, 0).to(target.dtype)
            gradient = _logits_gradient(logits, shares, *stats, total[rows], others[rows], grad_rows, settings)
            narrow = gradient.masked_fill_(nowhere, 0).to(ctx.product_dtype)
            if grad_input is not None:
                grad_input[rows] = (narrow @ operands[0]).to(settings.compute)
            if grad_linear_weight is not None:
                # A hidden row may hold nan, and 0 · nan would be nan.
                x = input[rows].masked_fill(nowhere, 0).to(ctx.product_dtype)
                grad_linear_weight += narrow.t() @ x
            if grad_linear_bias is not None:
                grad_linear_bias += gradient.sum(0)
        if grad_input is not None:
            grad_input = _groups.sum_of(grad_input, settings.classes.group).to(input.dtype)
        return (
            grad_input,
            None if grad_linear_weight is None else grad_linear_weight.to(linear_weight.dtype),
            None if grad_linear_bias is None else grad_linear_bias.to(linear_bias.dtype),
            grad_target,
            *(None,) * 5,
        )


def _operands(linear_weight: Tensor, linear_bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return linear_weight.to(dtype), None if linear_bias is None else linear_bias.to(dtype)


def _project(
    x: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, dtype: torch.dtype, settings: _Settings
) -> Tensor:
    logits = torch.nn.functional.linear(x.to(dtype), linear_weight, linear_bias)
    return _capped(logits.to(settings.compute), settings.logit_softcap)


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
        weight: One factor a class, of shape (C), for all classes, in each process. Takes no gradient.
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
        RuntimeError: `weight` requires grad; a second derivative or forward-mode AD is asked for, which this does not
            have; and as `torchlosses.cross_entropy`.
        ValueError: The DTensor is not split along its class dimension; and as `torchlosses.cross_entropy`.
        IndexError: A class index is out of bounds (on the CPU).

    Edge cases: as for `torchlosses.cross_entropy`. A process may have no class.

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
    mesh, group = _mesh_of(name, group, input, along)
    input, target, weight, sample_weight = (_local(tensor) for tensor in (input, target, weight, sample_weight))
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
    )
    losses, statistics = _Logits.apply(
        _rows(input, along), prepared.target, prepared.weight, prepared.weightless(), prepared.settings
    )
    return _replicated(prepared.result(losses, statistics), mesh)


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
        weight: One factor a class, of shape (C), for all classes, in each process. Takes no gradient.
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
        RuntimeError: `weight` requires grad; a second derivative or forward-mode AD is asked for, which this does not
            have; and as `torchlosses.linear_cross_entropy`.
        ValueError: The DTensor is not split along its classes; and as `torchlosses.linear_cross_entropy`.
        IndexError: A class index is out of bounds (on the CPU).

    Edge cases: as for `torchlosses.linear_cross_entropy`. A process may have no class.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import class_parallel_linear_cross_entropy
        >>> class_parallel_linear_cross_entropy(torch.ones(2, 8), torch.zeros(4, 8), torch.tensor([3, 0]))
        tensor(1.3863)

    Source: as for `class_parallel_cross_entropy`.
    """
    name = "class_parallel_linear_cross_entropy"
    _validation.check_tensors(name, input=input, linear_weight=linear_weight, target=target)
    mesh, group = _mesh_of(name, group, linear_weight, 0)
    input, linear_weight, target, linear_bias, weight, sample_weight = (
        _local(tensor) for tensor in (input, linear_weight, target, linear_bias, weight, sample_weight)
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
    )
    product_dtype = torch.get_autocast_dtype(input.device.type) if autocast else input.dtype
    if input.dtype == torch.float64:
        product_dtype = torch.float64
    if block_rows is None:
        wide = prepared.settings.compute.itemsize
        block_rows = linear.default_block_rows(prepared.settings.classes.most, wide, logit_softcap)
    losses, statistics = _Linear.apply(
        _rows(input, -1),
        linear_weight,
        linear_bias,
        prepared.target,
        prepared.weight,
        prepared.weightless(),
        prepared.settings,
        product_dtype,
        block_rows,
    )
    return _replicated(prepared.result(losses, statistics), mesh)


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
) -> _Prepared:
    ignore_index, reduction, label_smoothing, normalizer, sample_weight, empty, z_loss, logit_softcap = options
    _validation.check_reduction(reduction)
    _validation.check_empty(empty)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    ignore_index = _validation.check_ignore_index(ignore_index)
    _validation.check_same_device(name, input, target=target, weight=weight, sample_weight=sample_weight)
    classes = _classes(count, group, input.device)
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
        if weight.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{name}: weight takes no gradient here; detach it.")
        dtype = torch.promote_types(dtype, weight.dtype)
    compute = compute_dtype(input, None if indices else target, weight)
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
    )
    return _Prepared(
        settings,
        target,
        sample_weight,
        weight,
        shape,
        reduction,
        normalizer,
        empty,
        result_dtype(dtype, input.device),
    )


def _classes(count: int, group: dist.ProcessGroup | None, device: torch.device) -> _Classes:
    """One number a process is sent, so that each knows how many classes the others have."""
    processes, rank = _groups.size(group), _groups.rank(group)
    counts = torch.zeros(processes, dtype=torch.int64, device=device)
    counts[rank] = count
    each = [int(n) for n in _groups.sum_of(counts, group)]
    return _Classes(group, rank, sum(each[:rank]), count, sum(each), max(each))


def _rows(tensor: Tensor, along: int) -> Tensor:
    last = tensor.movedim(along, -1)
    return last.reshape(math.prod(last.shape[:-1]), last.shape[-1])


def _mesh_of(name: str, group: dist.ProcessGroup | None, tensor: Tensor, along: int) -> tuple[Any, Any]:
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


def _local(tensor: Any) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _replicated(result: Any, mesh: Any) -> Any:
    """The result in the form of the arguments: each process has all of it."""
    if mesh is None:
        return result
    if isinstance(result, Tensor):
        return DTensor.from_local(result, mesh, [Replicate()] * mesh.ndim, run_check=False)
    loss, statistics = result
    return _replicated(loss, mesh), RowStatistics(*(_replicated(field, mesh) for field in statistics))
