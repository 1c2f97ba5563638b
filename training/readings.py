"""What the measurements say about the sentence that this study grew from, and what to take from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from training.comparisons import Comparison, Ranking, compare
from training.measures import (
    ACCURACY,
    ANGLE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    Contender,
    Measure,
    contenders,
    main_measure,
)
from training.questions import HARDEST, TaskName
from training.results import Results
from training.sentences import phrase, recovered_text

SOURCE_SENTENCE = "MSE is for classification and CEE for regression"
SOURCE = "an introduction to loss functions after K. Saito's book Deep Learning from Scratch"

Verdict = Literal["confirmed", "refuted", "split", "not decided"]


@dataclass(frozen=True)
class Half:
    """Half of the source's sentence: the claim it makes here, the comparison that decides it, and the other forms.

    A loss of one name comes in several forms, and a sentence that names only the loss claims something of each: of MSE
    on raw outputs and on probabilities, of cross-entropy read by its expected value and by its most probable bin. To
    show only the form that does best would confirm nearly any sentence, to show only the worst refute it. So a claim
    that holds in one form and not in another is 'split', whichever of them is the better loss, and both forms are named
    with their numbers. The form that did best on the validation images when the learning rates were tuned is named
    first: the test images have no say in which.
    """

    sentence: str
    claim: str
    deciding: Comparison | None
    others: tuple[Comparison, ...]

    @property
    def forms(self) -> list[Comparison]:
        """Every form that was measured, the deciding one first."""
        found = [self.deciding, *self.others] if self.deciding else []
        return [item for item in found if item.by_seed is not None]

    @property
    def verdict(self) -> Verdict:
        """'confirmed' where the favoured is ahead in every form, 'split' where in some.

        Where it is ahead in none: 'refuted', or 'not decided' as long as one of them is open.
        """
        verdicts = [item.verdict for item in self.forms]
        if "ahead" in verdicts:
            return "confirmed" if set(verdicts) == {"ahead"} else "split"
        return "refuted" if verdicts and "open" not in verdicts else "not decided"

    @property
    def number(self) -> str:
        """The numbers that decide, in words: of a split claim one for each side."""
        if not self.forms:
            return "nothing was measured that could test it"
        told = _in_words(self.forms[0])
        holds = self.forms[0].verdict == "ahead"
        contrary = [_in_words(item) for item in self.forms if (item.verdict == "ahead") != holds]
        return f"{told}; but {'; '.join(contrary)}" if self.verdict == "split" else told


def _in_words(item: Comparison) -> str:
    first, second = phrase(item.first), phrase(item.second)
    if item.verdict == "equal":
        return f"{first} and {second} are equal ({item.text})"
    leads = (item.difference > 0) == item.measure.higher_is_better
    told = f"{first} is {item.text} {item.measure.ahead if leads else item.measure.behind} {second}"
    return told if item.verdict in ("ahead", "behind") else f"{told}, which is not decided ({item.missing})"


@dataclass(frozen=True)
class SourceReading:
    """The verdict on the whole sentence and on its halves."""

    halves: tuple[Half, Half]

    @property
    def verdict(self) -> Verdict:
        """That of both halves where they agree, 'not decided' where one is not, else 'split'."""
        first, second = self.halves[0].verdict, self.halves[1].verdict
        if "not decided" in (first, second):
            return "not decided"
        return first if first == second else "split"


def read_source(results: Results) -> SourceReading:
    """Put the source's sentence to the test: on a category MSE should win, on a quantity cross-entropy should."""
    digit = [item for item in contenders(results, "digit") if item.runs and item.description.head == "classification"]
    angle = [item for item in contenders(results, "angle", every_decoding=True) if item.runs]
    squared = [item for item in digit if item.description.family == "mean squared error"]
    textbook = [item for item in digit if item.description.name == "cee-softmax"] or [
        item for item in digit if item.description.name == "cross-entropy"
    ]
    binned = [item for item in angle if item.description.family == "cross-entropy"]
    direct = [item for item in angle if item.description.name == "regression-mse"]
    return SourceReading(
        (
            _half(
                results,
                "MSE is for classification",
                "a classification head reads more digits right when it is trained with MSE than with CEE",
                ACCURACY,
                squared,
                textbook,
                ("mse-raw", "highest output"),
            ),
            _half(
                results,
                "CEE for regression",
                "cross-entropy on the angle in bins comes closer to the true angle than MSE on a regression head",
                ANGLE_ERROR,
                [item for item in binned if item.description.name in ("cross-entropy", "cee-softmax")],
                direct,
                ("cross-entropy", "expected value"),
            ),
        )
    )


def _half(
    results: Results,
    sentence: str,
    claim: str,
    measure: Measure,
    favoured: Sequence[Contender],
    others: Sequence[Contender],
    usual: tuple[str, str],
) -> Half:
    found = compare([(measure, item, other) for item in favoured for other in others])
    candidates = [item for item in favoured if item.decoding == item.description.primary_decoding]
    scores = _validation_scores(results, main_task=("angle" if measure is ANGLE_ERROR else "digit"))
    scored = [item for item in candidates if item.description.name in scores]
    if scored:
        choose = max if measure.higher_is_better else min
        usual = choose(scored, key=lambda item: scores[item.description.name]).key
    deciding = next((item for item in found if item.first.key == usual), found[0] if found else None)
    return Half(sentence, claim, deciding, tuple(item for item in found if item is not deciding))


def _validation_scores(results: Results, main_task: TaskName) -> dict[str, float]:
    if results.tuning is None:
        return {}
    return {item.objective: item.best_score for item in results.tuning.objectives if item.task == main_task}


@dataclass(frozen=True)
class Advice:
    """A situation, what to take in it, and the figure that says so."""

    situation: str
    take: str
    figure: str


_HARDER_SITUATIONS: dict[TaskName, str] = {
    "label-noise-40": "A category, and many labels are wrong",
    "few-images-100": "A category, and few images",
}


def advise(results: Results, planned: Sequence[Comparison], rankings: Mapping[str, Ranking | None]) -> list[Advice]:
    """What to use when: one line for each situation that the run has a figure for."""
    digit = {item.description.name: item for item in contenders(results, "digit") if item.runs}
    angle = {item.key: item for item in contenders(results, "angle", every_decoding=True) if item.runs}
    lines: list[Advice] = []
    entropy = digit.get("cross-entropy")
    likelihood = NEGATIVE_LOG_LIKELIHOOD
    if entropy is not None:
        lines.append(
            Advice(
                "A category, and the probabilities matter",
                "classification head, cross-entropy on logits",
                f"{likelihood.name} {likelihood.format(entropy.summary(likelihood))}, "
                f"accuracy {ACCURACY.value(entropy.summary(ACCURACY))}",
            )
        )
    ranking = rankings.get("digit")
    if ranking is not None and ranking.others:
        lines.append(
            Advice(
                "A category, and only the decision matters",
                _head_and_loss(ranking.best),
                f"accuracy {ACCURACY.value(ranking.best.summary(ACCURACY))}; {_lead(ranking, entropy)}",
            )
        )
    ranking = rankings.get("angle")
    if ranking is not None and ranking.others:
        lines.append(
            Advice(
                "A quantity",
                _head_and_loss(ranking.best),
                f"off by {ANGLE_ERROR.value(ranking.best.summary(ANGLE_ERROR))} (root mean square); "
                f"{_lead(ranking, angle.get(('regression-mse', 'direct')))}",
            )
        )
    for task, situation in _HARDER_SITUATIONS.items():
        ranking = rankings.get(task)
        if ranking is not None and ranking.others:
            among = {item.description.name: item for item in contenders(results, task) if item.runs}
            lines.append(
                Advice(
                    situation,
                    _head_and_loss(ranking.best),
                    f"accuracy {ACCURACY.value(ranking.best.summary(ACCURACY))} {HARDEST[task]}; "
                    f"{_lead(ranking, among.get('cross-entropy'))}",
                )
            )
    if results.recovery_experiment is not None:
        curves = results.recovery_experiment.curves
        told = [
            f"{name} {recovered_text(own)}"
            for name, objective in (
                ("cross-entropy recovers", "cross-entropy"),
                ("MSE on probabilities", "mse-softmax"),
            )
            if (own := [curve for curve in curves if curve.objective == objective and curve.steps])
        ]
        if told:
            lines.append(
                Advice(
                    "A network may start, or end up, confidently wrong",
                    "cross-entropy, never MSE on probabilities",
                    "; ".join(told),
                )
            )
    both = next((item for item in planned if item.first.key == ("cee-softmax", "most probable")), None)
    if both is not None and both.by_seed is not None:
        outcome = "equal" if both.verdict == "equal" else "they differ by"
        lines.append(
            Advice(
                "The textbook's CEE, or cross-entropy",
                "cross-entropy on logits: it needs no constant in the logarithm",
                f"accuracy {outcome} ({both.text})" if both.verdict == "equal" else f"{outcome} {both.text}",
            )
        )
    return lines


def _head_and_loss(contender: Contender) -> str:
    if contender.description.head == "regression":
        return phrase(contender)
    return f"classification head, {phrase(contender)}"


def _lead(ranking: Ranking, other: Contender | None) -> str:
    """How far the best is ahead of one other, or of the nearest."""
    measure = main_measure(ranking.best.description.task)
    if other is None or other.key == ranking.best.key:
        item = min(ranking.others, key=lambda item: abs(item.difference))
    else:
        item = next((item for item in ranking.others if item.first.key == other.key), ranking.others[0])
    words = {
        "behind": f"{item.text} {measure.ahead} {phrase(item.first)}",
        "equal": f"equal to {phrase(item.first)} ({item.text})",
    }
    return words.get(item.verdict, f"not decided against {phrase(item.first)} ({item.text})")
