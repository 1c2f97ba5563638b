"""The operators in plain PyTorch: every device, every floating-point dtype, no compiler.

On the CPU a tensor is worked through in blocks that stay in cache: a block is read from memory once, its intermediates
never leave the cache, and no temporary of the input's size is allocated. On other devices one block is the whole
tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlosses import _validation
from torchlosses._numerics import compute_dtype, log_plus_delta
from torchlosses._options import RowStatistics, row_statistics
from torchlosses._reduction import reduce_rows, rows_in_mean, scale_gradient
from torchlosses.kernels.targets import along_classes, class_indices, effective_target, without_weight

# Elements of a block: 2 MiB of float32, large enough to hide the cost of calling an operation.
BLOCK = 1 << 19


# ---------------------------------------------------------------------------------------------------------------------
# Mean squared error, elementwise: loss = w (x - t)², d loss / dx = 2 w (x - t)
# ---------------------------------------------------------------------------------------------------------------------


def mse_forward(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, dtype: torch.dtype) -> Tensor:
    """Squared errors of two tensors of one shape and dtype; 'mean' divides by their number."""
    compute = compute_dtype(input, target, weight)
    if reduction == "none":
        losses = torch.empty_like(input, dtype=dtype)
        for x, t, w, out in _element_blocks(input, target, weight, losses):
            out.copy_(_squared_error(x, t, w, compute))
        return losses
    # A Python float holds the running sum of the blocks on the CPU in double precision.
    total: Tensor | float = 0.0
    for x, t, w, _ in _element_blocks(input, target, weight, None):
        block = _squared_error(x, t, w, compute).sum()
        total = total + (block.item() if x.device.type == "cpu" else block)
    mean = reduction == "mean"
    if isinstance(total, Tensor):
        return (total / input.numel() if mean else total).to(dtype)
    if mean:
        total = total / input.numel() if input.numel() else float("nan")
    return input.new_full((), total, dtype=dtype)


def mse_backward(grad_output: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """2 g w (x - t), where g is a number or has the shape of the input; 'mean' divides it by the number of elements."""
    compute = compute_dtype(input, target, weight)
    grad_input = torch.empty_like(input)
    scale = 2 * scale_gradient(grad_output.to(compute), reduction, input.numel())
    scale = scale.expand(input.shape)
    for x, t, w, g, out in _element_blocks(input, target, weight, scale, grad_input):
        in_place = out.dtype == compute
        error = torch.sub(x.to(compute), t.to(compute), out=out) if in_place else x.to(compute) - t.to(compute)
        error.mul_(g)
        if w is not None:
            error.mul_(w)
        if not in_place:
            out.copy_(error)
    return grad_input


def mse_with_gradient(input: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """The reduced loss, and its gradient by the input."""
    loss = mse_forward(input, target, None, reduction, input.dtype)
    return loss, mse_backward(torch.ones_like(loss), input, target, None, reduction)


def _squared_error(x: Tensor, t: Tensor, w: Tensor | None, compute: torch.dtype) -> Tensor:
    squared = (x.to(compute) - t.to(compute)).square_()
    return squared if w is None else squared.mul_(w)


# ---------------------------------------------------------------------------------------------------------------------
# Cross-entropy on logits. Per row: m = max x, e_j = exp(x_j - m), rest = Σ e_j - 1, -log p_j = log1p(rest) - (x_j - m)
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and for the backward the rows' maximum m and rest."""
    count = rows_in_mean(input, target, ignore_index) if reduction == "mean" else 1
    rows = _cross_entropy_rows(input, target, weight, None, ignore_index, label_smoothing, _PLAIN, False)
    losses, maximum, rest, _ = rows
    return reduce_rows(losses, reduction, count).to(dtype), maximum, rest


def cross_entropy_with_gradient(
    input: Tensor, target: Tensor, reduction: str, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """The reduced loss, and its gradient by the input."""
    options = (reduction, ignore_index, label_smoothing)
    loss, maximum, rest = cross_entropy_forward(input, target, None, *options, input.dtype)
    one = torch.ones_like(loss)
    return loss, cross_entropy_backward(one, input, target, None, maximum, rest, *options)


def cross_entropy_extended_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
    statistics: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with what a row's loss may have beside; and the rows' statistics, one after the other, or nothing."""
    extras = _Extras(z_loss, logit_softcap)
    rows = _cross_entropy_rows(input, target, weight, sample_weight, ignore_index, label_smoothing, extras, statistics)
    losses, maximum, rest, found = rows
    return reduce_rows(losses, reduction, 1).to(dtype), maximum, rest, found


class _Extras(NamedTuple):
    """What is done to the logits x, and what is added to a row's loss."""

    z_loss: float  # λ of λ l², l = log Σ exp(y_j)
    logit_softcap: float | None  # c of y = c tanh(x / c)

    def capped(self, x: Tensor) -> Tensor:
        return x if self.logit_softcap is None else (x / self.logit_softcap).tanh_().mul_(self.logit_softcap)


_PLAIN = _Extras(0.0, None)


def _cross_entropy_rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    extras: _Extras,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, maximum and rest of each row, and the fields of `RowStatistics`."""
    compute = compute_dtype(input, target, weight)
    classes = input.shape[1]
    rows = (input.shape[0], *input.shape[2:])
    weight = None if weight is None else weight.to(compute)
    inactive = None
    indices = target.dim() < input.dim()
    if indices:
        target, ignored = class_indices(target, classes, ignore_index)
        inactive = without_weight(ignored, target, weight, label_smoothing)
    if sample_weight is not None:
        sample_weight = sample_weight.to(compute)
        inactive = sample_weight == 0 if inactive is None else inactive | (sample_weight == 0)

    def step(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        y = extras.capped(x.to(compute))
        if indices:
            losses, maximum, rest = _index_rows(y, t.unsqueeze(1), weight, label_smoothing)
        else:
            losses, maximum, rest = _probability_rows(y, t.to(compute), weight, label_smoothing)
        if extras.z_loss:
            losses = losses + extras.z_loss * _log_sum_exp(maximum, rest, t, weight, label_smoothing, classes).square()
        return losses, maximum, rest, *(row_statistics(y, t, maximum, rest) if statistics else ())

    fields = len(RowStatistics._fields) if statistics else 0
    if classes and _is_one_block(input):
        results = list(step(input, target))
    else:
        results = [input.new_zeros(rows, dtype=compute) for _ in range(3 + fields)]
        for x, t, *out in _row_blocks(input, (target, *results)) if classes else ():
            for result, value in zip(out, step(x, t), strict=True):
                result.copy_(value)
    if sample_weight is not None:
        results[0] = results[0] * sample_weight
    if inactive is not None:
        results[0] = results[0].masked_fill(inactive, 0)
        results[3:] = [found.masked_fill(inactive, 0) for found in results[3:]]
    losses, maximum, rest, *found = results
    stacked = torch.stack([field.to(compute) for field in found]) if found else input.new_empty(0, dtype=compute)
    return losses, maximum, rest, stacked


def _log_sum_exp(
    maximum: Tensor, rest: Tensor, t: Tensor, weight: Tensor | None, label_smoothing: float, classes: int
) -> Tensor:
    """l of each row, and 0 where the target has no share, so that the row has no part in the loss."""
    log_sum_exp = maximum + torch.log1p(rest)
    if t.dim() > maximum.dim():
        total = effective_target(t.to(maximum.dtype), weight, label_smoothing).sum(1)
    elif weight is None:
        return log_sum_exp
    else:
        total = (1 - label_smoothing) * weight[t] + label_smoothing / classes * weight.sum()
    return log_sum_exp.masked_fill(total == 0, 0)


def _index_rows(x: Tensor, i: Tensor, weight: Tensor | None, label_smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, maximum and rest of each row, for class indices."""
    maximum = x.amax(1, keepdim=True)
    shifted = x - maximum
    shifted_target = shifted.gather(1, i)
    smooth = _smooth_sum(shifted, weight) if label_smoothing else None
    # The target's own term is left out of the sum and comes back as expm1: where the target is the maximum, that is
    # exactly 0, and log1p keeps the small remainder that 1 + remainder would round away.
    others = shifted.exp_().scatter_(1, i, 0).sum(1, keepdim=True)
    rest = others + torch.expm1(shifted_target)
    log_sum = torch.log1p(rest)
    loss = log_sum - shifted_target
    if weight is not None:
        loss = loss * weight[i]
    if smooth is not None:
        total = x.shape[1] if weight is None else weight.sum()
        loss = (1 - label_smoothing) * loss + (total * log_sum - smooth) * (label_smoothing / x.shape[1])
    return loss.squeeze(1), maximum.squeeze(1), rest.squeeze(1)


def _probability_rows(
    x: Tensor, t: Tensor, weight: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, maximum and rest of each row, for class probabilities."""
    maximum, i = x.max(1, keepdim=True)
    shifted = x - maximum
    share = effective_target(t, weight, label_smoothing)
    # 0 · log 0 = 0: a class without a share counts for nothing, also where its logit is -inf.
    weighted = (share * shifted).masked_fill_(share == 0, 0).sum(1, keepdim=True)
    # scatter_ hides a nan or +inf logit at the maximum; it has to reach the loss.
    rest = shifted.exp_().scatter_(1, i, 0).sum(1, keepdim=True) + (maximum - maximum)
    loss = share.sum(1, keepdim=True) * torch.log1p(rest) - weighted
    return loss.squeeze(1), maximum.squeeze(1), rest.squeeze(1)


def _smooth_sum(shifted: Tensor, weight: Tensor | None) -> Tensor:
    """Σ_c w_c (x_c - m), where a class of weight 0 counts for nothing, also where its logit is -inf."""
    if weight is None:
        return shifted.sum(1, keepdim=True)
    along = along_classes(weight, shifted)
    return (shifted * along).masked_fill_(along == 0, 0).sum(1, keepdim=True)


def cross_entropy_backward(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """g (A softmax(x) - a) for each row.

    a is the target's weighted share of each class, A its sum, and g the gradient of the row's loss, or of every row's,
    which 'mean' divides by the number of rows that are not ignored.
    """
    grad_rows = grad_output.to(compute_dtype(input, target, weight))
    if reduction == "mean":
        grad_rows = grad_rows / rows_in_mean(input, target, ignore_index)
    grad_input = torch.empty_like(input)
    rows = (grad_rows, input, target, weight, None, maximum, rest)
    _write_gradient(grad_input, *rows, ignore_index, label_smoothing, _PLAIN)
    return grad_input


def cross_entropy_backward_(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    """The same, written over the input."""
    options = ("sum", ignore_index, label_smoothing)
    grad_rows = scale_gradient(grad_output, reduction, rows_in_mean(input, target, ignore_index)).expand(maximum.shape)
    for x, g, t, m, r in _row_blocks(input, (grad_rows, target, maximum, rest)):
        x.copy_(cross_entropy_backward(g, x, t, weight, m, r, *options))


def cross_entropy_extended_backward(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
) -> Tensor:
    """g s ((A + 2 λ l) softmax(y) - a) dy/dx for each row, y = c tanh(x / c), with g one number or one a row."""
    grad_input = torch.empty_like(input)
    rows = (grad_output, input, target, weight, sample_weight, maximum, rest)
    _write_gradient(grad_input, *rows, ignore_index, label_smoothing, _Extras(z_loss, logit_softcap))
    return grad_input


def cross_entropy_extended_backward_(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    *options: Any,
) -> None:
    """The same, written over the input."""
    grad_rows = grad_output.expand(maximum.shape)
    for x, g, t, s, m, r in _row_blocks(input, (grad_rows, target, sample_weight, maximum, rest)):
        x.copy_(cross_entropy_extended_backward(g, x, t, weight, s, m, r, *options))


def _write_gradient(
    grad_input: Tensor,
    grad_rows: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    maximum: Tensor,
    rest: Tensor,
    ignore_index: int,
    label_smoothing: float,
    extras: _Extras,
) -> None:
    if not input.numel():
        return
    compute = compute_dtype(input, target, weight)
    indices = target.dim() < input.dim()
    grad_rows = grad_rows.to(compute).expand(maximum.shape)
    weight = None if weight is None else weight.to(compute)
    inactive = None
    if indices:
        target, ignored = class_indices(target, input.shape[1], ignore_index)
        inactive = without_weight(ignored, target, weight, label_smoothing)
    if sample_weight is not None:
        sample_weight = sample_weight.to(compute)
        grad_rows = grad_rows * sample_weight
        inactive = sample_weight == 0 if inactive is None else inactive | (sample_weight == 0)
    if inactive is not None:
        # A mean over no row divides by zero; its rows are inactive and their gradient is 0, not 0 · inf.
        grad_rows = grad_rows.masked_fill(inactive, 0)
    cap = extras.logit_softcap
    rows = (grad_input, grad_rows, target, inactive, maximum, rest)
    for x, out, g, t, none, m, r in _row_blocks(input, rows):
        y = extras.capped(x if cap is None else x.to(compute))
        gradient = out if cap is None else torch.empty_like(y)
        slope = 0.0
        if extras.z_loss:
            # dl/dy = p
            log_sum_exp = _log_sum_exp(m, r, t, weight, label_smoothing, x.shape[1])
            slope = (2 * extras.z_loss * log_sum_exp).unsqueeze(1)
        if indices:
            t = t.unsqueeze(1)
            _index_gradient(y, gradient, g.unsqueeze(1), t, slope, (m, r), weight, label_smoothing, compute)
        else:
            _probability_gradient(y, gradient, g.unsqueeze(1), t.to(compute), slope, weight, label_smoothing, compute)
        if cap is not None:
            # dy/dx = 1 - tanh² = 4 e / (1 + e)², e = exp(-2 |x / c|), which keeps its digits where tanh is close to 1.
            e = (x.to(compute) / cap).abs_().mul_(-2).exp_()
            out.copy_(gradient.mul_(e.mul(4).div_(e.add_(1).square_())))
        if none is not None:
            out.masked_fill_(none.unsqueeze(1), 0)


def _index_gradient(
    x: Tensor,
    out: Tensor,
    g: Tensor,
    i: Tensor,
    slope: Tensor | float,
    stats: tuple[Tensor, Tensor],
    weight: Tensor | None,
    label_smoothing: float,
    compute: torch.dtype,
) -> None:
    maximum, rest = (value.unsqueeze(1) for value in stats)
    shifted = x.gather(1, i).to(compute) - maximum
    total, e = 1 + rest, shifted.exp()
    # p_t - 1 = -Σ_{j≠t} p_j keeps the digits that a subtraction of two numbers close to 1 loses.
    others = torch.where(shifted == 0, rest, 1 + (rest - e))
    hard = (g if weight is None else g * weight[i]) * (1 - label_smoothing)
    smooth = g * (label_smoothing / x.shape[1])
    scale = hard
    if label_smoothing:
        scale = hard + smooth * (x.shape[1] if weight is None else weight.sum())
    at_target = -hard * (others / total)
    if label_smoothing:
        at_target = at_target + (scale - hard) * (e / total) - smooth * (1 if weight is None else weight[i])
    if isinstance(slope, Tensor):
        scale = scale + g * slope
        at_target = at_target + g * slope * (e / total)
    gradient = _softmax(x, out, compute).mul_(scale)
    if label_smoothing:
        gradient.sub_(smooth if weight is None else smooth * along_classes(weight, gradient))
    gradient.scatter_(1, i, at_target)
    if gradient is not out:
        out.copy_(gradient)


def _probability_gradient(
    x: Tensor,
    out: Tensor,
    g: Tensor,
    t: Tensor,
    slope: Tensor | float,
    weight: Tensor | None,
    label_smoothing: float,
    compute: torch.dtype,
) -> None:
    share = effective_target(t, weight, label_smoothing)
    total = share.sum(1, keepdim=True)
    gradient = _softmax(x, out, compute)
    # At a class that has more than half, A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j keeps the digits that A p - a loses.
    i = gradient.argmax(1, keepdim=True)
    most_probable = gradient.gather(1, i)
    others = share.scatter(1, i, 0).sum(1, keepdim=True) - total * gradient.scatter(1, i, 0).sum(1, keepdim=True)
    plain = total * most_probable - share.gather(1, i)
    at_most_probable = torch.where(most_probable > 0.5, others, plain)
    if isinstance(slope, Tensor):
        at_most_probable = at_most_probable + slope * most_probable
        total = total + slope
    at_most_probable = at_most_probable * g
    gradient.mul_(total).sub_(share).mul_(g).scatter_(1, i, at_most_probable)
    if gradient is not out:
        out.copy_(gradient)


def _softmax(x: Tensor, out: Tensor, compute: torch.dtype) -> Tensor:
    """softmax over dimension 1 in `compute`, written to `out` where that has the dtype."""
    if out.dtype == compute:
        return torch.softmax(x, 1, out=out)
    return torch.softmax(x, 1, dtype=compute)


# ---------------------------------------------------------------------------------------------------------------------
# The textbook cross-entropy error on probabilities: loss = -Σ t log(p + δ), d loss / dp = -t / (p + δ)
# ---------------------------------------------------------------------------------------------------------------------


def cee_forward(
    input: Tensor, target: Tensor, reduction: str, delta: float, validate_args: bool, dtype: torch.dtype
) -> Tensor:
    """The cross-entropy error; 'mean' divides by the number of rows."""
    compute = compute_dtype(input, target if target.is_floating_point() else None)
    losses = input.new_empty((input.shape[0], *input.shape[2:]), dtype=compute)
    if target.dim() < input.dim():
        target, _ = class_indices(target, input.shape[1], None)
        for p, i, out in _row_blocks(input, (target, losses)):
            if validate_args:
                _check_probabilities(p)
            out.copy_(log_plus_delta(p.gather(1, i.unsqueeze(1)).to(compute), delta).neg_().squeeze(1))
    else:
        for p, t, out in _row_blocks(input, (target, losses)):
            if validate_args:
                _check_probabilities(p)
                _check_one_hot(t)
            product = log_plus_delta(p.to(compute), delta).mul_(t)
            if delta == 0:
                product.masked_fill_(t == 0, 0)
            torch.sum(product, 1, out=out).neg_()
    return reduce_rows(losses, reduction, losses.numel()).to(dtype)


def cee_backward(grad_output: Tensor, input: Tensor, target: Tensor, delta: float, reduction: str) -> Tensor:
    """-g t / (p + δ), where g is a number or a row's; 'mean' divides it by the number of rows."""
    compute = compute_dtype(input, target if target.is_floating_point() else None)
    rows = (input.shape[0], *input.shape[2:])
    grad_rows = scale_gradient(grad_output.to(compute).neg(), reduction, math.prod(rows)).expand(rows)
    if target.dim() < input.dim():
        grad_input = torch.zeros_like(input)
        if input.numel():
            i = target.unsqueeze(1)
            at_target = grad_rows.unsqueeze(1) / (input.gather(1, i).to(compute) + delta)
            grad_input.scatter_(1, i, at_target.to(input.dtype))
        return grad_input
    grad_input = torch.empty_like(input)
    for p, t, g, out in _row_blocks(input, (target, grad_rows, grad_input)):
        gradient = torch.div(t.to(compute), p.to(compute) + delta)
        if delta == 0:
            gradient.masked_fill_(t == 0, 0)
        out.copy_(gradient.mul_(g.unsqueeze(1)))
    return grad_input


def _check_probabilities(p: Tensor) -> None:
    if not p.numel():
        return
    tolerance = 4 * torch.finfo(p.dtype).eps
    lowest, highest = (float(value) for value in p.aminmax())
    if math.isnan(lowest):
        # nan has taken the place of both; it may pass, what stands beside it may not.
        _check_probabilities(p[~p.isnan()])
    if lowest < -tolerance or highest > 1 + tolerance:
        _validation.raise_not_probabilities(lowest, highest)


def _check_one_hot(t: Tensor) -> None:
    if t.is_floating_point() or t.dtype == torch.bool or not t.numel():
        return
    lowest, highest = (int(value) for value in t.aminmax())
    if lowest < 0 or highest > 1:
        _validation.raise_not_one_hot(lowest, highest)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------------------


def _is_one_block(tensor: Tensor) -> bool:
    return tensor.numel() <= BLOCK or tensor.device.type != "cpu"


def _element_blocks(first: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Views of tensors of one shape, a block of elements at a time; None stays None."""
    tensors = (first, *others)
    if _is_one_block(first):
        yield tensors
        return
    if all(tensor is None or tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(None if tensor is None else tensor.view(-1) for tensor in tensors)
    yield from _split(tensors)


def _split(tensors: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    first = tensors[0]
    if first.numel() <= BLOCK:
        yield tensors
        return
    dimension = next(d for d, size in enumerate(first.shape) if size > 1)
    length = first.shape[dimension]
    step = max(1, BLOCK * length // first.numel())
    for start in range(0, length, step):
        stop = min(step, length - start)
        yield from _split(tuple(None if t is None else t.narrow(dimension, start, stop) for t in tensors))


def _row_blocks(input: Tensor, others: tuple[Tensor | None, ...]) -> Iterator[tuple[Any, ...]]:
    """Views of some rows at a time: `others` have the input's dimensions, or those without the class dimension 1."""
    tensors = (input, *others)
    if _is_one_block(input):
        yield tensors
        return
    samples = max(1, BLOCK // max(1, input[0].numel()))
    for start in range(0, input.shape[0], samples):
        stop = min(samples, input.shape[0] - start)
        some = tuple(None if tensor is None else tensor.narrow(0, start, stop) for tensor in tensors)
        if input.dim() == 2 or stop * input[0].numel() <= BLOCK:
            yield some
            continue
        positions = max(1, BLOCK // input.shape[1])
        for first in range(0, input.shape[2], positions):
            last = min(positions, input.shape[2] - first)
            yield tuple(None if tensor is None else tensor.narrow(-1, first, last) for tensor in some)
