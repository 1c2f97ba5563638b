"""The conclusions follow the numbers: every world, whoever wins in it, and never where intervals overlap."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.conclusions import (
    COMPARATIVE_PHRASES,
    Mention,
    Statement,
    contenders,
    draw_conclusions,
    format_summary,
    parity_holds,
)
from training.statistics import summarize

from .synthetic_results import ANGLE_ERROR, DIGIT_ERROR, build_results

# Two-sided 95 % quantiles of Student's t from a printed table, by number of values.
T_TABLE = {2: 12.706205, 3: 4.302653, 4: 3.182446}
AHEAD = ("more accurate than", "closer to the true angle than", "ahead of", "better calibrated than", "sooner than")
BEHIND = ("less accurate than", "further from the true angle than", "behind", "worse calibrated than")

errors = st.builds(
    lambda centre, noise: tuple(min(max(centre * (1 + x), 1e-4), 0.9999) for x in noise),
    st.floats(0.01, 0.6),
    st.lists(st.floats(-0.04, 0.04), min_size=1, max_size=4),
)
worlds = st.fixed_dictionaries(dict.fromkeys(DIGIT_ERROR, errors))
angle_worlds = st.integers(1, 4).flatmap(
    lambda seeds: st.fixed_dictionaries(
        {
            key: st.builds(
                lambda centre, noise: tuple(centre + x for x in noise),
                st.floats(6.0, 12.0),
                st.lists(st.floats(-0.3, 0.3), min_size=seeds, max_size=seeds),
            )
            for key in ANGLE_ERROR
        }
    )
)


def interval(values):
    if len(values) < 2:
        return None
    values = np.array(values, dtype=np.float64)
    half = T_TABLE[len(values)] * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def is_less(first, second, slack=0.0):
    """Whether the first values' interval lies below the second's, by the table above."""
    a, b = interval(first), interval(second)
    return a is not None and b is not None and a[1] < b[0] + slack


def spoken_pairs(statement: Statement) -> set[tuple[str, str]]:
    """(better, worse) as a reader would take them from the sentences alone."""
    pairs = set()
    before: list[str] = []
    after: list[str] = []
    direction = 0

    def close() -> None:
        for a in before:
            for b in after:
                if direction:
                    pairs.add((a, b) if direction > 0 else (b, a))

    for part in statement.parts:
        if isinstance(part, Mention):
            (after if direction else before).append(part.label)
            continue
        for piece in re.split(r"(\. |\.$|, but |: )", part):
            if re.fullmatch(r"\. |\.$|, but |: ", piece):
                close()
                before, after, direction = [], [], 0
            elif any(phrase in piece for phrase in BEHIND):
                direction = -1
            elif any(phrase in piece for phrase in AHEAD):
                direction = 1
    close()
    return pairs


def check_claims(results, digit, angle):
    conclusions = draw_conclusions(results)
    numbers = {}
    for contender in contenders(results, "digit"):
        numbers["accuracy", contender.label] = [-(1 - e) for e in digit[contender.description.name]]
    for contender in contenders(results, "angle", every_decoding=True):
        key = contender.description.name, contender.decoding
        numbers["root mean squared error", contender.label] = list(angle[key])
    for claim in conclusions.claims:
        if (claim.measure, claim.better) in numbers:
            better, worse = numbers[claim.measure, claim.better], numbers[claim.measure, claim.worse]
            assert is_less(better, worse, slack=1e-9), claim
    for statement in conclusions.statements:
        speaks = any(phrase in statement.text for phrase in COMPARATIVE_PHRASES)
        assert speaks == bool(statement.claims), statement.text
        if "every other objective" not in statement.text and "matters more" not in statement.text:
            assert spoken_pairs(statement) == {(claim.better, claim.worse) for claim in statement.claims}, (
                statement.text
            )
    return conclusions, numbers


@settings(max_examples=60, deadline=None)
@given(worlds, angle_worlds)
def test_no_world_makes_the_text_say_more_than_its_intervals(digit, angle):
    results = build_results(digit=digit, angle=angle, details=False, experiments=False)
    conclusions, numbers = check_claims(results, digit, angle)
    claimed = {(claim.measure, claim.better, claim.worse) for claim in conclusions.claims}
    # And what the intervals do separate is said: head against head, in both directions.
    regression = "Regression head, MSE"
    for (measure, label), values in numbers.items():
        if label == regression:
            continue
        if is_less(values, numbers[measure, regression], slack=-1e-9):
            assert (measure, label, regression) in claimed
        if is_less(numbers[measure, regression], values, slack=-1e-9):
            assert (measure, regression, label) in claimed


@settings(max_examples=25, deadline=None)
@given(worlds, angle_worlds)
def test_verdicts_on_the_source_follow_the_numbers(digit, angle):
    results = build_results(digit=digit, angle=angle, details=False, experiments=False)
    _, numbers = check_claims(results, digit, angle)
    for half in draw_conclusions(results).source:
        assert half.readings
        verdicts = set()
        for reading in half.readings:
            favoured = numbers[reading.measure, reading.favoured.label]
            other = numbers[reading.measure, reading.other.label]
            if reading.verdict == "agrees":
                assert is_less(favoured, other, slack=1e-9)
            elif reading.verdict == "disagrees":
                assert is_less(other, favoured, slack=1e-9)
            else:
                assert not is_less(favoured, other, slack=-1e-9)
                assert not is_less(other, favoured, slack=-1e-9)
            verdicts.add(reading.verdict)
        assert ("contradict" in half.summary) == ("disagrees" in verdicts)
        assert ("agree" in half.summary) == ("agrees" in verdicts)


def text_of(results):
    return "\n".join(statement.text for statement in draw_conclusions(results).statements)


def test_expected_world():
    text = text_of(build_results())
    assert "“Classification head, MSE on raw outputs” (97.97\N{NO-BREAK SPACE}±" in text
    assert "is more accurate than every other objective" in text
    assert "For the digit, the head matters more than the loss" in text
    assert "“Regression head, MSE” (8.71" in text
    first, second = draw_conclusions(build_results()).source
    assert first.summary == "the measurements agree with it in 2 and contradict it in 4 of 6 comparisons"
    assert second.summary == "the measurements agree with it in 1 and contradict it in 1 of 2 comparisons"


def test_reversed_world():
    digit = {name: tuple(0.3 + 0.1 * i + 0.001 * s for s in range(3)) for i, name in enumerate(reversed(DIGIT_ERROR))}
    digit["regression-mse"] = (0.01, 0.011, 0.012)
    angle = {
        ("regression-mse", "direct"): (12.0, 12.1, 12.2),
        ("cross-entropy", "most probable"): (8.0, 8.1, 8.2),
        ("cross-entropy", "expected value"): (9.0, 9.1, 9.2),
    }
    results = build_results(digit=digit, angle=angle)
    conclusions, _ = check_claims(results, digit, angle)
    assert conclusions.headline[0].text.startswith("To name the digit, a category, “Regression head, MSE” (98.9")
    assert "“Regression head, MSE” (98.90\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.25\N{NO-BREAK SPACE}%). " in (
        conclusions.digit[0].text
    )
    assert "are less accurate than “Regression head, MSE”" in conclusions.digit[0].text
    assert conclusions.source[1].summary == "the measurements agree with it in all 2 comparisons"


def test_world_without_differences():
    digit = dict.fromkeys(DIGIT_ERROR, (0.03, 0.05, 0.04))
    angle = dict.fromkeys(ANGLE_ERROR, (8.0, 9.0, 8.5))
    conclusions, _ = check_claims(build_results(digit=digit, angle=angle, experiments=False), digit, angle)
    assert not conclusions.claims
    assert "the runs cannot tell" in conclusions.headline[0].text
    assert all(half.summary == "these runs cannot decide it" for half in conclusions.source)


def test_one_seed_claims_nothing():
    conclusions = draw_conclusions(build_results(seeds=1, experiments=False))
    assert not conclusions.claims
    assert "One seed has no spread" in conclusions.headline[0].text
    assert not conclusions.digit
    assert any("one seed" in caveat for caveat in conclusions.caveats)
    assert not any(phrase in statement.text for statement in conclusions.statements for phrase in COMPARATIVE_PHRASES)


def test_nothing_finished():
    results = build_results(digit={}, angle={}, experiments=False)
    conclusions = draw_conclusions(results)
    assert [statement.text for statement in conclusions.statements] == [
        "No training run has finished, so there is nothing to conclude yet."
    ]


def test_unfinished_runs_do_not_count():
    results = build_results()
    half = [run.model_copy(update={"complete": run.seed == 0}) for run in results.runs]
    conclusions = draw_conclusions(results.model_copy(update={"runs": half, "recovery_experiment": None}))
    assert not conclusions.claims


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_values_that_are_not_finite_are_never_compared(poison):
    angle = {**ANGLE_ERROR, ("regression-mse", "direct"): (8.7, poison, 8.8)}
    conclusions = draw_conclusions(build_results(angle=angle, experiments=False))
    claims = [claim for claim in conclusions.claims if claim.measure == "root mean squared error"]
    assert claims
    assert all("Regression head, MSE" not in (claim.better, claim.worse) for claim in claims)
    assert "“Regression head, MSE” (not finite in 1 of 3)" in conclusions.angle[0].text
    assert not conclusions.angle[0].claims


def test_recovery_is_claimed_only_where_it_is_separate():
    results = build_results()
    texts = [statement.text for statement in draw_conclusions(results).recovery]
    assert "0 of 3 seeds within 400 updates" in texts[0]
    assert texts[1].startswith("Accuracy at the end: 94.8")
    assert any("recover sooner than “Classification head, MSE on probabilities”" in text for text in texts)
    experiment = results.recovery_experiment
    assert experiment is not None
    mixed = [
        curve.model_copy(update={"recovered_at": 5 if curve.seed else None}) if "softmax" in curve.objective else curve
        for curve in experiment.curves
    ]
    results = results.model_copy(update={"recovery_experiment": experiment.model_copy(update={"curves": mixed})})
    assert not any(statement.claims for statement in draw_conclusions(results).recovery)


def test_gradient_sentence_reads_the_curves():
    results = build_results()
    text = draw_conclusions(results).gradient[0].text
    assert "one chance in 10,000" in text
    assert "nearly nothing, with “Classification head, MSE on probabilities” and 100 %" in text
    experiment = results.gradient_experiment
    assert experiment is not None
    flat = [curve.model_copy(update={"theory_gradient": [1.0] * 120}) for curve in experiment.curves]
    results = results.model_copy(update={"gradient_experiment": experiment.model_copy(update={"curves": flat})})
    assert "nothing" not in draw_conclusions(results).gradient[0].text


def test_measured_gradients_of_the_confidently_wrong_are_put_into_words():
    results = build_results()
    experiment = results.gradient_experiment
    assert experiment is not None
    curves = [
        curve.model_copy(
            update={
                "theory_gradient": [2.0] * 120,
                "measured_probability": [0.001, 0.002, 0.003, 0.5],
                "measured_gradient": [0.5, 1.0, math.nan, 7.0],
            }
        )
        for curve in experiment.curves
    ]
    results = results.model_copy(update={"gradient_experiment": experiment.model_copy(update={"curves": curves})})
    text = draw_conclusions(results).gradient[1].text
    assert "below 1 %" in text
    assert "38 % with “Classification head, MSE on probabilities” (2 images)" in text


def _between_the_extremes(results):
    found = re.search(r"([\d,]+) of the ([\d,]+) images shown lie between", draw_conclusions(results).gradient[1].text)
    assert found is not None
    return [int(number.replace(",", "")) for number in found.groups()]


def test_images_between_the_extremes_of_the_formula_are_counted():
    results = build_results()
    inside, shown = _between_the_extremes(results)
    assert shown == 1200
    assert inside > 0.99 * shown
    experiment = results.gradient_experiment
    assert experiment is not None
    curves = [
        curve.model_copy(update={"measured_gradient": [3 * g for g in curve.measured_gradient[:-1]] + [math.nan]})
        for curve in experiment.curves
    ]
    results = results.model_copy(update={"gradient_experiment": experiment.model_copy(update={"curves": curves})})
    inside, shown = _between_the_extremes(results)
    assert shown == 1198
    assert inside < 0.1 * shown


def test_parity_does_not_take_a_record_at_its_word():
    record = build_results().parity[0]
    assert parity_holds(record)
    assert not parity_holds(record.model_copy(update={"passed": False}))
    assert not parity_holds(record.model_copy(update={"largest_weight_difference": 1.0}))
    assert not parity_holds(record.model_copy(update={"largest_loss_difference": math.nan}))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), "-"),
        ((0.5,), "50.00%"),
        ((0.5, math.nan), "not finite in 1 of 2"),
        ((0.97, 0.98, 0.99), "98.0 ± 2.5%"),
        ((0.1, 0.5, 0.9), "50 ± 99%"),
        ((0.5, 0.5), "50.00 ± 0.00%"),
        ((0.500000001, 0.5), "50.00 ± <0.01%"),
    ],
)
def test_numbers_are_written_to_the_precision_of_their_interval(values, text):
    assert format_summary(summarize(values), 100, "%").replace("\N{NO-BREAK SPACE}", " ") == text
