"""Random calls of every loss, and how far ours and torch's are from a wider computation, forward and backward.

    python -m tests.accuracy SEED COUNT

prints each call in which ours is further off by more than chance, and a line for each loss that is on the whole.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import torchlosses

Array = NDArray[Any]
# 64 digits of the significand on x86, 113 elsewhere; where it is no wider than float64, that is left out.
WIDE = np.longdouble
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
if np.finfo(WIDE).nmant > np.finfo(np.float64).nmant:
    DTYPES.append(torch.float64)
REDUCTIONS = ("mean", "sum", "none")


class Call(NamedTuple):
    """One call: ours and its peer are functions of the input; the truth is one of all tensors, widened."""

    name: str
    ours: Callable[[Tensor], Tensor]
    peer: Callable[[Tensor], Tensor]
    truth: Callable[[Array], tuple[Array, Array]]  # the rows' losses, and their gradients
    input: Tensor
    reduction: str
    denominator: Any


def wide(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().astype(WIDE)


def draws(seed: int, count: int) -> Iterator[Call]:
    """`count` calls of each loss."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        for draw in (_elementwise, _cross_entropy, _cee, _linear, _log_probs):
            yield draw(rng)


def _tensor(rng: np.random.Generator, shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> Tensor:
    # Half of them of one scale, half of a range of scales.
    values = rng.standard_normal(shape) * scale
    if rng.random() < 0.5:
        values = values * 10.0 ** rng.uniform(-2, 0, shape)
    return torch.from_numpy(np.asarray(values)).to(dtype)


def _choice(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _elementwise(rng: np.random.Generator) -> Call:
    name = _choice(rng, ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"))
    dtype, reduction = _choice(rng, DTYPES), _choice(rng, REDUCTIONS)
    shape = tuple(int(rng.integers(1, limit)) for limit in _choice(rng, ((4000,), (60, 60), (5, 20, 30))))
    scale = 10.0 ** rng.uniform(-2, 1)
    input, target = _tensor(rng, shape, scale, dtype), _tensor(rng, shape, scale, dtype)
    options: dict[str, Any] = {"reduction": reduction}
    weight = torch.from_numpy(rng.uniform(0.1, 2, shape)).to(dtype) if rng.random() < 0.4 else None
    if name == "huber_loss":
        options["delta"] = float(scale * rng.uniform(0.1, 3))
    if name == "smooth_l1_loss":
        options["beta"], weight = float(scale * rng.uniform(0.1, 3)), None
    if name == "binary_cross_entropy_with_logits":
        target = torch.from_numpy(rng.random(shape)).to(dtype)
    if weight is not None:
        options["weight"] = weight
    t, w = wide(target), WIDE(1) if weight is None else wide(weight)

    def truth(x: Array) -> tuple[Array, Array]:
        e = x - t
        if name == "mse_loss":
            return w * e * e, 2 * w * e
        if name == "huber_loss":
            delta = WIDE(options["delta"])
            inside = np.clip(e, -delta, delta)
            return w * inside * (e - inside / 2), w * inside
        if name == "smooth_l1_loss":
            beta = WIDE(options["beta"])
            inside = np.clip(e, -beta, beta)
            return inside * (e - inside / 2) / beta, inside / beta
        opposite = (1 - t) * (np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))
        event = t * (np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x))))
        sigmoid, rest = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        return w * (opposite + event), w * ((1 - t) * sigmoid - t * rest)

    denominator = w.sum() if name == "mse_loss" and weight is not None else WIDE(input.numel())
    ours, peer = getattr(torchlosses, name), getattr(F, name)
    return Call(
        f"{name} {dtype} {shape} {sorted(options)} {reduction}",
        lambda x: ours(x, target, **options),
        lambda x: peer(x, target, **options),
        truth,
        input,
        reduction,
        denominator,
    )


def _shares(rng: np.random.Generator, rows: int, classes: int, dtype: torch.dtype) -> Tensor:
    values = rng.dirichlet(np.full(classes, rng.uniform(0.2, 3)), rows)
    return torch.from_numpy(values).to(dtype)


def _softmax(y: Array) -> tuple[Array, Array, Array]:
    """Probabilities, their logarithms, and log Σ exp."""
    shifted = y - y.max(1, keepdims=True)
    total = np.exp(shifted).sum(1, keepdims=True)
    log_probability = shifted - np.log(total)
    return np.exp(log_probability), log_probability, y.max(1) + np.log(total[:, 0])


def _cross_entropy_of(
    rng: np.random.Generator, rows: int, classes: int, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Any], dict[str, Any], Callable[[Array], tuple[Array, Array]], Any]:
    """A target, torch's options and ours, the truth of the logits, and what a mean divides by."""
    indices = rng.random() < 0.6
    target = torch.from_numpy(rng.integers(0, classes, rows)) if indices else _shares(rng, rows, classes, dtype)
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["label_smoothing"] = float(rng.uniform(0.01, 0.5))
    weight = torch.from_numpy(rng.uniform(0.1, 2, classes)).to(dtype) if rng.random() < 0.4 else None
    if weight is not None:
        options["weight"] = weight
    if indices and rows > 1 and rng.random() < 0.3:
        target[0] = -100
    ours = {"z_loss": float(rng.uniform(0.001, 0.1))} if rng.random() < 0.2 else {}
    w = np.ones(classes, WIDE) if weight is None else wide(weight)
    counted = target.numpy() != -100 if indices else np.ones(rows, bool)
    share = np.zeros((rows, classes), WIDE)
    if indices:
        share[np.arange(rows)[counted], target.numpy()[counted]] = 1
    else:
        share = wide(target)
    smoothing = WIDE(options.get("label_smoothing", 0.0))
    share = w * ((1 - smoothing) * share + smoothing / classes) * counted[:, None]
    pull = WIDE(ours.get("z_loss", 0.0))

    def truth(y: Array) -> tuple[Array, Array]:
        p, log_p, log_sum_exp = _softmax(y)
        z = pull * counted
        losses = -(share * log_p).sum(1) + z * log_sum_exp**2
        return losses, (share.sum(1, keepdims=True) + (2 * z * log_sum_exp)[:, None]) * p - share

    denominator = WIDE(rows) if not indices else w[target.numpy()[counted]].sum()
    return target, options, ours, truth, denominator


def _peer_of_logits(y: Tensor, target: Tensor, options: dict[str, Any], ours: dict[str, Any], reduction: str) -> Tensor:
    loss = F.cross_entropy(y, target, reduction=reduction, **options)
    if not ours:
        return loss
    counted = target != -100 if target.dim() == 1 else torch.ones(len(y), dtype=torch.bool)
    drawn = ours["z_loss"] * y.logsumexp(1).square() * counted
    if reduction == "none":
        return loss + drawn
    if reduction == "sum":
        return loss + drawn.sum()
    weight = options.get("weight")
    rows = len(y) if target.dim() > 1 else counted.sum() if weight is None else weight[target[counted]].sum()
    return loss + drawn.sum() / rows


def _cross_entropy(rng: np.random.Generator) -> Call:
    dtype, reduction = _choice(rng, DTYPES), _choice(rng, REDUCTIONS)
    rows, classes = (int(rng.integers(1, limit)) for limit in _choice(rng, ((60, 60), (8, 500), (300, 8))))
    classes += 1
    input = _tensor(rng, (rows, classes), 10.0 ** rng.uniform(-2, 1.3), dtype)
    target, options, own, truth, denominator = _cross_entropy_of(rng, rows, classes, dtype)
    name = f"cross_entropy {dtype} {(rows, classes)} {target.dtype} {sorted({**options, **own})} {reduction}"
    return Call(
        name,
        lambda y: torchlosses.cross_entropy(y, target, reduction=reduction, **options, **own),
        lambda y: _peer_of_logits(y, target, options, own, reduction),
        truth,
        input,
        reduction,
        denominator,
    )


def _cee(rng: np.random.Generator) -> Call:
    dtype, reduction = _choice(rng, DTYPES), _choice(rng, REDUCTIONS)
    rows, classes = int(rng.integers(1, 200)), int(rng.integers(2, 40))
    input = _shares(rng, rows, classes, dtype)
    if rng.random() < 0.3:
        input = input.masked_fill(torch.from_numpy(rng.random((rows, classes)) < 0.1), 0)
    indices = rng.random() < 0.5
    target = torch.from_numpy(rng.integers(0, classes, rows)) if indices else _shares(rng, rows, classes, dtype)
    delta = float(_choice(rng, (1e-7, 1e-4)))
    share = np.eye(classes, dtype=WIDE)[target.numpy()] if indices else wide(target)

    def peer(p: Tensor) -> Tensor:
        t = F.one_hot(target, classes).to(dtype) if indices else target
        losses = -(t * torch.log(p + delta)).sum(1)
        return losses if reduction == "none" else getattr(losses, reduction)()

    def truth(p: Array) -> tuple[Array, Array]:
        return -(share * np.log(p + WIDE(delta))).sum(1), -share / (p + WIDE(delta))

    return Call(
        f"cee_loss {dtype} {(rows, classes)} {target.dtype} delta={delta} {reduction}",
        lambda p: torchlosses.cee_loss(p, target, delta=delta, reduction=reduction),
        peer,
        truth,
        input,
        reduction,
        WIDE(rows),
    )


def _linear(rng: np.random.Generator) -> Call:
    dtype, reduction = _choice(rng, DTYPES), _choice(rng, REDUCTIONS)
    rows, classes, features = int(rng.integers(1, 40)), int(rng.integers(2, 60)), int(rng.integers(1, 20))
    input = _tensor(rng, (rows, features), 1.0, dtype)
    matrix = _tensor(rng, (classes, features), 10.0 ** rng.uniform(-2, 0.5), dtype)
    target, options, own, of_logits, denominator = _cross_entropy_of(rng, rows, classes, dtype)
    w = wide(matrix)

    def truth(x: Array) -> tuple[Array, Array]:
        losses, by_logits = of_logits(x @ w.T)
        return losses, by_logits @ w

    def ours(x: Tensor) -> Tensor:
        return torchlosses.linear_cross_entropy(x, matrix, target, reduction=reduction, **options, **own)

    name = f"linear_cross_entropy {dtype} {(rows, features, classes)} {target.dtype} {sorted({**options, **own})}"
    return Call(
        f"{name} {reduction}",
        ours,
        lambda x: _peer_of_logits(F.linear(x, matrix), target, options, own, reduction),
        truth,
        input,
        reduction,
        denominator,
    )


def _log_probs(rng: np.random.Generator) -> Call:
    dtype = _choice(rng, DTYPES)
    rows, classes = (int(rng.integers(1, limit)) for limit in _choice(rng, ((60, 60), (8, 500), (300, 8))))
    input = _tensor(rng, (rows, classes), 10.0 ** rng.uniform(-2, 1.3), dtype)
    target = torch.from_numpy(rng.integers(0, classes, rows))
    g, h = (float(rng.uniform(0.1, 2)) for _ in range(2))

    def ours(y: Tensor) -> Tensor:
        log_probability, entropy, _ = torchlosses.log_probs(y, target)
        return torch.stack([g * log_probability, h * entropy], 1)

    def peer(y: Tensor) -> Tensor:
        log_p = y.to(torch.promote_types(dtype, torch.float32)).log_softmax(1)
        return torch.stack([g * log_p.gather(1, target[:, None])[:, 0], -h * (log_p.exp() * log_p).sum(1)], 1)

    def truth(y: Array) -> tuple[Array, Array]:
        p, log_p, _ = _softmax(y)
        entropy = -(p * log_p).sum(1, keepdims=True)
        values = np.concatenate([g * log_p[np.arange(rows), target, None], h * entropy], 1)
        return values, g * (np.eye(classes, dtype=WIDE)[target] - p) - h * p * (log_p + entropy)

    return Call(f"log_probs {dtype} {(rows, classes)}", ours, peer, truth, input, "none", WIDE(1))


# Which of two sums of rounding errors is the larger is chance in a single call: the factor, and the units of the last
# place, that ours may be further off. With 1.5 and 2 it is in one of a hundred calls with label smoothing, where
# torch's errors are the larger by two thirds on the average; so a single call shows faults only. A product of matrices
# in front doubles what chance does.
FACTOR, LIMIT = 2.0, 6.0
# What says who is further off is the average over 20 calls of a loss and more.
MEAN_FACTOR, MEAN_LIMIT = 1.1, 1.0


class Found(NamedTuple):
    """The largest errors of one tensor, and the space between numbers of its dtype at its largest entry."""

    what: str
    ours: float
    peer: float
    ulp: float
    chance: float

    def is_worse(self) -> bool:
        """Ours is further off than torch's, by more than chance."""
        return not self.ours <= self.chance * max(FACTOR * self.peer, LIMIT * self.ulp)


def compare(call: Call) -> list[Found]:
    """Of the loss and of the gradient, for an incoming gradient of 1."""
    rows, gradients = call.truth(wide(call.input))
    scale = 1 / call.denominator if call.reduction == "mean" else WIDE(1)
    right = rows if call.reduction == "none" else rows.sum() * scale
    gradients = gradients * scale
    errors: list[list[float]] = []
    for loss in (call.ours, call.peer):
        leaf = call.input.clone().requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        pairs = ((value, right), (gradient, gradients))
        errors.append([_error(found, truth) for found, truth in pairs])
    return [
        Found(what, ours, peer, _ulp(truth, call.input.dtype), 2.0 if call.name.startswith("linear") else 1.0)
        for what, truth, ours, peer in zip(("loss", "gradient"), (right, gradients), *errors, strict=True)
    ]


def _error(found: Tensor, truth: Array) -> float:
    """The largest; what is too large for the dtype is infinite there."""
    largest = torch.finfo(found.dtype).max
    values, expected = wide(found), np.where(np.abs(truth) > largest, np.copysign(np.inf, truth), truth)
    off = np.subtract(values, expected, where=values != expected, out=np.zeros_like(expected))
    return float(np.abs(off).max(initial=0))


def _ulp(truth: Array, dtype: torch.dtype) -> float:
    finfo = torch.finfo(dtype)
    largest = min(float(np.abs(truth).max(initial=0)), finfo.max)
    return float(max(finfo.eps * 2.0 ** np.floor(np.log2(max(largest, finfo.tiny))), finfo.smallest_normal * finfo.eps))


def worse(seed: int, count: int) -> list[str]:
    """The calls in which ours is further off, and the losses that are on the whole, in words."""
    told, all_of = [], defaultdict(list)
    for call in draws(seed, count):
        for found in compare(call):
            if found.is_worse():
                told.append(
                    f"{call.name}, {found.what}: ours {found.ours:.3g}, torch's {found.peer:.3g}, "
                    f"an ulp is {found.ulp:.3g}"
                )
            loss, dtype, *_ = call.name.split()
            all_of[loss, dtype, found.what].append((found.ours / found.ulp, found.peer / found.ulp))
    for what, pairs in all_of.items():
        ours, peer = (sum(each) / len(pairs) for each in zip(*pairs, strict=True))
        if len(pairs) >= 20 and ours > max(MEAN_FACTOR * peer, MEAN_LIMIT):
            told.append(f"{' '.join(what)}, {len(pairs)} calls: ours {ours:.2f} ulp on average, torch's {peer:.2f}")
    return told


if __name__ == "__main__":
    print(*worse(int(sys.argv[1]), int(sys.argv[2])), sep="\n")
