"""Losses and gradients in NumPy float64, from their definitions, for the kernels in Triton to be compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]


class Options(NamedTuple):
    """The fields of every loss's options."""

    reduction: str = "mean"
    empty: float = float("nan")
    dtype: torch.dtype = torch.float32
    gradients: int = 1
    ignore_index: Any = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    statistics: bool = False
    inplace_backward: bool = False
    delta: float = 1.0
    beta: float = 1.0
    validate_args: bool = False
    first: int = 0
    total: int = 0


class Rows(NamedTuple):
    """What is known of (N, C) logits."""

    losses: Array
    gradients: Array
    counted: Array
    statistics: Array


def numbers(tensor: torch.Tensor | None) -> Any:
    """In float64, or as they are if they are integers."""
    if tensor is None:
        return None
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()


def cross_entropy(x: Array, target: Array, weight: Array | None, sample_weight: Array | None, options: Options) -> Rows:
    """Row by row, of (N, C) logits and (N) indices or (N, C) probabilities."""
    rows, classes = x.shape
    weight = np.ones(classes) if weight is None else weight
    samples = np.ones(rows) if sample_weight is None else sample_weight
    losses, gradients = np.zeros(rows), np.zeros((rows, classes))
    statistics, counted = np.zeros((4, rows)), np.ones(rows, dtype=bool)
    for n in range(rows):
        indices = target.ndim == 1
        if indices and target[n] == options.ignore_index:
            counted[n] = False
            continue
        if samples[n] == 0 or (indices and not options.label_smoothing and weight[target[n]] == 0):
            continue
        raw = np.eye(classes)[target[n]] if indices else target[n]
        share = weight * ((1 - options.label_smoothing) * raw + options.label_smoothing / classes)
        y, slope = options.logit_scale * x[n], np.full(classes, options.logit_scale)
        if options.logit_softcap is not None:
            bent = np.tanh(y / options.logit_softcap)
            y, slope = options.logit_softcap * bent, options.logit_scale * (1 - bent**2)
        m = y.max()
        first = int(y.argmax())
        e = np.exp(y - m)
        e[first] = 0
        log_rest = np.log1p(e.sum())
        minus_log_p = log_rest - (y - m)
        p = np.exp(-minus_log_p)
        # p - 1 of the most likely class, with its digits.
        minus_rest = -e.sum() / (1 + e.sum())
        total = share.sum()
        used = share != 0
        drawn = options.z_loss if total != 0 else 0.0
        losses[n] = samples[n] * ((share[used] * minus_log_p[used]).sum() + drawn * (m + log_rest) ** 2)
        by_y = np.where(np.arange(classes) == first, total * minus_rest + (total - share), total * p - share)
        by_y += 2 * drawn * (m + log_rest) * p
        gradients[n] = samples[n] * by_y * slope
        positive, shown = p > 0, raw != 0
        statistics[0, n] = m + log_rest
        statistics[1, n] = -(raw[shown] * minus_log_p[shown]).sum()
        statistics[2, n] = first == (target[n] if indices else int(target[n].argmax()))
        statistics[3, n] = (p[positive] * minus_log_p[positive]).sum()
    return Rows(losses, gradients, counted, statistics)


def log_probs(x: Array, target: Array, options: Options) -> tuple[Array, Array, Array, Array, Array]:
    """Log-probability, entropy and hit of each row of (N, C) logits, and the gradients of the first two."""
    rows, classes = x.shape
    log_probability, entropy, correct = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    of_log_probability, of_entropy = np.zeros((rows, classes)), np.zeros((rows, classes))
    for n in range(rows):
        if target[n] == options.ignore_index:
            continue
        y, slope = options.logit_scale * x[n], np.full(classes, options.logit_scale)
        if options.logit_softcap is not None:
            bent = np.tanh(y / options.logit_softcap)
            y, slope = options.logit_softcap * bent, options.logit_scale * (1 - bent**2)
        first = int(y.argmax())
        e = np.exp(y - y.max())
        e[first] = 0
        minus_log_p = np.log1p(e.sum()) - (y - y.max())
        p = np.exp(-minus_log_p)
        positive = p > 0
        entropy[n] = (p[positive] * minus_log_p[positive]).sum()
        log_probability[n], correct[n] = -minus_log_p[target[n]], first == target[n]
        of_entropy[n, positive] = (p * slope)[positive] * (minus_log_p[positive] - entropy[n])
        # 1 - p of the most likely class, with its digits.
        by_y = np.where(np.arange(classes) == target[n], 1 - p, -p)
        if first == target[n]:
            by_y[first] = e.sum() / (1 + e.sum())
        of_log_probability[n] = by_y * slope
    return log_probability, entropy, correct, of_log_probability, of_entropy


def squared_error(x: Array, t: Array, q: Array, options: Options) -> tuple[Array, Array]:
    return (x - t) ** 2, 2 * (x - t)


def huber(x: Array, t: Array, q: Array, options: Options) -> tuple[Array, Array]:
    e, d = x - t, options.delta
    return np.where(abs(e) <= d, e**2 / 2, d * (abs(e) - d / 2)), np.clip(e, -d, d)


def smooth_l1(x: Array, t: Array, q: Array, options: Options) -> tuple[Array, Array]:
    e, b = x - t, options.beta
    inside = abs(e) < b
    divisor = b if b else 1.0
    return np.where(inside, e**2 / (2 * divisor), abs(e) - b / 2), np.where(inside, e / divisor, np.sign(e))


def binary_cross_entropy(x: Array, t: Array, q: Array, options: Options) -> tuple[Array, Array]:
    t = (1 - options.label_smoothing) * t + options.label_smoothing / 2
    positive, negative = q * t, 1 - t
    tail = np.log1p(np.exp(-abs(x)))
    with np.errstate(invalid="ignore"):
        loss = np.where(positive == 0, 0, positive * (np.maximum(-x, 0) + tail))
        loss += np.where(negative == 0, 0, negative * (np.maximum(x, 0) + tail))
    sigmoid = np.where(x >= 0, 1, np.exp(-abs(x))) / (1 + np.exp(-abs(x)))
    complement = np.where(x >= 0, np.exp(-abs(x)), 1) / (1 + np.exp(-abs(x)))
    return loss, negative * sigmoid - positive * complement


def textbook(p: Array, target: Array, sample_weight: Array | None, options: Options) -> tuple[Array, Array]:
    """Losses and gradients of (N, C) probabilities."""
    share = np.eye(p.shape[1])[target] if target.ndim == 1 else target.astype(float)
    samples = np.ones(len(p)) if sample_weight is None else sample_weight
    counts = (samples[:, None] != 0) & ((share != 0) | (options.delta != 0))
    near = np.where(counts, p, 0.5)
    loss = -np.where(counts, share * np.log(near + options.delta), 0).sum(1) * samples
    return loss, -np.where(counts, share / (near + options.delta), 0) * samples[:, None]
