"""The textbook formulas and their gradients in NumPy float64: the oracle against which the losses are checked.

Written to be read beside the text, one formula a line. Imports no torch and shares no code with the losses.

Source: K. Saito, *Deep Learning from Scratch* (2016), section 4.2, with 1/n in place of 1/2 for the squared error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def mean_squared_error(y: ArrayLike, t: ArrayLike) -> np.float64:
    """(1/n) Σ (y - t)², over all n elements, in the squared unit of t.

    Args:
        y: Predictions, a vector or a batch.
        t: True values, of the shape of `y`.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
        >>> print(round(mean_squared_error(y, np.eye(10)[2]), 12))
        0.0195
    """
    y, t = _same_shape(y, t)
    return np.float64(np.sum((y - t) ** 2) / y.size)


def mean_squared_error_gradient(y: ArrayLike, t: ArrayLike) -> Float64:
    """The gradient of `mean_squared_error` with respect to y: (2/n) (y - t)."""
    y, t = _same_shape(y, t)
    return 2 / y.size * (y - t)


def cross_entropy_error(y: ArrayLike, t: ArrayLike, delta: float = 1e-7) -> np.float64:
    """-Σ t log(y + delta), in nats; for a batch, its mean over the samples.

    Args:
        y: Probabilities, a vector of C classes or a batch of shape (N, C).
        t: One-hot or probabilities of the shape of `y`, or class indices: a number for a vector, shape (N) for a batch.
        delta: Keeps log 0 finite.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> y = [0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0]
        >>> print(cross_entropy_error(y, np.eye(10)[2]))
        0.510825457099338
    """
    y, t = _probabilities_and_one_hot(y, t)
    return np.float64(-np.sum(t * np.log(y + delta)) / _samples(y))


def cross_entropy_error_gradient(y: ArrayLike, t: ArrayLike, delta: float = 1e-7) -> Float64:
    """The gradient of `cross_entropy_error` with respect to y: -t / (y + delta), over the number of samples."""
    y, t = _probabilities_and_one_hot(y, t)
    return -t / (y + delta) / _samples(y)


def softmax(x: ArrayLike) -> Float64:
    """exp(x) / Σ exp(x) along the last axis, shifted by the maximum so that exp cannot overflow."""
    x = np.asarray(x, dtype=np.float64)
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softmax_cross_entropy(x: ArrayLike, t: ArrayLike) -> np.float64:
    """-Σ t log softmax(x), in nats; for a batch, its mean over the samples. Arguments as in `cross_entropy_error`."""
    x, t = _probabilities_and_one_hot(x, t)
    shifted = x - x.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.float64(-np.sum(t * log_probabilities) / _samples(x))


def softmax_cross_entropy_gradient(x: ArrayLike, t: ArrayLike) -> Float64:
    """The gradient of `softmax_cross_entropy` with respect to x: (Σ t) softmax(x) - t, over the number of samples."""
    x, t = _probabilities_and_one_hot(x, t)
    return (t.sum(axis=-1, keepdims=True) * softmax(x) - t) / _samples(x)


def _same_shape(y: ArrayLike, t: ArrayLike) -> tuple[Float64, Float64]:
    y, t = np.asarray(y, dtype=np.float64), np.asarray(t, dtype=np.float64)
    if y.shape != t.shape:
        raise ValueError(f"expected y and t of one shape, got {y.shape} and {t.shape}")
    return y, t


def _probabilities_and_one_hot(y: ArrayLike, t: ArrayLike) -> tuple[Float64, Float64]:
    y, t = np.asarray(y, dtype=np.float64), np.asarray(t)
    if y.ndim not in (1, 2):
        raise ValueError(f"expected a vector (C) or a batch (N, C), got shape {y.shape}")
    if t.shape == y.shape:
        return y, t.astype(np.float64)
    if t.shape != y.shape[:-1] or not np.issubdtype(t.dtype, np.integer):
        raise ValueError(
            f"expected t of shape {y.shape}, or class indices of shape {y.shape[:-1]}; got {t.dtype} of shape {t.shape}"
        )
    return y, np.eye(y.shape[-1])[t]


def _samples(y: Float64) -> int:
    return 1 if y.ndim == 1 else y.shape[0]
