"""The conclusions follow the numbers: every world, whoever wins in it, and never more than the comparisons decide."""

from __future__ import annotations

import math
import re

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.comparisons import Comparison, planned_comparisons, rank
from training.measures import (
    ACCURACY,
    ANGLE_ERROR,
    NEGATIVE_LOG_LIKELIHOOD,
    Measure,
    contenders,
    format_interval,
    format_summary,
)
from training.parity import holds
from training.questions import TaskName
from training.readings import SOURCE_SENTENCE, advise, read_source
from training.results import Results
from training.sentences import (
    Mention,
    Statement,
    answer,
    caveats,
    gradient_statements,
    planned_statements,
    ranking_statement,
    recovery_statements,
    tuning_caveat,
)
from training.statistics import summarize, summarize_shares

from .synthetic_results import ANGLE_ERROR as ANGLES
from .synthetic_results import DIGIT_ERROR, IMAGES, build_results

AHEAD = (ACCURACY.ahead, ANGLE_ERROR.ahead, "ahead of", "sooner than")
BEHIND = (ACCURACY.behind, ANGLE_ERROR.behind, "behind")
COMPARATIVE = (*AHEAD, *BEHIND)

errors = st.builds(
    lambda centre, noise: tuple(min(max(centre * (1 + x), 1e-4), 0.9999) for x in noise),
    st.floats(0.01, 0.6),
    st.lists(st.floats(-0.04, 0.04), min_size=3, max_size=5),
)
worlds = st.fixed_dictionaries(dict.fromkeys(DIGIT_ERROR, errors))
angle_worlds = st.integers(1, 5).flatmap(
    lambda seeds: st.fixed_dictionaries(
        {
            key: st.builds(
                lambda centre, noise: tuple(centre + x for x in noise),
                st.floats(6.0, 12.0),
                st.lists(st.floats(-0.3, 0.3), min_size=seeds, max_size=seeds),
            )
            for key in ANGLES
        }
    )
)


def p_value(differences: list[float]) -> float:
    """Student's paired test, by mpmath."""
    count = len(differences)
    error = np.std(differences, ddof=1) / math.sqrt(count)
    if error == 0:
        return 0.0 if np.mean(differences) else 1.0
    t2 = (np.mean(differences) / error) ** 2
    return float(mpmath.betainc((count - 1) / 2, 0.5, 0, (count - 1) / (count - 1 + t2), regularized=True))


def statements_of(results: Results) -> list[Statement]:
    planned = planned_comparisons(results)
    found = [answer(planned).sentence]
    for task in ("digit", "angle"):
        found += planned_statements(planned, task)
        ranking = rank(results, task)
        if ranking is not None and ranking.others:
            found.append(ranking_statement(ranking, task))
    return [*found, *recovery_statements(results.recovery_experiment)]


def text_of(results: Results) -> str:
    return "\n".join(statement.text for statement in statements_of(results))


@settings(max_examples=12, deadline=None)
@given(worlds, angle_worlds)
def test_every_verdict_of_every_world_is_what_the_tests_decide(digit, angle):
    results = build_results(digit=digit, angle=angle, experiments=False)
    planned = planned_comparisons(results)
    assert len(planned) == 6
    raw = []
    for item in planned:
        task = item.first.description.task
        values = [digit[c.description.name] if task == "digit" else angle[c.key] for c in (item.first, item.second)]
        sign = -1 if task == "digit" else 1
        raw.append([sign * (a - b) for a, b in zip(*values, strict=False)])
    p_values = [p_value(differences) if len(differences) > 1 else 1.0 for differences in raw]
    order = sorted(range(6), key=lambda index: p_values[index])
    decided = set()
    for step, index in enumerate(order):
        if p_values[index] * (6 - step) > 0.05:
            break
        decided.add(index)
    for index, item in enumerate(planned):
        if len(raw[index]) < 2:
            assert item.verdict == "none"
            continue
        assert item.difference == pytest.approx(np.mean(raw[index]), abs=1e-9)
        if item.verdict in ("ahead", "behind"):
            assert index in decided
            assert (item.difference > 0) == ((item.verdict == "ahead") == item.measure.higher_is_better)
        elif item.verdict == "open":
            # Where the seeds decide, only the images can leave it open.
            assert index not in decided or item.image_p_value > 0.05
        else:
            assert abs(item.difference) < 0.2


@settings(max_examples=12, deadline=None)
@given(worlds, angle_worlds)
def test_no_sentence_of_any_world_says_more_than_its_claims(digit, angle):
    results = build_results(digit=digit, angle=angle, experiments=False)
    for statement in statements_of(results):
        assert any(phrase in statement.text for phrase in COMPARATIVE) == bool(statement.claims), statement.text
        for claim in statement.claims:
            if isinstance(claim, Comparison):
                assert claim.verdict in ("ahead", "behind")


def test_expected_world():
    results = build_results()
    text = text_of(results)
    assert text.startswith("For a category the head decides: a classification head with cross-entropy is 25.60 points")
    assert "MSE on raw outputs (by 0.47" in text
    assert "cross-entropy read by its expected value is 0.61° closer" in text
    assert "Best mean: MSE on raw outputs (97.97" in text
    found = read_source(results)
    # The least squares form did best on validation images, so it stands for MSE.
    assert found.halves[0].deciding is not None
    assert found.halves[0].deciding.first.description.name == "mse-raw"
    # What holds for one form of a loss only is no confirmation, and both forms are named with their numbers.
    assert [half.verdict for half in found.halves] == ["split", "split"]
    assert found.verdict == "split"
    squared, binned = (half.number for half in found.halves)
    assert squared.startswith("MSE on raw outputs is 0.47")
    assert "; but MSE on probabilities is" in squared
    assert "less accurate than CEE" in squared
    assert binned.startswith("cross-entropy read by its expected value is 0.61")
    assert "; but cross-entropy read by its most probable bin is" in binned
    assert SOURCE_SENTENCE == "MSE is for classification and CEE for regression"


def test_the_verdict_on_the_source_can_be_anything():
    base = {name: tuple(0.02 + 1e-4 * s for s in range(6)) for name in DIGIT_ERROR}
    worse = tuple(0.04 + 1.3e-4 * s for s in range(6))
    angles = {key: tuple(8.0 + 0.01 * s for s in range(6)) for key in ANGLES}
    far = tuple(9.0 + 0.013 * s for s in range(6))

    def verdict(digit, angle):
        return read_source(build_results(digit=digit, angle=angle, experiments=False, tuned=False)).verdict

    squared_loses = {**base, "mse-raw": worse, "mse-softmax": worse}
    squared_wins = {**base, "cee-softmax": worse}
    entropy_loses = {**angles, ("cross-entropy", "expected value"): far}
    entropy_wins = {**angles, ("regression-mse", "direct"): far}
    assert verdict(squared_loses, entropy_loses) == "refuted"
    assert verdict(squared_wins, entropy_wins) == "confirmed"
    assert verdict(squared_loses, entropy_wins) == "split"
    assert verdict(squared_wins, angles) == "split"
    one_form = {**base, "cee-softmax": worse, "mse-softmax": worse}
    assert verdict(one_form, entropy_wins) == "split"
    assert verdict(one_form, entropy_loses) == "split"
    few = {key: values[:2] for key, values in entropy_wins.items()}
    assert verdict(squared_wins, {**few, ("regression-mse", "direct"): (3.0, 12.0)}) == "not decided"
    assert verdict({}, {}) == "not decided"


def test_a_claim_that_holds_only_in_the_form_that_validated_worse_is_split_too():
    digit = {name: tuple(0.02 + 1e-4 * s for s in range(6)) for name in DIGIT_ERROR}
    worse = tuple(0.04 + 1.3e-4 * s for s in range(6))
    results = build_results(digit={**digit, "cee-softmax": worse, "mse-raw": worse}, experiments=False)
    half = read_source(results).halves[0]
    assert half.forms[0].first.description.name == "mse-raw"
    assert half.verdict == "split"
    assert half.number.startswith("MSE on raw outputs and CEE on probabilities are equal")
    assert "; but MSE on probabilities is 2." in half.number
    assert half.number.endswith("more accurate than CEE on probabilities")


def test_world_without_differences():
    digit = dict.fromkeys(DIGIT_ERROR, (0.03, 0.0301, 0.0299, 0.03, 0.0302))
    angle = dict.fromkeys(ANGLES, (8.0, 8.1, 8.2, 8.05))
    results = build_results(digit=digit, angle=angle, experiments=False)
    assert {item.verdict for item in planned_comparisons(results)} == {"equal"}
    text = text_of(results)
    assert text.startswith("For a category both heads are equal within 0.2 points")
    assert not any(statement.claims for statement in statements_of(results))


def test_agreement_of_seeds_on_one_image_is_no_proof():
    digit = {**dict.fromkeys(DIGIT_ERROR, (0.5,) * 8), "regression-mse": (0.4999,) * 8}
    results = build_results(digit=digit, angle={}, experiments=False)
    head = next(item for item in planned_comparisons(results) if item.first.description.name == "regression-mse")
    assert head.by_seed is not None
    assert head.by_seed.t_p_value == 0.0
    assert head.verdict == "equal"
    wide = {**digit, "regression-mse": (0.4,) * 8}
    results = build_results(digit=wide, angle={}, experiments=False, details=False)
    # Without what each image came to nothing is known about other images.
    head = next(item for item in planned_comparisons(results) if item.first.description.name == "regression-mse")
    assert head.by_image is None
    assert head.verdict == "open"


def test_an_open_comparison_says_about_how_many_seeds_it_needs():
    digit = {**dict.fromkeys(DIGIT_ERROR, (0.03,) * 4), "mse-raw": (0.024, 0.031, 0.026, 0.029)}
    results = build_results(digit=digit, angle={}, experiments=False)
    item = next(item for item in planned_comparisons(results) if item.first.description.name == "mse-raw")
    assert item.verdict == "open"
    found = re.fullmatch(r"about (\d+) more seeds needed", item.missing)
    assert found
    more = int(found[1])
    assert more > 2
    again = {name: tuple(values[s % 4] for s in range(4 + 2 * more)) for name, values in digit.items()}
    results = build_results(digit=again, angle={}, experiments=False)
    item = next(item for item in planned_comparisons(results) if item.first.description.name == "mse-raw")
    assert item.verdict != "open"


def test_comparisons_can_be_recomputed_from_what_is_stored():
    results = build_results()
    pairs: list[tuple[TaskName, Measure]] = [
        ("digit", ACCURACY),
        ("angle", ANGLE_ERROR),
        ("digit", NEGATIVE_LOG_LIKELIHOOD),
    ]
    for task, measure in pairs:
        for item in contenders(results, task):
            by_seed = item.by_seed(measure)
            rows = item.by_image(measure, list(by_seed))
            if not by_seed:
                continue
            assert rows is not None
            assert rows.shape == (len(by_seed), IMAGES)
            means = np.sqrt((rows**2).mean(axis=1)) if measure is ANGLE_ERROR else rows.mean(axis=1)
            np.testing.assert_allclose(means, list(by_seed.values()), rtol=2e-3)


def test_one_seed_claims_nothing():
    results = build_results(seeds=1)
    assert {item.verdict for item in planned_comparisons(results)} == {"none"}
    assert not any(statement.claims for statement in statements_of(results))
    assert "one seed has no spread" in text_of(results)
    assert any("one seed" in caveat for caveat in caveats(results, planned_comparisons(results)))


def test_nothing_finished():
    results = build_results(digit={}, angle={}, experiments=False)
    assert text_of(results) == "No comparison of this run is finished, so there is nothing to conclude yet."
    assert advise(results, [], {}) == []


def test_unfinished_runs_do_not_count():
    results = build_results()
    half = [run.model_copy(update={"complete": run.seed == 0}) for run in results.runs]
    results = results.model_copy(update={"runs": half, "recovery_experiment": None})
    assert not any(statement.claims for statement in statements_of(results))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_diverged_run_is_said_to_be_one_and_never_compared(poison):
    angle = {**ANGLES, ("cross-entropy", "most probable"): (8.7, poison, 8.8)}
    results = build_results(angle=angle, experiments=False)
    item = next(item for item in planned_comparisons(results) if item.first.key == ("cross-entropy", "most probable"))
    assert item.verdict == "none"
    assert "diverged from 1 of 3 seeds." in text_of(results)
    contender = next(c for c in contenders(results, "angle", every_decoding=True) if c.decoding == "most probable")
    assert ANGLE_ERROR.format(contender.summary(ANGLE_ERROR)) == "diverged in 1 of 3"


def test_the_learning_rate_is_said_beside_the_claim_where_it_was_not_tuned():
    def told(source):
        results = build_results()
        objectives = [item.model_copy(update={"rate_source": source}) for item in results.objectives]
        return tuning_caveat(results.model_copy(update={"objectives": objectives}))

    assert "its own best learning rate" in told("tuned")
    assert "tuned, but for another setting" in told("tuned elsewhere")
    assert "not tuned" in told("option")
    assert "Not tuned: the learning rate of cee-softmax, cross-entropy" in told("default")
    assert all("number of epochs (3 and 5) was not tuned" in told(source) for source in ("tuned", "option"))


def test_recovery_is_claimed_only_where_every_seed_shows_it_and_there_are_enough():
    few = build_results().recovery_experiment
    assert few is not None
    assert not any(statement.claims for statement in recovery_statements(few))
    many = [curve.model_copy(update={"seed": curve.seed + 3 * k}) for k in range(3) for curve in few.curves]
    experiment = few.model_copy(update={"curves": many})
    texts = [statement.text for statement in recovery_statements(experiment)]
    assert "from 0 of 9 seeds within 400 updates" in texts[0]
    assert texts[1].startswith("Accuracy at the end: 94.8")
    assert "cross-entropy and MSE on raw outputs recover sooner than MSE on probabilities from every seed." in texts
    mixed = [
        curve.model_copy(update={"recovered_at": 5 if curve.seed else None}) if "softmax" in curve.objective else curve
        for curve in experiment.curves
    ]
    claims = [
        claim
        for statement in recovery_statements(experiment.model_copy(update={"curves": mixed}))
        for claim in statement.claims
    ]
    assert not any("probabilities" in claim.worse for claim in claims if not isinstance(claim, Comparison))


def test_gradient_sentence_reads_the_curves():
    experiment = build_results().gradient_experiment
    assert experiment is not None
    text = gradient_statements(experiment)[0].text
    assert "one chance in 10,000" in text
    assert "nearly nothing, with MSE on probabilities and 100 %" in text
    flat = [curve.model_copy(update={"theory_gradient": [1.0] * 120}) for curve in experiment.curves]
    assert "nothing" not in gradient_statements(experiment.model_copy(update={"curves": flat}))[0].text


def test_measured_gradients_of_the_confidently_wrong_are_put_into_words():
    experiment = build_results().gradient_experiment
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
    text = gradient_statements(experiment.model_copy(update={"curves": curves}))[1].text
    assert "below 1 %" in text
    assert "38 % with MSE on probabilities (2 images)" in text


def between_the_extremes(experiment) -> list[int]:
    found = re.search(r"([\d,]+) of the ([\d,]+) images shown lie between", gradient_statements(experiment)[1].text)
    assert found is not None
    return [int(number.replace(",", "")) for number in found.groups()]


def test_images_between_the_extremes_of_the_formula_are_counted():
    experiment = build_results().gradient_experiment
    assert experiment is not None
    inside, shown = between_the_extremes(experiment)
    assert shown == 1200
    assert inside > 0.99 * shown
    curves = [
        curve.model_copy(update={"measured_gradient": [3 * g for g in curve.measured_gradient[:-1]] + [math.nan]})
        for curve in experiment.curves
    ]
    inside, shown = between_the_extremes(experiment.model_copy(update={"curves": curves}))
    assert shown == 1198
    assert inside < 0.1 * shown


def test_advice_has_five_lines_each_with_its_figure():
    results = build_results()
    lines = advise(
        results, planned_comparisons(results), {"digit": rank(results, "digit"), "angle": rank(results, "angle")}
    )
    assert len(lines) == 5
    assert all(re.search(r"\d", line.figure) for line in lines)
    assert lines[1].take == "classification head, MSE on raw outputs"
    assert "97.97" in lines[1].figure
    assert lines[2].take == "classification head, cross-entropy read by its expected value"


def test_parity_does_not_take_a_record_at_its_word():
    record = build_results().parity[0]
    assert holds(record)
    assert not holds(record.model_copy(update={"passed": False}))
    assert not holds(record.model_copy(update={"largest_weight_difference": 1.0}))
    assert not holds(record.model_copy(update={"largest_loss_difference": math.nan}))


def test_a_mention_is_the_objective_s_colour():
    for statement in statements_of(build_results()):
        names = {part.objective for part in statement.parts if isinstance(part, Mention)}
        assert names <= set(DIGIT_ERROR)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), "-"),
        ((0.5,), "50.00%"),
        ((0.5, math.nan), "diverged in 1 of 2"),
        ((0.97, 0.98, 0.99), "98.0 ± 2.5%"),
        ((0.1, 0.5, 0.9), "50 ± 99%"),
        ((0.5, 0.5), "50.00%"),
        ((0.500000001, 0.5), "50.00 ± <0.01%"),
    ],
)
def test_numbers_are_written_to_the_precision_of_their_interval(values, text):
    assert format_summary(summarize(values), 100, "%").replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("values", "images", "text"),
    [
        ((1.0,) * 3, 1, "100% (21 to 100)"),
        ((0.0,) * 3, 1, "0% (0 to 79)"),
        ((0.97, 0.98, 0.99), 10_000, "98.0% (93.6 to 99.4)"),
        ((0.973, 0.973), 10_000, "97.30% (96.96 to 97.60)"),
        ((0.5, math.nan), 10, "diverged in 1 of 2"),
    ],
)
def test_shares_are_written_with_an_interval_within_0_and_100(values, images, text):
    assert format_interval(summarize_shares(values, images), 100, "%") == text
