"""What the numbers of a run allow one to say, and nothing else.

Every sentence is put together from the measurements. A sentence that puts one objective before another carries the
comparison that decided it as a claim; where nothing is decided, the sentence says what it would take.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.comparisons import Comparison, Ranking
from training.measures import (
    ACCURACY,
    Contender,
    Measure,
    format_p_value,
    format_share,
    main_measure,
)
from training.questions import HARDEST, TaskName
from training.results import GradientCurve, GradientExperiment, RecoveryCurve, RecoveryExperiment, Results
from training.statistics import CONFIDENCE, SIGNIFICANCE, sign_flip_p_value

# Images that give the right class less than this are the ones whose measured gradient is put into words.
CONFIDENTLY_WRONG = 0.01


@dataclass(frozen=True)
class Mention:
    """An objective named in a sentence, so that the page can show its colour."""

    label: str
    objective: str


@dataclass(frozen=True)
class Sooner:
    """One objective recovered before another from every seed; the exact p value of that, without a difference."""

    better: str
    worse: str
    p_value: float


Part = str | Mention
Claim = Comparison | Sooner


@dataclass(frozen=True)
class Statement:
    """A sentence or two, and the claims it makes."""

    parts: tuple[Part, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def text(self) -> str:
        """The statement as plain text."""
        return "".join(part if isinstance(part, str) else part.label for part in self.parts)


@dataclass(frozen=True)
class KeyNumber:
    """One of the numbers of the first screen: its value, what it is, and the comparison it comes from."""

    value: str
    meaning: str
    comparison: Comparison


@dataclass(frozen=True)
class Answer:
    """The first screen in words: one sentence, and the numbers behind it."""

    sentence: Statement
    numbers: tuple[KeyNumber, ...]


_READ_BY = {
    "most probable": "read by its most probable bin",
    "expected value": "read by its expected value",
    "highest output": "read by its highest output",
}


def phrase(contender: Contender) -> str:
    """A contender within a sentence: 'MSE on a regression head', 'cross-entropy read by its expected value'."""
    head, _, loss = contender.description.title.partition(", ")
    if not loss:
        return head
    if contender.description.head == "regression":
        return f"{loss} on a regression head"
    if len(contender.description.decodings) > 1:
        return f"{loss} {_READ_BY.get(contender.decoding, contender.decoding)}"
    return loss


def mention(contender: Contender) -> Mention:
    """The contender as a part of a sentence."""
    return Mention(phrase(contender), contender.description.name)


def listed(items: Sequence[Part]) -> list[Part]:
    """'A; B and C'."""
    parts: list[Part] = []
    for position, item in enumerate(items):
        parts += ["" if position == 0 else " and " if position == len(items) - 1 else "; ", item]
    return parts


def answer(planned: Sequence[Comparison]) -> Answer:
    """The answer of the run, from its planned comparisons."""
    head, loss, quantity = head_comparison(planned), loss_comparison(planned), quantity_comparison(planned)
    parts: list[Part] = []
    claims: list[Claim] = []
    numbers: list[KeyNumber] = []
    if head is not None:
        parts += _head_parts(head)
        claims += _as_claims(head)
        numbers += _key_numbers(head, "digits read right")
    if loss is not None:
        losses = "the losses on it" if parts else "the losses on a classification head"
        if loss.verdict in ("ahead", "behind"):
            losses = f"of {losses}, "
        parts += [", and " if parts else "", *_loss_parts(loss, losses)]
        claims += _as_claims(loss)
        numbers += _key_numbers(loss, "digits read right")
    if quantity is not None:
        parts += ["; " if parts else "", *_quantity_parts(quantity)]
        claims += _as_claims(quantity)
        numbers += _key_numbers(quantity, "closer to the true angle")
    if not parts:
        for task, condition in HARDEST.items():
            harder = loss_comparison(planned, task)
            if harder is not None:
                losses = "" if harder.verdict in ("ahead", "behind") else "the losses"
                parts += [f"{'; ' if parts else ''}{condition}, ", *_loss_parts(harder, losses)]
                claims += _as_claims(harder)
                numbers += _key_numbers(harder, "digits read right", f"{condition}, ")
    if not parts:
        return Answer(Statement(("No comparison of this run is finished, so there is nothing to conclude yet.",)), ())
    first = parts[0]
    if isinstance(first, str) and first:
        parts[0] = first[0].upper() + first[1:]
    return Answer(Statement((*parts, "."), tuple(claims)), tuple(numbers))


def head_comparison(planned: Sequence[Comparison]) -> Comparison | None:
    """MSE on a regression head against cross-entropy on a classification head, for the digit."""
    return _find(planned, "digit", lambda item: item.first.description.name == "regression-mse")


def loss_comparison(planned: Sequence[Comparison], task: TaskName = "digit") -> Comparison | None:
    """Of the losses on a classification head for digits, the one furthest from cross-entropy, decided ones first."""
    found = [
        item
        for item in planned
        if item.first.description.task == task
        and item.first.description.head == item.second.description.head == "classification"
        and item.by_seed is not None
    ]
    decided = [item for item in found if item.verdict in ("ahead", "behind")]
    equal = [item for item in found if item.verdict == "equal"]
    undecided = [item for item in found if item.verdict == "open"]
    return max(decided or undecided or equal, key=lambda item: abs(item.difference), default=None)


def quantity_comparison(planned: Sequence[Comparison]) -> Comparison | None:
    """Cross-entropy read by its expected value against MSE on a regression head, for the angle."""
    return _find(planned, "angle", lambda item: item.first.key == ("cross-entropy", "expected value"))


def _find(planned: Sequence[Comparison], task: TaskName, fits) -> Comparison | None:
    return next((item for item in planned if item.first.description.task == task and fits(item)), None)


def _as_claims(item: Comparison) -> list[Claim]:
    return [item] if item.verdict in ("ahead", "behind") else []


def _head_parts(item: Comparison) -> list[Part]:
    if item.verdict == "behind":
        return [
            f"for a category the head decides: a classification head with {phrase(item.second)} is {item.amount} "
            f"{ACCURACY.ahead} ",
            mention(item.first),
        ]
    if item.verdict == "ahead":
        return ["for a category ", mention(item.first), f" is {item.amount} {ACCURACY.ahead} ", mention(item.second)]
    if item.verdict == "equal":
        return ["for a category both heads are equal within 0.2 points"]
    return [f"for a category nothing is decided between the heads ({item.missing})"]


def _loss_parts(item: Comparison, losses: str) -> list[Part]:
    if item.verdict in ("ahead", "behind"):
        better, worse = (item.first, item.second) if item.verdict == "ahead" else (item.second, item.first)
        return [losses, mention(better), f" is {item.amount} {ACCURACY.ahead} ", mention(worse)]
    if item.verdict == "equal":
        return [f"{losses} differ by less than 0.2 points"]
    return [f"between {losses} nothing is decided ({item.missing})"]


def _quantity_parts(item: Comparison) -> list[Part]:
    if item.verdict in ("ahead", "behind"):
        better, worse = (item.first, item.second) if item.verdict == "ahead" else (item.second, item.first)
        return ["for a quantity ", mention(better), f" is {item.amount} {item.measure.ahead} ", mention(worse)]
    if item.verdict == "equal":
        return ["for a quantity ", mention(item.first), " and ", mention(item.second), " are equal within 0.2°"]
    return [
        "for a quantity nothing is decided between ",
        mention(item.first),
        " and ",
        mention(item.second),
        f" ({item.missing})",
    ]


def _key_numbers(item: Comparison, what: str, condition: str = "") -> list[KeyNumber]:
    """The number of a comparison; none where nothing could be compared."""
    if item.by_seed is None:
        return []
    better, worse = (item.second, item.first) if item.verdict == "behind" else (item.first, item.second)
    if item.verdict in ("ahead", "behind"):
        meaning = f"{'more ' if item.measure is ACCURACY else ''}{what} with {phrase(better)} than with {phrase(worse)}"
    elif item.verdict == "equal":
        meaning = f"between {phrase(better)} and {phrase(worse)}: equal within {_margin(item.measure)}"
    else:
        meaning = f"between {phrase(better)} and {phrase(worse)}: not decided, {item.missing}"
    return [KeyNumber(item.text, condition + meaning, item)]


def _margin(measure: Measure) -> str:
    return f"{(measure.margin or 0) * measure.scale:g}{measure.difference_unit}"


def planned_statements(planned: Sequence[Comparison], task: TaskName) -> list[Statement]:
    """Each verdict on the planned comparisons of a task, those of one kind together."""
    own = [item for item in planned if item.first.description.task == task]
    if not own:
        return []
    measure, reference = own[0].measure, mention(own[0].second)
    value = measure.value(own[0].second.summary(measure))
    statements = []
    for verdict, words in (("ahead", measure.ahead), ("behind", measure.behind)):
        group = [item for item in own if item.verdict == verdict]
        if group:
            amounts = listed(
                [Mention(f"{phrase(item.first)} (by {item.text})", item.first.description.name) for item in group]
            )
            verb = "is" if len(group) == 1 else "are"
            statements.append(Statement((*amounts, f" {verb} {words} ", reference, f" ({value})."), tuple(group)))
    equal = [item for item in own if item.verdict == "equal"]
    if equal:
        names = listed([Mention(f"{phrase(item.first)} ({item.text})", item.first.description.name) for item in equal])
        verb = "is" if len(equal) == 1 else "are"
        statements.append(Statement((*names, f" {verb} equal to ", reference, f" within {_margin(measure)}.")))
    for item in own:
        if item.verdict == "open":
            statements.append(
                Statement(
                    (
                        "Not decided: ",
                        mention(item.first),
                        " and ",
                        reference,
                        f" differ by {item.text}; {item.missing}.",
                    )
                )
            )
        if item.verdict == "none":
            statements.append(
                Statement(("Not compared with ", reference, ": ", mention(item.first), f"; {item.missing}."))
            )
    return statements


def ranking_statement(ranking: Ranking, task: TaskName) -> Statement:
    """Who has the best mean, and which of the others are decided to be behind."""
    measure = main_measure(task)
    best = ranking.best
    parts: list[Part] = ["Best mean: ", mention(best), f" ({measure.format(best.summary(measure))})"]
    behind = [item for item in ranking.others if item.verdict == "behind"]
    if ranking.others and len(behind) == len(ranking.others):
        return Statement((*parts, f"; it is {measure.ahead} every other objective."), tuple(behind))
    near = [mention(item.first) for item in ranking.others if item.verdict != "behind"]
    return Statement((*parts, *((". Not decided against ", *listed(near)) if near else ()), "."))


def probability_statements(comparisons: Sequence[Comparison]) -> list[Statement]:
    """The planned comparisons by the likelihood of the right digit."""
    statements = []
    for item in comparisons:
        if item.verdict in ("ahead", "behind"):
            words = item.measure.ahead if item.verdict == "ahead" else item.measure.behind
            statements.append(
                Statement(
                    (
                        mention(item.first),
                        f" is {item.text} {words} ",
                        mention(item.second),
                        f" by {item.measure.name}.",
                    ),
                    (item,),
                )
            )
        elif item.verdict == "open":
            statements.append(
                Statement(
                    (
                        f"By {item.measure.name} ",
                        mention(item.first),
                        " and ",
                        mention(item.second),
                        f" differ by {item.text}, which is not decided; {item.missing}.",
                    )
                )
            )
    return statements


def gradient_statements(experiment: GradientExperiment | None) -> list[Statement]:
    """What the formula and the images say about the gradient at the right class's logit."""
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
        parts += [
            "" if i == 0 else " and " if i == len(curves) - 1 else "; ",
            f"{format_share(share)} of its largest gradient{nothing} with ",
        ]
        parts.append(_named(curve))
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
                _named(curve),
            ]
            measured.append(f" ({len(gradients):,} image{'s' if len(gradients) > 1 else ''})")
    if measured:
        opening = (
            f"Measured on images whose right class has a probability below {format_share(CONFIDENTLY_WRONG)}, the "
            "median gradient is, of the formula's largest, "
        )
        inside, shown = _between_the_extremes(curves)
        ending = (
            "."
            if not shown
            else (
                f". {inside:,} of the {shown:,} images shown lie between the formula's two extremes: the rest of the "
                "probability spread evenly over the wrong classes, or all of it on one."
            )
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


def interpolate(line: Sequence[tuple[float, float]], x: float) -> float:
    """The height of a line through sorted points, linear between them; nan outside them."""
    if not line or not line[0][0] <= x <= line[-1][0]:
        return math.nan
    index = max(1, bisect.bisect_left(line, x, key=lambda point: point[0]))
    (left, low), (right, high) = line[index - 1], line[min(index, len(line) - 1)]
    return high if right == left else low + (high - low) * (x - left) / (right - left)


def _line(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    return sorted(zip(x, y, strict=True))


def _named(curve: GradientCurve) -> Mention:
    return Mention(curve.title.partition(", ")[2] or curve.title, curve.objective)


def _by_objective(experiment: RecoveryExperiment) -> dict[str, list[RecoveryCurve]]:
    found: dict[str, list[RecoveryCurve]] = {}
    for curve in experiment.curves:
        if curve.steps:
            found.setdefault(curve.objective, []).append(curve)
    return found


def recovery_statements(experiment: RecoveryExperiment | None) -> list[Statement]:
    """How fast a network gets away from a confident mistake, for each loss."""
    found = _by_objective(experiment) if experiment else {}
    if experiment is None or not found:
        return []
    names = {
        objective: Mention(curves[0].title.partition(", ")[2] or curves[0].title, objective)
        for objective, curves in found.items()
    }
    parts: list[Part] = [f"Back at {100 * experiment.threshold:.0f} % accuracy: "]
    for position, (objective, curves) in enumerate(found.items()):
        parts += ["; " if position else "", names[objective], f" {recovered_text(curves)}"]
    statements = [Statement((*parts, "."))]
    parts = ["Accuracy at the end: "]
    for position, (objective, curves) in enumerate(found.items()):
        ends = [100 * curve.accuracy[-1] for curve in curves]
        value = f"{statistics.fmean(ends):.1f} % ({min(ends):.1f} to {max(ends):.1f})"
        parts += ["; " if position else "", f"{value} with ", names[objective]]
    watched = min(curve.steps[-1] for curves in found.values() for curve in curves)
    statements.append(Statement((*parts, f" (after {watched} updates).")))
    for later in found:
        sooner = [(item, claim) for item in found if item != later and (claim := _sooner(found[item], found[later]))]
        if sooner:
            verb = "recovers" if len(sooner) == 1 else "recover"
            parts = [
                *listed([names[item] for item, _ in sooner]),
                f" {verb} sooner than ",
                names[later],
                " from every seed.",
            ]
            statements.append(Statement(tuple(parts), tuple(claim for _, claim in sooner)))
    return statements


def recovered_text(curves: Sequence[RecoveryCurve]) -> str:
    """'from 8 of 8 seeds, after 50 to 75 updates'."""
    steps = [curve.recovered_at for curve in curves if curve.recovered_at is not None]
    seeds = f"from {len(steps)} of {len(curves)} seed{'s' if len(curves) > 1 else ''}"
    if not steps:
        return f"{seeds} within {min(curve.steps[-1] for curve in curves)} updates"
    low, high = min(steps), max(steps)
    return f"{seeds}, after {low if low == high else f'{low} to {high}'} updates"


def _sooner(first: Sequence[RecoveryCurve], second: Sequence[RecoveryCurve]) -> Sooner | None:
    """Where `first` recovered from every seed, each time before `second` did, and often enough that it is no chance."""
    others = {curve.seed: curve.recovered_at for curve in second}
    pairs = [(curve.recovered_at, others.get(curve.seed)) for curve in first if curve.seed in others]
    if not pairs or any(mine is None or (other is not None and mine >= other) for mine, other in pairs):
        return None
    p_value = sign_flip_p_value([1.0] * len(pairs))
    return Sooner(first[0].title, second[0].title, p_value) if p_value <= SIGNIFICANCE else None


def caveats(results: Results, planned: Sequence[Comparison]) -> Iterable[str]:
    """What the numbers do not say, and how they were made."""
    finished = [run for run in results.runs if run.complete and run.epochs]
    seeds = sorted({run.seed for run in finished})
    if not finished:
        return
    yield tuning_caveat(results)
    if len(seeds) < 2:
        yield (
            "This run has one seed. A second run with another seed would give other numbers, and nothing here says how "
            "different, so no objective is said to be ahead of another. Run with more seeds to compare."
        )
    else:
        smallest = min((item.by_seed.sign_flip_p_value for item in planned if item.by_seed), default=1.0)
        yield (
            f"± is the half width of Student's {100 * CONFIDENCE:g} % interval over seeds, of differences seed by seed "
            "where two objectives are compared. One is said to be ahead of another where the difference is told from 0 "
            "both for other seeds (t test) and for other test images (McNemar's test for accuracy, a bootstrap for the "
            f"rest), each at {100 * SIGNIFICANCE:.0f} % after Holm's correction for the {len(planned)} comparisons "
            "planned beforehand. The exact sign-flip test beside them cannot go below "
            f"p = {format_p_value(2 / 2 ** len(seeds))} with {len(seeds)} seeds; the smallest here is "
            f"{format_p_value(smallest)}. Equal means that both intervals lie within {_margin(main_measure('digit'))} "
            f"or {_margin(main_measure('angle'))}."
        )
    yield (
        "The interval of a share knows how many test images there were, and holds for other seeds and other images; it "
        "stays within 0 and 100 %."
    )
    counts = {
        (item.task, item.name): sum((run.task, run.objective) == (item.task, item.name) for run in finished)
        for item in results.objectives
    }
    if len(set(counts.values())) > 1:
        yield "Not every objective has finished the same number of seeds; the table gives the number for each."


def tuning_caveat(results: Results) -> str:
    """Whether learning rates and epochs were tuned, to be said beside the claims."""
    sources = {item.rate_source for item in results.objectives}
    epochs = sorted(
        {
            max(len(run.epochs) for run in results.runs if run.task == item.task and run.epochs)
            for item in results.objectives
            if any(run.task == item.task and run.epochs for run in results.runs)
        }
    )
    trained = f"The number of epochs ({' and '.join(map(str, epochs))}) was not tuned." if epochs else ""
    if sources == {"tuned"}:
        words = (
            "Each objective is trained at its own best learning rate, found by the same search on validation images."
        )
    elif sources == {"option"}:
        words = "All objectives share one learning rate, given as an option and not tuned."
    elif sources <= {"tuned", "tuned elsewhere"}:
        words = (
            "The learning rates were tuned, but for another setting (data, network, batch size, epochs or task) than "
            "this run has: another rate could change what is said here."
        )
    else:
        untuned = ", ".join(sorted({item.name for item in results.objectives if item.rate_source == "default"}))
        words = f"Not tuned: the learning rate of {untuned}. Another rate could change what is said here."
    return f"{words} {trained}".strip()
