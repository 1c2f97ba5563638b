"""Independent truths: NumPy float64 for whole tensors, mpmath for single rows."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def cross_entropy_rows(
    logits: Array, target: Array, weight: Array | None = None, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Losses of (N, C) logits one by one, and their gradients, straight from the definition."""
    logits = np.asarray(logits, dtype=np.float64)
    rows, classes = logits.shape
    weight = np.ones(classes) if weight is None else np.asarray(weight, dtype=np.float64)
    losses, gradients = np.zeros(rows), np.zeros((rows, classes))
    for n in range(rows):
        if target.ndim == 1:
            if target[n] == ignore_index:
                continue
            share = np.zeros(classes)
            share[target[n]] = 1
        else:
            share = np.asarray(target[n], dtype=np.float64)
        share = weight * ((1 - label_smoothing) * share + label_smoothing / classes)
        shifted = logits[n] - logits[n].max()
        log_probability = shifted - np.log(np.exp(shifted).sum())
        losses[n] = -(share * log_probability).sum()
        gradients[n] = share.sum() * np.exp(log_probability) - share
    return losses, gradients


def cross_entropy_denominator(target: Array, weight: Array | None, ignore_index: int = -100) -> float:
    """What 'mean' divides by: class weights of the rows that count, or the number of rows for probabilities."""
    if target.ndim > 1:
        return float(target.shape[0])
    counted = target[target != ignore_index]
    return float(counted.size if weight is None else np.asarray(weight, dtype=np.float64)[counted].sum())


def exact_cross_entropy(logits: list[float], index: int) -> tuple[Any, list[Any]]:
    """-log softmax(logits)[index] and its gradient; the digits suffice for differences of logits up to 1400."""
    with mpmath.workdps(700):
        exponentials = [mpmath.exp(mpmath.mpf(float(x))) for x in logits]
        total = mpmath.fsum(exponentials)
        others = mpmath.fsum(e for j, e in enumerate(exponentials) if j != index)
        gradient = [e / total for e in exponentials]
        gradient[index] = -others / total
        return mpmath.log(total / exponentials[index]), gradient


def exact_textbook_cross_entropy(probability: float, delta: float) -> Any:
    """-log(probability + delta) with 50 digits."""
    with mpmath.workdps(50):
        return -mpmath.log(mpmath.mpf(float(probability)) + mpmath.mpf(delta))


def ulps(value: float, truth: Any, dtype: type[np.floating[Any]]) -> float:
    """The distance of `value` from `truth` in units of the last place of `truth`."""
    unit = float(np.spacing(dtype(abs(float(truth)))))
    return float(abs(mpmath.mpf(float(value)) - truth) / unit)


def extended_cross_entropy_rows(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    *,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """The same with a soft cap of the logits, then a z-loss for the rows that are not ignored, then sample weights."""
    logits = np.asarray(logits, dtype=np.float64)
    slope = np.ones_like(logits)
    if logit_softcap is not None:
        tanh = np.tanh(logits / logit_softcap)
        logits, slope = logit_softcap * tanh, 1 - tanh**2
    losses, gradients = cross_entropy_rows(logits, target, weight, label_smoothing=label_smoothing)
    exponentials = np.exp(logits)
    total = exponentials.sum(1)
    counted = target != -100 if target.ndim == 1 else np.ones(len(logits), dtype=bool)
    losses = losses + counted * z_loss * np.log(total) ** 2
    gradients += (counted * 2 * z_loss * np.log(total) / total)[:, None] * exponentials
    samples = np.ones(len(logits)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    return samples * losses, samples[:, None] * gradients * slope
