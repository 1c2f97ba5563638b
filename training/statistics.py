"""Intervals over seeds, and the one rule by which two of them may be called different.

The interval is Student's t interval of the mean over seeds. With few seeds it is wide (three seeds: 2.5 standard
deviations to either side), which is what three numbers can support; a range from the smallest to the largest would
claim more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95

Order = Literal["below", "above", "overlap", "unknown"]


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


@dataclass(frozen=True)
class Summary:
    """One number measured once per seed.

    `half_width` is None where no interval exists: with fewer than two seeds, or where a value is not finite.
    """

    values: tuple[float, ...]
    mean: float
    half_width: float | None

    @property
    def count(self) -> int:
        """How many seeds were measured."""
        return len(self.values)

    @property
    def finite(self) -> bool:
        """Whether there are values and all of them are finite."""
        return bool(self.values) and all(map(math.isfinite, self.values))

    @property
    def lower(self) -> float:
        """Lower end of the interval; nan where there is none."""
        return math.nan if self.half_width is None else self.mean - self.half_width

    @property
    def upper(self) -> float:
        """Upper end of the interval; nan where there is none."""
        return math.nan if self.half_width is None else self.mean + self.half_width


def summarize(values: Iterable[float]) -> Summary:
    """Mean and Student-t interval of one value per seed."""
    values = tuple(values)
    if not values:
        return Summary((), math.nan, None)
    if not all(map(math.isfinite, values)):
        return Summary(values, math.nan, None)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(values, mean, None)
    quantile = student_t_quantile(CONFIDENCE, len(values) - 1)
    return Summary(values, mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def order(first: Summary, second: Summary) -> Order:
    """Where `first` lies relative to `second`: 'below' and 'above' only where the two intervals do not even touch."""
    if first.half_width is None or second.half_width is None:
        return "unknown"
    if first.upper < second.lower:
        return "below"
    if first.lower > second.upper:
        return "above"
    return "overlap"
