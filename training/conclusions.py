"""What the numbers of a run allow one to say, and nothing else.

Every sentence is put together from the measurements. A sentence that puts one objective before another carries a
`Claim`, and a claim exists only where the two intervals over seeds do not overlap; otherwise the sentence says that the
runs cannot tell them apart.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from training.results import (
    Evaluation,
    GradientCurve,
    GradientExperiment,
    ObjectiveDescription,
    ObjectiveRun,
    ParityRecord,
    RecoveryExperiment,
    Results,
    TaskName,
)
from training.statistics import CONFIDENCE, Summary, order, student_t_quantile, summarize

SOURCE_SENTENCE = "MSE is for classification and CEE for regression"

# Images that give the right class less than this are the ones whose measured gradient is put into words.
CONFIDENTLY_WRONG = 0.01

Verdict = Literal["agrees", "disagrees", "undecided"]


@dataclass(frozen=True)
class Measure:
    """A metric: how to read it from an evaluation, which direction is good, and how to write it."""

    name: str
    higher_is_better: bool
    ahead: str
    behind: str
    read: Callable[[Evaluation, str], float | None]
    scale: float = 1.0
    unit: str = ""
    decimals: int = 2

    def format(self, summary: Summary) -> str:
        """Mean and half width of the interval, rounded to what the interval supports."""
        return format_summary(summary, self.scale, self.unit, self.decimals)


def format_summary(summary: Summary, scale: float = 1.0, unit: str = "", decimals: int = 2) -> str:
    """Write 'mean ± half width unit'; the half width keeps two significant digits, within `decimals`."""
    if not summary.values:
        return "-"
    if not summary.finite:
        wrong = sum(not math.isfinite(value) for value in summary.values)
        return f"not finite in {wrong} of {summary.count}"
    if summary.half_width is None:
        return f"{summary.mean * scale:.{decimals}f}{unit}"
    half_width = summary.half_width * scale
    if half_width > 0:
        decimals = min(max(1 - math.floor(math.log10(half_width)), 0), decimals)
    smallest = 10.0**-decimals
    spread = f"<{smallest:.{decimals}f}" if 0 < half_width < smallest / 2 else f"{half_width:.{decimals}f}"
    return f"{summary.mean * scale:.{decimals}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{spread}{unit}"


ACCURACY = Measure(
    "accuracy",
    True,
    "more accurate than",
    "less accurate than",
    lambda evaluation, decoding: evaluation.decoded[decoding].accuracy if decoding in evaluation.decoded else None,
    100,
    "\N{NO-BREAK SPACE}%",
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
)
NEGATIVE_LOG_LIKELIHOOD = Measure(
    "negative log-likelihood",
    False,
    "ahead of",
    "behind",
    lambda evaluation, _: evaluation.probabilities.negative_log_likelihood if evaluation.probabilities else None,
    decimals=4,
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
    "\N{NO-BREAK SPACE}%",
)
MAIN_MEASURE: dict[TaskName, Measure] = {"digit": ACCURACY, "angle": ANGLE_ERROR}

# Every word by which a sentence puts one objective before another; sentences without a claim hold none of them.
COMPARATIVE_PHRASES = (
    *(
        phrase
        for measure in (ACCURACY, ROOT_MEAN_SQUARED_ERROR, ANGLE_ERROR, NEGATIVE_LOG_LIKELIHOOD, CALIBRATION_ERROR)
        for phrase in (measure.ahead, measure.behind)
    ),
    "sooner than",
    "matters more than",
)


@dataclass(frozen=True)
class Contender:
    """One objective with one way of decoding it, and its finished runs."""

    description: ObjectiveDescription
    decoding: str
    runs: tuple[ObjectiveRun, ...]

    @property
    def label(self) -> str:
        """The objective's title, with the decoding where there is a choice of them."""
        if len(self.description.decodings) < 2:
            return self.description.title
        return f"{self.description.title} ({self.decoding})"

    def summary(self, measure: Measure) -> Summary:
        """The measure after the last epoch, over the finished seeds."""
        values = (measure.read(run.epochs[-1].evaluation, self.decoding) for run in self.runs)
        return summarize(value for value in values if value is not None)


def contenders(results: Results, task: TaskName, *, every_decoding: bool = False) -> list[Contender]:
    """The objectives of a task in the order of the results; with `every_decoding`, one contender a decoding."""
    found = []
    for description in results.objectives:
        if description.task != task:
            continue
        runs = tuple(
            run
            for run in results.runs
            if run.task == task and run.objective == description.name and run.complete and run.epochs
        )
        decodings = description.decodings if every_decoding else [description.primary_decoding]
        found.extend(Contender(description, decoding, runs) for decoding in decodings)
    return found


@dataclass(frozen=True)
class Mention:
    """An objective named in a sentence, so that the page can show its colour."""

    label: str
    objective: str


@dataclass(frozen=True)
class Claim:
    """One thing measured better than another, their intervals apart."""

    measure: str
    better: str
    worse: str
    better_summary: Summary
    worse_summary: Summary


Part = str | Mention


@dataclass(frozen=True)
class Statement:
    """A sentence or two, and the claims it makes."""

    parts: tuple[Part, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def text(self) -> str:
        """The statement as plain text, objectives in quotation marks."""
        return "".join(part if isinstance(part, str) else f"“{part.label}”" for part in self.parts)


@dataclass(frozen=True)
class Reading:
    """One comparison that puts half of the source's sentence to the test."""

    favoured: Mention
    other: Mention
    measure: str
    favoured_value: str
    other_value: str
    verdict: Verdict
    claim: Claim | None


@dataclass(frozen=True)
class SourceHalf:
    """Half of the source's sentence, what it would predict here, and what was measured."""

    sentence: str
    prediction: str
    readings: tuple[Reading, ...]
    summary: str


@dataclass(frozen=True)
class Conclusions:
    """Everything the page says in words."""

    headline: tuple[Statement, ...]
    digit: tuple[Statement, ...]
    angle: tuple[Statement, ...]
    probabilities: tuple[Statement, ...]
    gradient: tuple[Statement, ...]
    recovery: tuple[Statement, ...]
    source: tuple[SourceHalf, ...]
    caveats: tuple[str, ...]

    @property
    def statements(self) -> tuple[Statement, ...]:
        """All statements, in the order of the page."""
        return (
            self.headline + self.digit + self.angle + self.probabilities + self.gradient + self.recovery
        )  # fmt: skip

    @property
    def claims(self) -> tuple[Claim, ...]:
        """All claims, in the order of the page."""
        readings = [reading.claim for half in self.source for reading in half.readings]
        return tuple(claim for statement in self.statements for claim in statement.claims) + tuple(
            claim for claim in readings if claim
        )


def draw_conclusions(results: Results) -> Conclusions:
    """Put into words what the results show."""
    digit = contenders(results, "digit")
    angle = contenders(results, "angle", every_decoding=True)
    source = _source_halves(digit, angle)
    headline = []
    for opening, subject, measure, among in (
        ("To name the digit, a category", "the digit", ACCURACY, digit),
        ("To tell the angle, a quantity", "the angle", ANGLE_ERROR, angle),
    ):
        if any(contender.runs for contender in among):
            headline.append(_leader(opening, measure, among))
            headline.extend(_head_or_loss(subject, measure, among))
    if headline:
        first, second = (half.summary for half in source)
        verdict = f"On its first half, {first}. On its second half, {second}."
        headline.append(Statement((f"The source text says: “{SOURCE_SENTENCE}”. {verdict}",)))
    else:
        headline.append(Statement(("No training run has finished, so there is nothing to conclude yet.",)))

    probabilistic = [contender for contender in digit if contender.summary(NEGATIVE_LOG_LIKELIHOOD).values]
    probabilities = []
    if probabilistic:
        for measure in (NEGATIVE_LOG_LIKELIHOOD, CALIBRATION_ERROR):
            probabilities.append(_leader(f"By {measure.name} on the digit task", measure, probabilistic))
    return Conclusions(
        headline=tuple(headline),
        digit=tuple(_head_and_loss(digit, ACCURACY)),
        angle=tuple(_head_and_loss(angle, ANGLE_ERROR) + _decodings(angle)),
        probabilities=tuple(probabilities),
        gradient=tuple(_gradient_statements(results.gradient_experiment)),
        recovery=tuple(_recovery_statements(results.recovery_experiment)),
        source=source,
        caveats=tuple(_caveats(results)),
    )


def parity_holds(record: ParityRecord) -> bool:
    """Whether the differences are within the tolerance, by the record's own word and by its numbers."""
    return (
        record.passed
        and record.largest_loss_difference <= record.loss_tolerance
        and record.largest_weight_difference <= record.weight_tolerance
    )


def _mention(contender: Contender) -> Mention:
    return Mention(contender.label, contender.description.name)


def _separator(position: int, count: int) -> str:
    """What stands before an item of a list; semicolons, because titles may hold commas."""
    if position == 0:
        return ""
    return " and " if position == count - 1 else "; "


def _listed(items: Sequence[Contender], measure: Measure | None) -> list[Part]:
    """'A (1.0), B (2.0) and C (3.0)' as parts."""
    parts: list[Part] = []
    for i, item in enumerate(items):
        parts += [_separator(i, len(items)), _mention(item)]
        if measure:
            parts.append(f" ({measure.format(item.summary(measure))})")
    return parts


def _compare(measure: Measure, first: Contender, second: Contender) -> tuple[str, Claim | None]:
    """'ahead', 'behind', 'overlap' or 'unknown' for `first` against `second`, and the claim behind it."""
    summaries = first.summary(measure), second.summary(measure)
    position = order(*summaries)
    if position in ("overlap", "unknown"):
        return position, None
    if (position == "above") == measure.higher_is_better:
        return "ahead", Claim(measure.name, first.label, second.label, *summaries)
    return "behind", Claim(measure.name, second.label, first.label, summaries[1], summaries[0])


def _leader(opening: str, measure: Measure, among: Sequence[Contender]) -> Statement:
    """Who has the best mean, and from whom the intervals separate it."""
    measured = [contender for contender in among if contender.summary(measure).values]
    comparable = [contender for contender in measured if contender.summary(measure).half_width is not None]
    if len(comparable) < 2:
        return Statement(
            (f"{opening}, the runs measured ", *_listed(measured, measure), ". ", _why_no_comparison(measured, measure))
        )
    comparable.sort(key=lambda contender: contender.summary(measure).mean, reverse=measure.higher_is_better)
    leader, *others = comparable
    relations = [(other, *_compare(measure, leader, other)) for other in others]
    tied = [other for other, relation, _ in relations if relation != "ahead"]
    behind = [other for other, relation, _ in relations if relation == "ahead"]
    claims = tuple(claim for _, _, claim in relations if claim)
    parts: list[Part] = [f"{opening}, "]
    if not behind:
        parts += ["the runs cannot tell ", *_listed(comparable, measure), " apart."]
    elif tied or len(behind) < 3:
        parts += [*_listed([leader], measure), f" is {measure.ahead} ", *_listed(behind, measure)]
        parts += [", but the runs cannot tell it from ", *_listed(tied, measure), "."] if tied else ["."]
    else:
        parts += [*_listed([leader], measure), f" is {measure.ahead} every other objective."]
        other_head = [item for item in behind if item.description.head != leader.description.head]
        if other_head:
            parts += [" With the other head: ", *_listed(other_head, measure), "."]
    left_out = [contender for contender in measured if contender not in comparable]
    if left_out:
        parts += [" Not compared: ", *_listed(left_out, measure), ". ", _why_no_comparison(left_out, measure)]
    return Statement(tuple(parts), claims)


def _why_no_comparison(among: Sequence[Contender], measure: Measure) -> str:
    summaries = [contender.summary(measure) for contender in among]
    if any(not summary.finite for summary in summaries):
        return "A value that is not finite has no interval, and nothing is claimed about it."
    if any(summary.count < 2 for summary in summaries):
        return "One seed has no spread, so nothing is claimed."
    return "There is nothing to compare it with."


def _against(measure: Measure, reference: Contender, others: Sequence[Contender]) -> Statement | None:
    """Where the others lie relative to one reference; None where there is nothing to say beyond the caveats."""
    others = [other for other in others if other.summary(measure).values]
    if not others or not reference.summary(measure).values:
        return None
    relations = [(other, *_compare(measure, other, reference)) for other in others]
    claims = tuple(claim for _, _, claim in relations if claim)
    if all(found == "unknown" for _, found, _ in relations) and all(
        item.summary(measure).finite for item in (reference, *others)
    ):
        return None
    parts: list[Part] = []

    def named() -> list[Part]:
        """The reference, with its value where it is named first."""
        return _listed([reference], None if _mention(reference) in parts else measure)

    for relation, verb in (("ahead", measure.ahead), ("behind", measure.behind)):
        group = [other for other, found, _ in relations if found == relation]
        if group:
            parts += [*_listed(group, measure), f" {'is' if len(group) == 1 else 'are'} {verb} ", *named(), ". "]
    overlapping = [other for other, found, _ in relations if found == "overlap"]
    if overlapping:
        parts += ["The runs cannot tell ", *_listed(overlapping, measure), " from ", *named(), ". "]
    unknown = [other for other, found, _ in relations if found == "unknown"]
    if unknown:
        parts += ["Not compared with ", *named(), ": ", *_listed(unknown, measure), ". "]
        parts.append(_why_no_comparison([reference, *unknown], measure))
    return Statement(tuple(parts), claims)


def loss_family(description: ObjectiveDescription) -> Literal["mean squared error", "cross-entropy"] | None:
    """Which of the two losses the source's sentence would see in an objective."""
    for words in (description.loss.lower(), description.name.lower()):
        if "mse" in words or "squared" in words:
            return "mean squared error"
        if "cross" in words or "cee" in words or "entropy" in words:
            return "cross-entropy"
    return None


def _head_and_loss(among: Sequence[Contender], measure: Measure) -> list[Statement]:
    """Two questions for one task: does the head matter, and does the loss matter on the classification head."""
    regression = [contender for contender in among if contender.description.head == "regression"]
    classification = [contender for contender in among if contender.description.head == "classification"]
    statements = [_against(measure, reference, classification) for reference in regression]
    primary = [item for item in classification if item.decoding == item.description.primary_decoding]
    reference = next((item for item in primary if loss_family(item.description) == "cross-entropy"), None)
    if reference:
        statements.append(_against(measure, reference, [item for item in primary if item is not reference]))
    return [statement for statement in statements if statement]


def _head_or_loss(subject: str, measure: Measure, among: Sequence[Contender]) -> list[Statement]:
    """Whether changing the head moves the measure further than changing the loss on the classification head."""
    primary = [item for item in among if item.decoding == item.description.primary_decoding]
    regression = [item for item in primary if item.description.head == "regression"]
    classification = [item for item in primary if item.description.head == "classification"]
    if len(regression) != 1 or len(classification) < 2:
        return []
    reference = regression[0].summary(measure)
    summaries = [item.summary(measure) for item in classification]
    claims = tuple(claim for item in classification if (claim := _compare(measure, item, regression[0])[1]))
    sides = {order(summary, reference) for summary in summaries}
    if sides == {"above"}:
        least_by_head = min(summary.lower for summary in summaries) - reference.upper
    elif sides == {"below"}:
        least_by_head = reference.lower - max(summary.upper for summary in summaries)
    else:
        return []
    most_by_loss = max(summary.upper for summary in summaries) - min(summary.lower for summary in summaries)
    if least_by_head <= most_by_loss:
        return []
    unit = " percentage points" if measure.unit == ACCURACY.unit else measure.unit
    return [
        Statement(
            (
                f"For {subject}, the head matters more than the loss: by the intervals, changing the head moves the "
                f"{measure.name} by at least {least_by_head * measure.scale:.1f}{unit}, changing the loss on the "
                f"classification head by at most {most_by_loss * measure.scale:.1f}{unit}.",
            ),
            claims,
        )
    ]


def _decodings(among: Sequence[Contender]) -> list[Statement]:
    """The same network decoded in different ways."""
    statements = []
    for reference in among:
        if reference.decoding == reference.description.primary_decoding:
            others = [
                item
                for item in among
                if item.description.name == reference.description.name and item.decoding != reference.decoding
            ]
            statements.append(_against(ANGLE_ERROR, reference, others))
    return [statement for statement in statements if statement]


def _source_halves(digit: Sequence[Contender], angle: Sequence[Contender]) -> tuple[SourceHalf, ...]:
    """The source's sentence as comparisons: on a category MSE should win, on a quantity cross-entropy should."""
    digit_pairs = [
        (favoured, other)
        for favoured in digit
        for other in digit
        if loss_family(favoured.description) == "mean squared error"
        and loss_family(other.description) == "cross-entropy"
    ]
    angle_pairs = [
        (favoured, other)
        for favoured in angle
        for other in angle
        if loss_family(favoured.description) == "cross-entropy"
        and loss_family(other.description) == "mean squared error"
        and other.description.head == "regression"
    ]
    halves = []
    for sentence, prediction, pairs, measure in (
        (
            "MSE is for classification",
            "On the digit, a category, an objective with MSE should then be more accurate than one with cross-entropy.",
            digit_pairs,
            ACCURACY,
        ),
        (
            "CEE is for regression",
            "On the angle, a quantity, an objective with cross-entropy should then come closer to the true angle than "
            "regression with MSE. (A head with one output has no probabilities, so cross-entropy needs the angle in "
            "bins.)",
            angle_pairs,
            ANGLE_ERROR,
        ),
    ):
        readings = tuple(_reading(measure, favoured, other) for favoured, other in pairs)
        halves.append(SourceHalf(sentence, prediction, readings, _half_summary(readings)))
    return tuple(halves)


def _reading(measure: Measure, favoured: Contender, other: Contender) -> Reading:
    relation, claim = _compare(measure, favoured, other)
    verdicts: dict[str, Verdict] = {"ahead": "agrees", "behind": "disagrees"}
    return Reading(
        favoured=_mention(favoured),
        other=_mention(other),
        measure=measure.name,
        favoured_value=measure.format(favoured.summary(measure)),
        other_value=measure.format(other.summary(measure)),
        verdict=verdicts.get(relation, "undecided"),
        claim=claim,
    )


def _tally(readings: Sequence[Reading]) -> dict[Verdict, int]:
    verdicts: tuple[Verdict, ...] = ("agrees", "disagrees", "undecided")
    return {verdict: sum(reading.verdict == verdict for reading in readings) for verdict in verdicts}


def _half_summary(readings: Sequence[Reading]) -> str:
    words: tuple[tuple[Verdict, str], ...] = (("agrees", "agree with"), ("disagrees", "contradict"))
    tally, total = _tally(readings), len(readings)
    if total == 0:
        return "nothing was measured that could test it"
    if tally["undecided"] == total:
        return "these runs cannot decide it"
    for verdict, word in words:
        if tally[verdict] == total:
            return f"the measurements {word} it" + (f" in all {total} comparisons" if total > 1 else "")
    told = [f"{word} it in {tally[verdict]}" for verdict, word in words if tally[verdict]]
    undecided = f"; {tally['undecided']} cannot be decided" if tally["undecided"] else ""
    return f"the measurements {' and '.join(told)} of {total} comparisons{undecided}"


def _gradient_statements(experiment: GradientExperiment | None) -> list[Statement]:
    if experiment is None:
        return []
    curves = [curve for curve in experiment.curves if curve.theory_probability and max(curve.theory_gradient) > 0]
    if not curves:
        return []
    probability = max(1e-4, *(min(curve.theory_probability) for curve in curves))
    parts: list[Part] = [
        f"Where the right class has one chance in {round(1 / probability):,}, the formula leaves at that class's logit "
    ]
    for i, curve in enumerate(curves):
        share = interpolate(_line(curve.theory_probability, curve.theory_gradient), probability) / max(
            curve.theory_gradient
        )
        nothing = ", nearly nothing," if share < 0.01 else ""
        parts += [_separator(i, len(curves)), f"{format_share(share)} of its largest gradient{nothing} with "]
        parts.append(Mention(curve.title, curve.objective))
    parts.append(".")
    statements = [Statement(tuple(parts))]
    measured: list[Part] = []
    for curve in curves:
        gradients = [
            gradient
            for p, gradient in zip(curve.measured_probability, curve.measured_gradient, strict=True)
            if p < CONFIDENTLY_WRONG and math.isfinite(gradient)
        ]
        if gradients:
            share = statistics.median(gradients) / max(curve.theory_gradient)
            measured += [
                "; " if measured else "",
                f"{format_share(share)} with ",
                Mention(curve.title, curve.objective),
            ]
            measured.append(f" ({len(gradients):,} image{'s' if len(gradients) > 1 else ''})")
    if measured:
        opening = (
            f"Measured on images whose right class has a probability below {format_share(CONFIDENTLY_WRONG)}, the "
            "median gradient is, of the formula's largest, "
        )
        inside, shown = _between_the_extremes(curves)
        ending = (
            f". {inside:,} of the {shown:,} images shown lie between the formula's two extremes: the rest of the "
            "probability spread evenly over the wrong classes, or all of it on one."
        )
        statements.append(Statement((opening, *measured, ending)))
    return statements


def _between_the_extremes(curves: Sequence[GradientCurve]) -> tuple[int, int]:
    """How many measured images lie between the formula's two lines, and how many were measured within their range."""
    inside = shown = 0
    for curve in curves:
        even, one_rival = (
            _line(curve.theory_probability, line) for line in (curve.theory_gradient, curve.theory_gradient_one_rival)
        )
        for p, gradient in zip(curve.measured_probability, curve.measured_gradient, strict=True):
            bounds = sorted((interpolate(even, p), interpolate(one_rival, p)))
            if math.isfinite(gradient) and all(map(math.isfinite, bounds)):
                # The lines are drawn through points; between them the formula is curved.
                slack = 0.01 * bounds[1] + 1e-9
                shown += 1
                inside += bounds[0] - slack <= gradient <= bounds[1] + slack
    return inside, shown


def format_share(share: float) -> str:
    """A share as a percentage, with enough digits to be told from zero."""
    if share >= 0.1:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1g} %" if share >= 1e-6 else "less than 0.0001 %"


def interpolate(line: Sequence[tuple[float, float]], x: float) -> float:
    """The height of a line through sorted points, linear between them; nan outside them."""
    if not line or not line[0][0] <= x <= line[-1][0]:
        return math.nan
    index = max(1, bisect.bisect_left(line, x, key=lambda point: point[0]))
    (left, low), (right, high) = line[index - 1], line[min(index, len(line) - 1)]
    return high if right == left else low + (high - low) * (x - left) / (right - left)


def _line(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    return sorted(zip(x, y, strict=True))


@dataclass(frozen=True)
class _Recovery:
    title: str
    objective: str
    seeds: int
    recovered: tuple[int, ...]
    watched: int
    earliest: Summary
    latest: Summary
    accuracy: Summary


def _recovery_statements(experiment: RecoveryExperiment | None) -> list[Statement]:
    if experiment is None:
        return []
    found = []
    for objective in dict.fromkeys(curve.objective for curve in experiment.curves):
        curves = [curve for curve in experiment.curves if curve.objective == objective and curve.steps]
        recovered = [curve for curve in curves if curve.recovered_at is not None]
        steps = [curve.recovered_at for curve in recovered if curve.recovered_at is not None]
        # The crossing lies between the last measurement below the threshold and the first at or above it.
        before = [
            max((step for step in curve.steps if step < at), default=at)
            for curve, at in zip(recovered, steps, strict=True)
        ]
        if curves:
            found.append(
                _Recovery(
                    title=curves[0].title,
                    objective=objective,
                    seeds=len(curves),
                    recovered=tuple(steps),
                    watched=min(curve.steps[-1] for curve in curves),
                    earliest=summarize(before),
                    latest=summarize(steps),
                    accuracy=summarize(curve.accuracy[-1] for curve in curves),
                )
            )
    if not found:
        return []
    parts: list[Part] = [f"Back at {100 * experiment.threshold:.0f} % accuracy: "]
    for i, item in enumerate(found):
        parts += ["; " if i else "", Mention(item.title, item.objective), f" in {_recovered_text(item)}"]
    parts.append(".")
    statements = [Statement(tuple(parts))]
    parts = ["Accuracy at the end: "]
    for i, item in enumerate(found):
        value = format_summary(item.accuracy, ACCURACY.scale, ACCURACY.unit, 1)
        parts += ["; " if i else "", f"{value} with ", Mention(item.title, item.objective)]
    statements.append(Statement((*parts, f" (after {min(item.watched for item in found)} updates).")))
    for later in found:
        sooner = [(item, bounds) for item in found if item is not later and (bounds := _sooner(item, later))]
        if sooner:
            parts = []
            for i, (item, _) in enumerate(sooner):
                parts += [_separator(i, len(sooner)), Mention(item.title, item.objective)]
            parts += [" recovers" if len(sooner) == 1 else " recover", " sooner than "]
            parts += [Mention(later.title, later.objective), "."]
            claims = tuple(
                Claim("updates until recovered", item.title, later.title, *bounds) for item, bounds in sooner
            )
            statements.append(Statement(tuple(parts), claims))
    return statements


def _recovered_text(item: _Recovery) -> str:
    seeds = f"{len(item.recovered)} of {item.seeds} seed{'s' if item.seeds > 1 else ''}"
    if not item.recovered:
        return f"{seeds} within {item.watched} updates"
    low, high = min(item.recovered), max(item.recovered)
    return f"{seeds}, after {low if low == high else f'{low} to {high}'} updates"


def _sooner(first: _Recovery, second: _Recovery) -> tuple[Summary, Summary] | None:
    """The two summaries where every seed of `first` recovered and its interval ends before that of `second` begins."""
    if len(first.recovered) < first.seeds or first.latest.half_width is None or second.seeds < 2:
        return None
    if not second.recovered:
        bound = summarize([float(second.watched)] * second.seeds)
    elif len(second.recovered) == second.seeds:
        bound = second.earliest
    else:
        return None
    return (first.latest, bound) if order(first.latest, bound) == "below" else None


def _caveats(results: Results) -> Iterable[str]:
    finished = [run for run in results.runs if run.complete and run.epochs]
    seeds = sorted({run.seed for run in finished})
    if not finished:
        return
    if len(seeds) < 2:
        yield (
            "This run has one seed. A second run with another seed would give other numbers, and nothing here says how "
            "different, so no objective is said to be ahead of another. Run with more seeds to compare."
        )
    else:
        factor = student_t_quantile(CONFIDENCE, len(seeds) - 1) / math.sqrt(len(seeds))
        yield (
            f"± is the half width of Student's {100 * CONFIDENCE:g} % interval of the mean over seeds; with "
            f"{len(seeds)} seeds that is {factor:.2f} standard deviations. One objective is said to be ahead of "
            "another only where the two intervals do not overlap, which asks for more than a test at the "
            f"{100 * (1 - CONFIDENCE):.0f} % level does. The intervals hold for other seeds on the same images; they "
            "say nothing about other images."
        )
    counts = {
        (description.task, description.name): sum(
            run.task == description.task and run.objective == description.name for run in finished
        )
        for description in results.objectives
    }
    if len(set(counts.values())) > 1:
        yield "Not every objective has finished the same number of seeds; the table gives the number for each."
    single = [
        task
        for task in ("digit", "angle")
        if sum(item.task == task and item.head == "regression" for item in results.objectives) == 1
    ]
    if single:
        yield (
            f"On the regression head one loss only was trained (task{'s' if len(single) > 1 else ''}: "
            f"{' and '.join(single)}), so these runs do not compare losses on that head."
        )
