"""What is measured: how to read each number from the results, which direction is good, and how to write it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.questions import TaskName
from training.results import Evaluation, ObjectiveDescription, ObjectiveRun, Results
from training.statistics import (
    PairedByImage,
    Summary,
    paired_means,
    paired_root_mean_squares,
    paired_shares,
    summarize,
    summarize_shares,
)

NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Measure:
    """A metric.

    Attributes:
        name: in words.
        higher_is_better: whether more is better.
        ahead, behind: the words that put one objective before or behind another.
        read: the number in an evaluation, for a decoding; None where it does not apply.
        scale, unit, decimals: how it is written.
        difference_unit: the unit of a difference.
        margin: differences within it do not matter; None where no such margin is stated.
        images: what it is made of: shares of right images, their errors, or their likelihoods; None where it is
            not an average over images.
    """

    name: str
    higher_is_better: bool
    ahead: str
    behind: str
    read: Callable[[Evaluation, str], float | None]
    scale: float = 1.0
    unit: str = ""
    decimals: int = 2
    difference_unit: str = ""
    margin: float | None = None
    images: Literal["shares", "errors", "likelihoods"] | None = None

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.unit.endswith("%")

    def format(self, summary: Summary) -> str:
        """Mean and interval, rounded to what the interval supports."""
        if self.is_share:
            return format_interval(summary, self.scale, self.unit, self.decimals)
        return format_summary(summary, self.scale, self.unit, self.decimals)

    def value(self, summary: Summary) -> str:
        """The mean alone, as precisely as its interval supports."""
        if not summary.values or not summary.finite:
            return format_summary(summary)
        return f"{summary.mean * self.scale:.{_decimals(summary, self.scale, self.decimals)}f}{self.unit}"

    def difference(self, mean: float, half_width: float | None = None) -> str:
        """A difference without its sign, with the half width of its interval."""
        scaled = abs(mean) * self.scale
        if half_width is None:
            return f"{scaled:.{self.decimals}f}{self.difference_unit}"
        if self.is_share and abs(mean) + half_width > 1:
            return f"{scaled:.{self.decimals}f}{self.difference_unit} (too few seeds for an interval)"
        return (
            f"{scaled:.{self.decimals}f}{NBSP}±{NBSP}{half_width * self.scale:.{self.decimals}f}{self.difference_unit}"
        )


def _decimals(summary: Summary, scale: float, most: int) -> int:
    half_width = (summary.half_width or 0) * scale
    return min(max(1 - math.floor(math.log10(half_width)), 0), most) if half_width > 0 else most


def format_summary(summary: Summary, scale: float = 1.0, unit: str = "", decimals: int = 2) -> str:
    """Write 'mean ± half width unit'; the half width keeps two significant digits, within `decimals`."""
    if not summary.values:
        return "-"
    if not summary.finite:
        wrong = sum(not math.isfinite(value) for value in summary.values)
        return f"diverged in {wrong} of {summary.count}"
    # Seeds that all agree are no proof that others would.
    if not summary.half_width:
        return f"{summary.mean * scale:.{decimals}f}{unit}"
    half_width = summary.half_width * scale
    decimals = _decimals(summary, scale, decimals)
    smallest = 10.0**-decimals
    spread = f"<{smallest:.{decimals}f}" if 0 < half_width < smallest / 2 else f"{half_width:.{decimals}f}"
    return f"{summary.mean * scale:.{decimals}f}{NBSP}±{NBSP}{spread}{unit}"


def format_interval(summary: Summary, scale: float = 1.0, unit: str = "", decimals: int = 2) -> str:
    """Write 'mean unit (lower to upper)': for shares, whose intervals are not symmetric and end at 0 and 1."""
    if not summary.finite or summary.lower is None or summary.upper is None:
        return format_summary(summary, scale, unit, decimals)
    digits = _decimals(summary, scale, decimals)
    mean, lower, upper = (
        f"{value * scale:.{digits}f}" for value in (summary.mean, max(0.0, summary.lower), min(1.0, summary.upper))
    )
    return f"{mean}{unit} ({lower} to {upper})"


def format_share(share: float) -> str:
    """A share as a percentage, with enough digits to be told from zero."""
    if share >= 0.1:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1g} %" if share >= 1e-6 else "less than 0.0001 %"


def format_p_value(p_value: float) -> str:
    """A p value with two significant digits, or a bound."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


ACCURACY = Measure(
    "accuracy",
    True,
    "more accurate than",
    "less accurate than",
    lambda evaluation, decoding: evaluation.decoded[decoding].accuracy if decoding in evaluation.decoded else None,
    100,
    f"{NBSP}%",
    difference_unit=" points",
    margin=0.002,
    images="shares",
)
MEAN_ABSOLUTE_ERROR = Measure(
    "mean absolute error",
    False,
    "closer to the truth than",
    "further from the truth than",
    lambda evaluation, decoding: (
        evaluation.decoded[decoding].mean_absolute_error if decoding in evaluation.decoded else None
    ),
    decimals=3,
)
ROOT_MEAN_SQUARED_ERROR = Measure(
    "root mean squared error",
    False,
    "closer to the truth than",
    "further from the truth than",
    lambda evaluation, decoding: (
        evaluation.decoded[decoding].root_mean_squared_error if decoding in evaluation.decoded else None
    ),
    decimals=3,
)
ANGLE_ERROR = Measure(
    "root mean squared error",
    False,
    "closer to the true angle than",
    "further from the true angle than",
    ROOT_MEAN_SQUARED_ERROR.read,
    unit="°",
    difference_unit="°",
    margin=0.2,
    images="errors",
)
NEGATIVE_LOG_LIKELIHOOD = Measure(
    "negative log-likelihood",
    False,
    "ahead of",
    "behind",
    lambda evaluation, _: evaluation.probabilities.negative_log_likelihood if evaluation.probabilities else None,
    decimals=4,
    difference_unit=" nats",
    images="likelihoods",
)
BRIER_SCORE = Measure(
    "Brier score",
    False,
    "ahead of",
    "behind",
    lambda evaluation, _: evaluation.probabilities.brier_score if evaluation.probabilities else None,
    decimals=4,
)
CALIBRATION_ERROR = Measure(
    "calibration error",
    False,
    "better calibrated than",
    "worse calibrated than",
    lambda evaluation, _: evaluation.probabilities.calibration_error if evaluation.probabilities else None,
    100,
    f"{NBSP}%",
    difference_unit=" points",
)


def main_measure(task: TaskName) -> Measure:
    """The measure by which the objectives of a task are compared."""
    return ANGLE_ERROR if task == "angle" else ACCURACY


@dataclass(frozen=True)
class Contender:
    """One objective with one way of decoding it, and its finished runs."""

    description: ObjectiveDescription
    decoding: str
    runs: tuple[ObjectiveRun, ...]
    labels: np.ndarray

    @property
    def key(self) -> tuple[str, str]:
        """The objective's name and the decoding."""
        return self.description.name, self.decoding

    @property
    def label(self) -> str:
        """The objective's title, with the decoding where there is a choice of them."""
        if len(self.description.decodings) < 2:
            return self.description.title
        return f"{self.description.title} ({self.decoding})"

    @property
    def short(self) -> str:
        """The loss, and the decoding where there is a choice of them; for places where the head is known."""
        title = self.description.title.partition(", ")[2] or self.description.title
        return title if len(self.description.decodings) < 2 else f"{title}, {self.decoding}"

    @property
    def diverged(self) -> int:
        """How many of the runs diverged."""
        return sum(run.diverged for run in self.runs)

    def by_seed(self, measure: Measure) -> dict[int, float]:
        """The measure after the last epoch, for each finished seed; nan where the run diverged."""
        values = {run.seed: (run, measure.read(run.epochs[-1].evaluation, self.decoding)) for run in self.runs}
        return {seed: math.nan if run.diverged else value for seed, (run, value) in values.items() if value is not None}

    def summary(self, measure: Measure) -> Summary:
        """The measure over the finished seeds."""
        values = self.by_seed(measure).values()
        if measure.images == "shares":
            return summarize_shares(values, len(self.labels))
        return summarize(values)

    def by_image(self, measure: Measure, seeds: Sequence[int]) -> np.ndarray | None:
        """What each test image came to from each seed, of shape (seeds, images); None where that was not kept."""
        found = {run.seed: run.details for run in self.runs}
        rows = []
        for details in (found[seed] for seed in seeds):
            packed = None
            if details is not None and measure.images == "shares" and details.answer:
                packed = details.answer.get(self.decoding)
            elif details is not None and measure.images == "errors" and details.error:
                packed = details.error.get(self.decoding)
            elif details is not None and measure.images == "likelihoods":
                packed = details.negative_log_likelihood
            if packed is None:
                return None
            rows.append(packed.values() == self.labels if measure.images == "shares" else packed.values())
        return np.stack(rows) if rows else None


def compare_images(measure: Measure, first: np.ndarray, second: np.ndarray) -> PairedByImage | None:
    """The test over images that suits a measure."""
    if measure.images == "shares":
        return paired_shares(first, second)
    return paired_root_mean_squares(first, second) if measure.images == "errors" else paired_means(first, second)


def tasks_of(results: Results) -> list[TaskName]:
    """The tasks of a run, each once, in the order of the results."""
    found: list[TaskName] = []
    for item in results.objectives:
        if item.task not in found:
            found.append(item.task)
    return found


def contenders(results: Results, task: TaskName, *, every_decoding: bool = False) -> list[Contender]:
    """The objectives of a task in the order of the results; with `every_decoding`, one contender a decoding."""
    found = []
    labels = results.test_labels.values()
    for description in results.objectives:
        if description.task != task:
            continue
        runs = tuple(
            run
            for run in results.runs
            if run.task == task and run.objective == description.name and run.complete and run.epochs
        )
        decodings = description.decodings if every_decoding else [description.primary_decoding]
        found.extend(Contender(description, decoding, runs, labels) for decoding in decodings)
    return found
