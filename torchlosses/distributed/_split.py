r"""The cross-entropy of rows whose classes are split over processes: forward and backward.

What a row's loss needs of the other processes is a few numbers:

    m    = max_j y_j                  the maximum of the processes' maxima
    rest = Σ_j exp(y_j - m) - 1       a sum over the processes; the one that has the maximum leaves its own 1 out
    d    = Σ_c a_c (y_c - m)          a sum over the processes, a_c the target's share of class c
    A    = Σ_c a_c                    known from the class index, or a sum over the processes

    loss = A log1p(rest) - d,         gradient by y_c = A p_c - a_c,   p_c = exp(y_c - m) / (1 + rest)

The rest is as in `torchlosses.cross_entropy`, the options too. The gradient by a process's logits needs nothing more
from the others. That by the class weights, by which each process weighs its own classes, is a sum over the processes.

forward and backward are written in differentiable steps, those in which numbers are sent among them: `_groups` says how
a derivative passes between what all processes have (here: what there is one of a row) and what one has (what there is
one of a class). So all further derivatives follow. Where nobody follows and Triton runs, a kernel finds each process's
numbers in one pass over its logits, relative to its own maximum (`_of_parts`), and another writes the gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from torchlosses import kernels
from torchlosses._declare import Loss
from torchlosses._options import FOUND
from torchlosses._pytorch import exponential, may_look, replaced
from torchlosses._rows import (
    RowWeights,
    along_classes,
    compute_dtype,
    dot,
    finite_where,
    per_class,
    probabilities_denominator,
    scaled_and_capped,
    times_slope,
)
from torchlosses.cross_entropy import CrossEntropy
from torchlosses.distributed import _groups
from torchlosses.linear_cross_entropy import LinearCrossEntropy

_CLASSES = {"group": str, "first": int, "total": int, "uneven": bool}


def _record(loss: Any) -> Any:
    """The options of a loss, with which classes the process has behind those of the cross-entropy."""
    known, of_all = get_type_hints(loss.options), get_type_hints(CrossEntropy.options)
    fields = of_all | _CLASSES | {name: kind for name, kind in known.items() if name not in of_all}
    make: Any = NamedTuple
    return make("Options", list(fields.items()))


Options: Any = _record(CrossEntropy)
LinearOptions: Any = _record(LinearCrossEntropy)


class _Known(NamedTuple):
    """What is known of each row after the processes have talked, the same in all of them: (rows, 1)."""

    maximum: Tensor
    rest: Tensor
    total: Tensor  # A = Σ_c a_c
    others: Tensor  # A without the share of the target's index, or of the class of the maximum; summed, not subtracted
    hidden: Tensor  # 1 for rows that leave no trace, at least those that are not finite, else 0


class _Kernels:
    """The operators on all rows at once, as each process has as many rows but not as many classes as the others.

    What a process does by itself, before and after the processes talk, is done in Triton where that runs.
    """

    @staticmethod
    @torch.no_grad()
    def forward(loss: Any, tensors: Sequence[Any], options: Any) -> tuple[Tensor, ...]:
        *own, _ = tensors
        input = own[0]
        in_triton = _in_triton(input, options)
        losses, state = loss.forward(*own, options) if in_triton is None else _of_parts(in_triton, own, options)
        wide = torch.float64 if input.device.type == "cpu" else losses.dtype
        gradient = input.new_empty(0)
        if options.gradients:
            one = torch.ones((), dtype=wide, device=input.device)
            gradient = _Kernels.backward(loss, one, tensors, options, state)
        result = losses if options.reduction == "none" else losses.sum(dtype=wide)
        return loss.reduced(result, tensors, options), gradient, state

    @staticmethod
    @torch.no_grad()
    def backward(loss: Any, grad_output: Tensor, tensors: Sequence[Any], options: Any, state: Tensor) -> Tensor:
        *own, _ = tensors
        if (in_triton := _in_triton(own[0], options)) is not None:
            gradient = torch.empty_like(own[0])
            in_triton.backward(grad_output, gradient, *tensors, state, options._replace(gradients=0))
            return gradient
        if grad_output.device.type == "cpu":
            grad_output = grad_output.double()
        grad_rows = loss.grad_of_rows(grad_output, tensors, options)
        gradient, like = loss.backward(grad_rows, *own, options, state), torch.empty_like(own[0])
        if gradient.dtype == like.dtype and gradient.stride() == like.stride():
            return gradient
        return like.copy_(gradient)

    @staticmethod
    @torch.no_grad()
    def backward_(
        loss: Any, grad_output: Tensor, gradient: Tensor, tensors: Sequence[Any], options: Any, state: Tensor
    ) -> None:
        if (in_triton := _in_triton(tensors[0], options)) is not None:
            in_triton.backward(grad_output, gradient, *tensors, state, options)
        else:
            gradient.copy_(_Kernels.backward(loss, grad_output, tensors, options, state))


def _in_triton(input: Tensor, options: Any) -> Any:
    """The kernels, if they run and there is a class."""
    return kernels._local_in_triton(SplitCrossEntropy.name, input.device) if options.total else None


class _OverProcesses(Loss, abstract=True):
    """What does not go with the other processes' doing the same."""

    @staticmethod
    def check(*tensors_and_options: Any) -> None:  # type: ignore[override]
        """Class indices are checked where the processes agree on their classes."""

    @classmethod
    def _gradients(cls, grad_output: Tensor, tensors: Any, state: Any, options: Any, needed: Any) -> Any:
        if options.uneven and torch.is_grad_enabled():
            # Those that have nothing to differentiate would be waited for for ever.
            raise RuntimeError(
                "The class-parallel losses have a second derivative only if a tensor that is split requires grad in "
                "all processes or in none, but here it requires grad in some of them. Let it require grad in each "
                "process, or leave create_graph out."
            )
        return super()._gradients(grad_output, tensors, state, options, needed)

    @classmethod
    def _fold(cls, info: Any, dims: Any, tensors: Any, options: Any) -> Any:
        raise RuntimeError(
            f"{cls.name}: vmap is not supported, as the processes would map over their own parts, of different sizes. "
            "Call it with more rows."
        )

    @classmethod
    def _fold_backward(cls, info: Any, dims: Any, arguments: Any, options: Any) -> Any:
        return cls._fold(info, dims, arguments, options)


class SplitCrossEntropy(_OverProcesses, CrossEntropy):  # type: ignore[misc]
    """loss = s (A log1p(rest) - d + λ l²) for each row; gradient s ((A + 2 λ l) p - a) dy/dx for the process's classes.

    The input has the process's classes, and so have class probabilities; `weight` is for all classes.
    """

    name = "class_parallel_cross_entropy"
    options = Options
    kernels = _Kernels

    @staticmethod
    def forward(
        input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Any
    ) -> tuple[Tensor, Tensor]:
        """The rows' losses; and what is known of them, with statistics where they are asked for."""
        fields = SplitCrossEntropy.state_fields(options)
        rows = [*input.shape[:1], *input.shape[2:]]
        if not options.total:
            compute = compute_dtype(input, target, weight)
            return input.new_zeros(rows, dtype=compute), input.new_zeros([fields, *rows], dtype=compute)
        shares = _Shares(input, target, weight, sample_weight, options)
        y = scaled_and_capped(input.to(shares.compute), options)

        def parts(shifted: Tensor) -> list[Tensor]:
            return [*shares.dots(shifted), *(_statistics_parts(shifted, shares) if options.statistics else ())]

        known, index, sums = _exchanged(y, shares, parts)
        most_likely: Any = None
        if options.statistics and not shares.indices:
            most_likely = _first_largest(*_largest(shares.target.detach()), options)[1]
        return _finished(shares, known, index, most_likely, sums)

    @staticmethod
    def backward(
        grad_output: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        sample_weight: Tensor | None,
        options: Any,
        state: Tensor | None = None,
    ) -> Tensor:
        """The gradient by this process's logits; without `state` the processes talk again."""
        if not options.total:
            return torch.zeros_like(input)
        shares = _Shares(input, target, weight, sample_weight, options)
        x = input.to(shares.compute)
        if state is None:
            known, _, _ = _exchanged(scaled_and_capped(x, options), shares, lambda _: [])
        else:
            known = _Known(*(field.unsqueeze(1) for field in state[: len(_Known._fields)]))
        hidden = known.hidden != 0
        x = _hide(x, hidden)
        shifted = scaled_and_capped(x, options) - known.maximum
        log_rest = known.rest.log1p()
        drawn = torch.zeros_like(log_rest)
        if options.z_loss:
            drawn = (2 * options.z_loss * (known.maximum + log_rest)).masked_fill(known.total == 0, 0)
        g = shares.incoming(per_class(grad_output), known.total, hidden).expand_as(known.rest)
        # From here on it is about this process's classes.
        of_rows = [g, drawn, known.rest, known.total, known.others, shares.hard if shares.indices else g]
        gradient = shares.gradient(shifted, *_groups.entering(torch.stack(of_rows), options.group).unbind())
        return times_slope(gradient, x, options)

    @staticmethod
    def state_fields(options: Any) -> int:
        """What is known of the rows, and the statistics."""
        return len(_Known._fields) + (FOUND if options.statistics else 0)

    @staticmethod
    def counted(*tensors_and_options: Any) -> Tensor | None:  # type: ignore[override]
        """Rows that are not ignored. Without classes there is no row that could have probabilities."""
        input, target, *_, options = tensors_and_options
        if target.dim() < input.dim():
            return target != options.ignore_index
        return None if options.total else input.new_zeros(SplitCrossEntropy.rows(input), dtype=torch.bool)

    @staticmethod
    def denominator(*tensors_and_options: Any) -> Tensor | None:  # type: ignore[override]
        """As that of all classes."""
        input, target, _, sample_weight, options = tensors_and_options
        if target.dim() == input.dim():
            return probabilities_denominator(options.total, sample_weight)
        return CrossEntropy.denominator(*tensors_and_options)


class SplitLinearCrossEntropy(_OverProcesses, LinearCrossEntropy):
    """The cross-entropy of x Wᵀ + b + r (x Aᵀ) Bᵀ, where each process has some rows of W, b and B."""

    name = "class_parallel_linear_cross_entropy"
    options = LinearOptions
    of_logits = SplitCrossEntropy
    split = True

    @staticmethod
    def entering(tensor: Tensor, options: Any) -> Tensor:
        """What each process has, for use with what one has."""
        return _groups.entering(tensor, options.group)

    @staticmethod
    def summed(tensor: Tensor, options: Any) -> Tensor:
        """The sum over the processes."""
        return _groups.summed(tensor, options.group)

    @staticmethod
    def counted(*tensors_and_options: Any) -> Tensor | None:
        """Rows that are not ignored. Without classes there is no row that could have probabilities."""
        input, *_, target, _, _, options = tensors_and_options
        if target.dim() == 1:
            return target != options.ignore_index
        return None if options.total else torch.zeros(input.shape[:1], dtype=torch.bool, device=input.device)

    @staticmethod
    def denominator(*tensors_and_options: Any) -> Tensor | None:
        """As that of all classes."""
        *_, target, _, sample_weight, options = tensors_and_options
        if target.dim() > 1:
            return probabilities_denominator(options.total, sample_weight)
        return LinearCrossEntropy.denominator(*tensors_and_options)


class _Shares(RowWeights):
    """The target's share a of each class, and what is a sum over the classes with it.

    What there is one of a row is (rows, 1), and the same in each process.
    """

    def __init__(
        self, input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Any
    ) -> None:
        self.indices, self.options, self.own = target.dim() < input.dim(), options, input.shape[1]
        self.compute = compute = compute_dtype(input, None if self.indices else target, weight)
        smoothing, first = options.label_smoothing, options.first
        self.smooth = smoothing / options.total
        self.sample_weight = None if sample_weight is None else sample_weight.to(compute).unsqueeze(1)
        self.ignored: Tensor | None = None
        self.target = target
        self.weight: Tensor | None = None
        if weight is not None:
            weight = weight.to(compute)
            self.weight = along_classes(_groups.entering(weight, options.group)[first : first + self.own], input)
        if not self.indices:
            return
        ignored = (target == options.ignore_index).unsqueeze(1)
        self.ignored, index = ignored, target.unsqueeze(1).masked_fill(ignored, 0)
        self.inside = self.has(index)
        self.place = (index - first).clamp(0, max(0, self.own - 1))
        ones = torch.ones_like(index, dtype=compute)
        # The share of the index without its part of what is spread over all classes, and that part of all together.
        self.hard = (1 - smoothing) * (ones if weight is None else weight[index])
        self.others = self.smooth * (options.total if weight is None else weight.sum()) * ones

    @functools.cached_property
    def share(self) -> Tensor:
        """a of each class, of probabilities."""
        share, smoothing = self.target.to(self.compute), self.options.label_smoothing
        if smoothing:
            share = (1 - smoothing) * share + self.smooth
        return share if self.weight is None else share * self.weight

    def at(self, tensor: Tensor, place: Tensor) -> Tensor:
        """What stands at some class of each row."""
        return tensor.gather(1, place) if self.own else tensor.new_zeros(place.shape)

    def has(self, index: Tensor) -> Tensor:
        """Whether a class is one of this process's."""
        return (index >= self.options.first) & (index < self.options.first + self.own)

    def has_none(self) -> Tensor:
        """Rows none of whose classes has a share, as far as this process knows."""
        if self.indices:
            return self.hard + self.others == 0
        return (self.share == 0).all(1, keepdim=True)

    def dots(self, shifted: Tensor) -> list[Tensor]:
        """This process's parts of d: x_t - m at class indices, and what smoothing adds; or Σ_c a_c (x_c - m)."""
        if not self.indices:
            return [dot(self.share, shifted)]
        found = [torch.where(self.inside, self.at(shifted, self.place), 0)]
        if self.smooth:
            found.append(shifted.sum(1, keepdim=True) if self.weight is None else dot(self.weight, shifted))
        return found

    def losses(self, log_rest: Tensor, total: Tensor, sums: list[Tensor]) -> Tensor:
        """Σ_c a_c (-log p_c), from the sums of the processes' parts."""
        if not self.indices:
            return total * log_rest - sums[0]
        cost = log_rest - sums[0]
        losses = self.hard * finite_where(self.hard, cost)
        return losses + (self.others * log_rest - self.smooth * sums[1]) if self.smooth else losses

    def gradient(
        self, shifted: Tensor, g: Tensor, drawn: Tensor, rest: Tensor, total: Tensor, others: Tensor, hard: Tensor
    ) -> Tensor:
        """g ((A + drawn) p - a), with the digits that the difference of two numbers close to each other loses."""
        sums, pull = 1 + rest, total + drawn
        if not self.indices:
            place = shifted.detach().argmax(1, keepdim=True) if self.own else shifted.new_zeros(g.shape).long()
            at = self.at(shifted, place)
            gradient = g * (exponential(shifted) * (pull / sums) - self.share)
            # At a class that has more than half, A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j.
            precise = g * (others + (drawn * at.exp() - total * (rest - at.expm1())) / sums)
            return self._put(gradient, place, (at == 0) & (rest < 1), precise)
        at = self.at(shifted, self.place)
        gradient = exponential(shifted) * (g * pull / sums)
        # p_t - 1 = -Σ_{j≠t} p_j
        precise = ((others + drawn) * at.exp() - hard * (rest - at.expm1())) / sums
        if self.smooth:
            even: Any = self.smooth if self.weight is None else self.smooth * self.weight
            gradient = gradient - even * g
            precise = precise - (even if self.weight is None else self.at(even.expand_as(shifted), self.place))
        return self._put(gradient, self.place, self.inside, g * precise)

    def _put(self, tensor: Tensor, place: Tensor, where: Tensor, value: Tensor) -> Tensor:
        if not self.own:
            return tensor
        return replaced(tensor, place, torch.where(where, value, tensor.gather(1, place)))


def _hide(y: Tensor, hidden: Tensor) -> Tensor:
    # Where looking is free, most batches need no further pass.
    if may_look(y) and not bool(hidden.any()):
        return y
    return y.masked_fill(hidden, 0)


def _largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's maximum in this process, and its place."""
    if values.shape[1]:
        return values.max(1, keepdim=True)
    own = values.new_full([values.shape[0], 1, *values.shape[2:]], -math.inf)
    return own, torch.zeros_like(own, dtype=torch.int64)


def _first_largest(own: Tensor, place: Tensor, options: Any) -> tuple[Tensor, Tensor]:
    """Each row's maximum over all processes, and the first class that has it."""
    # Where a logit is nan, the maximum is inf, so that all processes find the same.
    own = own.masked_fill(own.isnan(), math.inf)
    maximum = _groups.maximum(own, options.group)
    index = torch.where(own == maximum, place.to(torch.int64) + options.first, options.total)
    return maximum, _groups.minimum(index, options.group)


def _exchanged(
    y: Tensor, shares: _Shares, parts: Callable[[Tensor], list[Tensor]]
) -> tuple[_Known, Tensor, list[Tensor]]:
    """What all processes know of each row, the class of its maximum, and the sums over the processes of `parts`."""
    options = shares.options
    own, place = _largest(y.detach())
    maximum, index = _first_largest(own, place, options)
    mine = shares.has(index)
    none = shares.has_none()
    if not shares.indices:
        none = _groups.minimum(none.to(torch.int8), options.group) != 0
    hidden = shares.without_trace(none.logical_not()) & maximum.isfinite().logical_not()
    maximum = maximum.masked_fill(hidden, 0)
    shifted = _hide(y, hidden) - maximum
    found = parts(shifted)
    at_largest = shares.at(shifted, place)
    if not shares.indices:
        of_largest = shares.at(shares.share, place)
        others = shares.share
        if shares.own:
            others = others.scatter(1, place, torch.where(mine, 0, of_largest))
        found += [others.sum(1, keepdim=True), torch.where(mine, of_largest, 0)]
    # The process that has the maximum leaves its 1 out, and takes its derivative along.
    if shares.own:
        shifted = replaced(shifted, place, torch.where(mine, -math.inf, at_largest))
    rest = exponential(shifted).sum(1, keepdim=True) + torch.where(mine, at_largest.expm1(), 0)
    # A row in which some logit is nan or +inf is nan in each process that has such a logit, and so in the sum.
    rest, *sums = _groups.summed(torch.stack([rest, *found]), options.group).unbind()
    if shares.indices:
        total, others = shares.hard + shares.others, shares.others
    else:
        others, of_largest = sums[-2:]
        total = others + of_largest
    return _Known(maximum, rest, total, others, hidden.to(rest.dtype)), index, sums


def _statistics_parts(shifted: Tensor, shares: _Shares) -> list[Tensor]:
    """This process's parts of Σ e_c (y_c - m), and for probabilities t of Σ t_c (y_c - m) and Σ t_c."""
    shifted = shifted.detach()
    e = shifted.exp()
    weighted = (e * shifted).masked_fill(e == 0, 0).sum(1, keepdim=True)
    if shares.indices:
        return [weighted]
    t = shares.target.detach().to(shares.compute)
    return [weighted, dot(t, shifted), t.sum(1, keepdim=True)]


def _of_parts(in_triton: Any, tensors: Sequence[Any], options: Any) -> tuple[Tensor, Tensor]:
    """The same as `SplitCrossEntropy.forward`, from what a kernel has found of this process's classes."""
    own = in_triton.parts(*tensors, options)
    own = own._make(field.unsqueeze(1) for field in own)
    input, target, weight, sample_weight = tensors
    shares = _Shares(input, target, weight, sample_weight, options)
    maximum, index = _first_largest(own.maximum, own.largest, options)
    mine = shares.has(index)
    # From this process's maximum to that of all.
    change = own.maximum - maximum
    factor = change.exp()
    mass = (1 + own.rest).masked_fill(own.maximum == -math.inf, 0)

    def moved(weighed: Tensor, total: Tensor) -> Tensor:
        return weighed + (total * change).masked_fill(total == 0, 0)

    rest = torch.where(mine, own.rest + (maximum - maximum), mass * factor)
    if shares.indices:
        found = [torch.where(shares.inside, own.at_target - maximum, 0)]
        if shares.smooth:
            found.append(moved(own.weighed, own.total))
    else:
        found = [moved(own.weighed, own.total)]
    if options.statistics:
        found.append(((own.product + mass * change) * factor).masked_fill(factor == 0, 0))
        if not shares.indices:
            found += [moved(own.raw_weighed, own.raw), own.raw]
    if not shares.indices:
        found += [torch.where(mine, own.beside, own.total), own.total]
    rest, *sums = _groups.summed(torch.stack([rest, *found]), options.group).unbind()
    if shares.indices:
        total, others = shares.hard + shares.others, shares.others
    else:
        others, total = sums[-2:]
    # Of shares that cancel each other there is a gradient.
    cancelled = rest.isfinite() & (total == 0) if not shares.indices else torch.zeros_like(mine)
    hidden = shares.without_trace(total.masked_fill(cancelled, 1))
    maximum, rest = maximum.masked_fill(hidden, 0), rest.masked_fill(hidden, 0)
    most_likely: Any = None
    if options.statistics and not shares.indices:
        most_likely = _first_largest(own.most, own.most_likely, options)[1]
    return _finished(shares, _Known(maximum, rest, total, others, hidden.to(rest.dtype)), index, most_likely, sums)


def _finished(
    shares: _Shares, known: _Known, index: Tensor, most_likely: Tensor | None, sums: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The rows' losses; and what is known of them, with statistics where they are asked for."""
    options, log_rest = shares.options, known.rest.log1p()
    losses = shares.losses(log_rest, known.total, sums)
    if options.z_loss:
        log_sum_exp = (known.maximum + log_rest).masked_fill(known.total == 0, 0)
        losses = losses + options.z_loss * log_sum_exp.square()
    losses = shares.weighted(losses, known.total, known.hidden != 0)
    state = [field.detach() for field in known]
    if options.statistics:
        without = shares.without_trace(known.total)
        found = _statistics(known, index, most_likely, [part.detach() for part in sums], shares)
        state += [field.to(losses.dtype).masked_fill(without, 0) for field in found]
    return losses.squeeze(1), torch.cat([field.movedim(1, 0) for field in state])


def _statistics(
    known: _Known, index: Tensor, most_likely: Tensor | None, sums: list[Tensor], shares: _Shares
) -> list[Tensor]:
    """The first fields of `RowStatistics`."""
    rest = known.rest.detach()
    log_rest = rest.log1p()
    if shares.indices:
        target, weighted, log_probability = shares.target.unsqueeze(1), sums[-1], sums[0] - log_rest
    else:
        weighted, dot, whole = sums[1:4]
        log_probability = dot - whole * log_rest
        target = most_likely
    # Which of nan or infinite logits is the largest says nothing.
    correct = (index == target) & rest.isfinite()
    return [known.maximum + log_rest, log_probability, correct, log_rest - weighted / (1 + rest)]
