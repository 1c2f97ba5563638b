"""Intervals and tests: over seeds, over test images, and for a whole family of comparisons.

Objectives are compared seed by seed and image by image: every objective sees the same first weights, batches and test
images, so that what they share cancels in the difference. Intervals over seeds are Student's; the exact sign-flip test
beside them assumes nothing but that without a difference each seed's sign could as well be the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.95
SIGNIFICANCE = 1 - CONFIDENCE
# From so many test images on a bootstrap over them is worth something.
FEWEST_IMAGES = 30
MOST_SEEDS_NEEDED = 1000
_RESAMPLES = 2000
_EXACT_FLIPS = 16


def student_t_quantile(confidence: float, degrees_of_freedom: int) -> float:
    """The t for which a Student-t variable lies in [-t, t] with probability `confidence`.

    For whole degrees of freedom the distribution function is a finite sum of powers of a cosine
    (Abramowitz and Stegun, 26.7.3 and 26.7.4), which is inverted by bisection.

    Raises:
        ValueError: `confidence` outside (0, 1) or `degrees_of_freedom` below 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if degrees_of_freedom < 1:
        raise ValueError(f"degrees_of_freedom must be at least 1, got {degrees_of_freedom}; give two or more values")

    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_t_probability(middle, degrees_of_freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees_of_freedom) * math.tan((low + high) / 2)


def _student_t_probability(angle: float, degrees_of_freedom: int) -> float:
    """P(|T| < sqrt(degrees_of_freedom) * tan(angle))."""
    odd = degrees_of_freedom % 2
    cosine = math.cos(angle)
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees_of_freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def student_t_p_value(t: float, degrees_of_freedom: int) -> float:
    """P(|T| >= |t|) for a Student-t variable."""
    if math.isinf(t):
        return 0.0
    return 1 - _student_t_probability(math.atan(abs(t) / math.sqrt(degrees_of_freedom)), degrees_of_freedom)


@dataclass(frozen=True)
class Summary:
    """One number measured once per seed, with its interval; the ends are None where no interval exists.

    That is with fewer than two seeds (but for shares of images, which have one all the same), or where a value is not
    finite.
    """

    values: tuple[float, ...]
    mean: float
    lower: float | None
    upper: float | None

    @property
    def count(self) -> int:
        """How many seeds were measured."""
        return len(self.values)

    @property
    def finite(self) -> bool:
        """Whether there are values and all of them are finite."""
        return bool(self.values) and all(map(math.isfinite, self.values))

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval, or None where there is none."""
        return None if self.lower is None or self.upper is None else (self.upper - self.lower) / 2


def summarize(values: Iterable[float]) -> Summary:
    """Mean and Student-t interval of one value per seed."""
    values = tuple(values)
    if not values or not all(map(math.isfinite, values)):
        return Summary(values, math.nan, None, None)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(values, mean, None, None)
    half_width = student_t_quantile(CONFIDENCE, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Summary(values, mean, mean - half_width, mean + half_width)


def summarize_shares(shares: Iterable[float], images: int) -> Summary:
    """Mean of one share of `images` per seed, with an interval for other seeds and other images.

    The variance is that of the mean over seeds, widened for their small number, plus that of a share of so many images,
    which all seeds have in common. The interval is Wilson's for the number of images that would give this variance: it
    stays within 0 and 1, and it is not empty where all seeds agree.
    """
    shares = tuple(shares)
    if not shares or not all(map(math.isfinite, shares)):
        return Summary(shares, math.nan, None, None)
    mean = statistics.fmean(shares)
    normal = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    variance = mean * (1 - mean)
    worth = float(images)
    if len(shares) > 1 and variance > 0:
        widening = student_t_quantile(CONFIDENCE, len(shares) - 1) / normal
        worth = variance / (variance / images + statistics.variance(shares) / len(shares) * widening**2)
    centre = (mean + normal**2 / (2 * worth)) / (1 + normal**2 / worth)
    half_width = normal / (1 + normal**2 / worth) * math.sqrt(variance / worth + (normal / (2 * worth)) ** 2)
    return Summary(shares, mean, max(0.0, centre - half_width), min(1.0, centre + half_width))


@dataclass(frozen=True)
class PairedBySeed:
    """Differences of two objectives, one a seed; the interval and the p values are for other seeds, the same images."""

    differences: tuple[float, ...]
    mean: float
    half_width: float
    t_p_value: float
    sign_flip_p_value: float

    @property
    def deviation(self) -> float:
        """The standard deviation of the differences."""
        return statistics.stdev(self.differences)


def paired_by_seed(differences: Sequence[float]) -> PairedBySeed | None:
    """Student's interval and test, and the exact sign-flip test; None for fewer than two finite differences."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    error = deviation / math.sqrt(len(differences))
    degrees = len(differences) - 1
    t = mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0
    return PairedBySeed(
        tuple(differences),
        mean,
        student_t_quantile(CONFIDENCE, degrees) * error,
        student_t_p_value(t, degrees),
        sign_flip_p_value(differences),
    )


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """The share of all choices of signs whose sum is as far from 0 as the observed one.

    With n differences it cannot be below 2 / 2^n. Beyond 16 a fixed sample of 65,536 choices stands for all.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count <= _EXACT_FLIPS:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (2**_EXACT_FLIPS, count))
        bits[0] = 0
    sums = np.abs((1 - 2 * bits) @ values)
    observed = abs(values.sum())
    return float(np.mean(sums >= observed * (1 - 1e-12) - 1e-15))


@dataclass(frozen=True)
class PairedByImage:
    """The same difference with the seeds as they are: interval and p value are for other test images."""

    test: str
    p_value: float
    lower: float
    upper: float


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """McNemar's exact test: two-sided binomial, given how many images each of two got right and the other did not."""
    count = first_only + second_only
    if count == 0:
        return 1.0
    logarithms = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(min(first_only, second_only) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logarithms)))


def paired_shares(first: np.ndarray, second: np.ndarray) -> PairedByImage:
    """Two objectives' right answers, booleans of shape (seeds, images): McNemar's test, and an interval.

    With several seeds an image counts for the objective that got it right from more of them; with one seed this is
    McNemar's test as it is known. The interval is Wald's after one image has been added for either side (A. Agresti and
    Y. Min, "Simple improved confidence intervals for comparing matched proportions", 2005), so that it is not empty
    where there is no disagreement.
    """
    differences = first.mean(axis=0) - second.mean(axis=0)
    count = len(differences)
    p_value = mcnemar_p_value(int((differences > 0).sum()), int((differences < 0).sum()))
    mean = differences.sum() / (count + 2)
    variance = (np.square(differences).sum() + 2) / (count + 2) - mean**2
    half_width = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(variance / (count + 2))
    return PairedByImage("McNemar", p_value, max(-1.0, mean - half_width), min(1.0, mean + half_width))


def paired_root_mean_squares(first: np.ndarray, second: np.ndarray) -> PairedByImage | None:
    """Two objectives' errors, of shape (seeds, images): bootstrap over images of the difference in root mean square.

    The same images are drawn for both and for every seed. None for fewer than FEWEST_IMAGES images.
    """
    squares = np.square(np.concatenate([first, second]))
    roots = _resampled_means(squares, np.sqrt)
    return None if roots is None else _bootstrapped(roots[: len(first)].mean(axis=0) - roots[len(first) :].mean(axis=0))


def paired_means(first: np.ndarray, second: np.ndarray) -> PairedByImage | None:
    """Two objectives' numbers, of shape (seeds, images): bootstrap over the images of the difference of their means."""
    means = _resampled_means(first.mean(axis=0, keepdims=True) - second.mean(axis=0, keepdims=True), np.positive)
    return None if means is None else _bootstrapped(means[0])


def _resampled_means(rows: np.ndarray, transform: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    images = rows.shape[1]
    if images < FEWEST_IMAGES:
        return None
    return transform(rows.astype(np.float32) @ _weights(images)).astype(np.float64)


@lru_cache(maxsize=2)
def _weights(images: int) -> np.ndarray:
    """How often each image is drawn in each resample, as shares, of shape (images, resamples)."""
    generator = np.random.default_rng(0)
    weights = np.empty((_RESAMPLES, images), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
    return (weights / images).T


def _bootstrapped(differences: np.ndarray) -> PairedByImage:
    tail = (1 - CONFIDENCE) / 2
    lower, upper = np.quantile(differences, (tail, 1 - tail))
    # Counting the observed sample as one of the resamples keeps the p value above 0.
    side = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (side + 1) / (len(differences) + 1))
    return PairedByImage("bootstrap", float(p_value), float(lower), float(upper))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number.

    S. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    The k-th smallest of n is multiplied by n - k + 1, and none is put below a smaller one.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def seeds_needed(paired: PairedBySeed, margin: float, comparisons: int) -> int | None:
    """With about how many seeds the difference would be decided, if mean and deviation stay as they are.

    Decided is: told from 0 by Student's test, corrected for the number of comparisons as if it were the least clear; or
    its interval inside the margin. None where that takes more than MOST_SEEDS_NEEDED.
    """
    mean, deviation = abs(paired.mean), paired.deviation

    def decided(count: int) -> bool:
        error = deviation / math.sqrt(count)
        corrected = student_t_quantile(1 - SIGNIFICANCE / comparisons, count - 1) * error
        return corrected < mean or mean + student_t_quantile(CONFIDENCE, count - 1) * error < margin

    low, high = 1, 2
    while not decided(high):
        low, high = high, high * 2
        if high > MOST_SEEDS_NEEDED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
