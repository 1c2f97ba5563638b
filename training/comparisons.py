"""Two objectives against each other, seed by seed and image by image, and what that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from training.measures import Contender, Measure, compare_images, contenders, main_measure, tasks_of
from training.questions import TaskName
from training.results import Results
from training.statistics import (
    SIGNIFICANCE,
    PairedByImage,
    PairedBySeed,
    holm,
    paired_by_seed,
    seeds_needed,
)

Verdict = Literal["ahead", "behind", "equal", "open", "none"]

# What the others of a task are planned to be compared with, before anything is measured.
REFERENCES = {"angle": ("regression-mse", "direct")}
DIGIT_REFERENCE = ("cross-entropy", "most probable")


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second`, and where `first` stands.

    verdict: 'ahead' or 'behind' where the difference is told from 0 both for other seeds and for other images, each
    after Holm's correction; else 'equal' where both intervals lie inside the measure's margin; else 'open'. 'none'
    where nothing can be compared: fewer than two seeds in common, or a run that diverged.

    `seed_p_value` and `image_p_value` are corrected for the `family`, the number of comparisons made together.
    """

    measure: Measure
    first: Contender
    second: Contender
    by_seed: PairedBySeed | None
    by_image: PairedByImage | None
    family: int = 1
    seed_p_value: float = 1.0
    image_p_value: float = 1.0
    verdict: Verdict = "none"

    @property
    def difference(self) -> float:
        """The mean difference, in the measure's own unit; nan where there is none."""
        return self.by_seed.mean if self.by_seed else math.nan

    @property
    def text(self) -> str:
        """The difference without its sign, with its interval over seeds."""
        if self.by_seed is None:
            return "not compared"
        return self.measure.difference(self.by_seed.mean, self.by_seed.half_width)

    @property
    def amount(self) -> str:
        """The difference without its sign and interval."""
        return "not compared" if self.by_seed is None else self.measure.difference(self.by_seed.mean)

    @property
    def missing(self) -> str:
        """What it would take to decide an open comparison, or why there is none, in words."""
        if self.by_seed is None:
            lost = next((item for item in (self.first, self.second) if item.diverged), None)
            return (
                f"{lost.short} diverged from {lost.diverged} of {len(lost.runs)} seeds"
                if lost
                else "one seed has no spread"
            )
        margin = self.measure.margin or 0.0
        image_half_width = math.inf if self.by_image is None else (self.by_image.upper - self.by_image.lower) / 2
        if self.seed_p_value <= SIGNIFICANCE or (
            image_half_width > margin and abs(self.by_seed.mean) < image_half_width
        ):
            return "more test images needed: with others it could turn round"
        wanted = seeds_needed(self.by_seed, margin, self.family)
        if wanted is None:
            return "more than 1,000 seeds needed"
        more = max(1, wanted - len(self.by_seed.differences))
        return f"about {more} more seed{'s' if more > 1 else ''} needed"

    def turned(self) -> Comparison:
        """The same comparison with the two exchanged."""
        opposite: dict[Verdict, Verdict] = {"ahead": "behind", "behind": "ahead"}
        seed, image = self.by_seed, self.by_image
        return replace(
            self,
            first=self.second,
            second=self.first,
            by_seed=seed and replace(seed, mean=-seed.mean, differences=tuple(-d for d in seed.differences)),
            by_image=image and replace(image, lower=-image.upper, upper=-image.lower),
            verdict=opposite.get(self.verdict, self.verdict),
        )


def compare(pairs: Sequence[tuple[Measure, Contender, Contender]]) -> list[Comparison]:
    """Compare each pair, all of them as one family."""
    raw = [_raw(measure, first, second) for measure, first, second in pairs]
    seed_p_values = holm([item.by_seed.t_p_value if item.by_seed else 1.0 for item in raw])
    image_p_values = holm([item.by_image.p_value if item.by_image else 1.0 for item in raw])
    judged = (
        replace(item, family=len(raw), seed_p_value=seed, image_p_value=image)
        for item, seed, image in zip(raw, seed_p_values, image_p_values, strict=True)
    )
    return [replace(item, verdict=_verdict(item)) for item in judged]


def _raw(measure: Measure, first: Contender, second: Contender) -> Comparison:
    values, others = first.by_seed(measure), second.by_seed(measure)
    seeds = sorted(values.keys() & others.keys())
    by_seed = paired_by_seed([values[seed] - others[seed] for seed in seeds])
    by_image = None
    if by_seed is not None:
        images = first.by_image(measure, seeds), second.by_image(measure, seeds)
        if images[0] is not None and images[1] is not None:
            by_image = compare_images(measure, images[0], images[1])
    return Comparison(measure, first, second, by_seed, by_image)


def _verdict(item: Comparison) -> Verdict:
    if item.by_seed is None:
        return "none"
    if item.seed_p_value <= SIGNIFICANCE and item.image_p_value <= SIGNIFICANCE:
        return "ahead" if (item.by_seed.mean > 0) == item.measure.higher_is_better else "behind"
    margin = item.measure.margin
    if margin is not None and item.by_image is not None:
        over_seeds = abs(item.by_seed.mean) + item.by_seed.half_width
        if over_seeds < margin and max(-item.by_image.lower, item.by_image.upper) < margin:
            return "equal"
    return "open"


def planned_comparisons(results: Results) -> list[Comparison]:
    """Every objective against the reference of its task, as planned before anything was measured: one family."""
    pairs = []
    for task in tasks_of(results):
        among = contenders(results, task, every_decoding=task == "angle")
        reference = reference_of(task, among)
        if reference is not None:
            pairs += [
                (main_measure(task), item, reference) for item in among if item.key != reference.key and item.runs
            ]
    return compare(pairs)


def reference_of(task: TaskName, among: Sequence[Contender]) -> Contender | None:
    """What the others are compared with: cross-entropy, or for the angle MSE on a regression head; else the first."""
    wanted = REFERENCES.get(task, DIGIT_REFERENCE)
    finished = [item for item in among if item.runs]
    return next((item for item in finished if item.key == wanted), finished[0] if finished else None)


@dataclass(frozen=True)
class Ranking:
    """The best of a task, and the others against it, corrected for all pairs there are: the best was not planned."""

    best: Contender
    others: tuple[Comparison, ...]
    not_compared: tuple[Contender, ...]


def rank(results: Results, task: TaskName) -> Ranking | None:
    """Who has the best mean, and how far behind the others are, in the order of the results; None without runs."""
    measure = main_measure(task)
    among = [item for item in contenders(results, task, every_decoding=True) if item.runs]
    finite = [item for item in among if item.summary(measure).finite]
    if not finite:
        return None
    best = (max if measure.higher_is_better else min)(finite, key=lambda item: item.summary(measure).mean)
    pairs = [(measure, first, second) for first, second in combinations(finite, 2)]
    found = [item if item.second.key == best.key else item.turned() for item in compare(pairs) if _has(item, best)]
    return Ranking(best, tuple(found), tuple(item for item in among if item not in finite))


def _has(item: Comparison, contender: Contender) -> bool:
    return contender.key in (item.first.key, item.second.key)
