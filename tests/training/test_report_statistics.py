"""Intervals and tests against independent oracles."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.statistics import (
    FEWEST_IMAGES,
    holm,
    mcnemar_p_value,
    paired_by_seed,
    paired_means,
    paired_root_mean_squares,
    paired_shares,
    seeds_needed,
    sign_flip_p_value,
    student_t_p_value,
    student_t_quantile,
    summarize,
    summarize_shares,
)

values = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 6)), min_size=2, max_size=6)


@pytest.mark.parametrize("degrees", [*range(1, 13), 29, 30, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantile_and_p_value_invert_the_distribution_function(degrees, confidence):
    t = student_t_quantile(confidence, degrees)
    tail = mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True)
    assert float(1 - tail) == pytest.approx(confidence, abs=1e-12)
    assert student_t_p_value(-t, degrees) == pytest.approx(float(tail), abs=1e-12)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 2), (1.0, 2), (0.95, 0)])
def test_quantile_refuses_what_has_no_answer(confidence, degrees):
    with pytest.raises(ValueError, match=r"got"):
        student_t_quantile(confidence, degrees)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    summaries = [summarize(sample) for sample in generator.normal(3.0, 2.0, (4000, 3)).tolist()]
    covered = np.mean([abs(summary.mean - 3.0) < (summary.half_width or 0) for summary in summaries])
    assert abs(covered - 0.95) < 0.015


@given(values, st.floats(0.1, 10), st.floats(-100, 100))
def test_interval_moves_with_its_values(numbers, factor, shift):
    before = summarize(numbers)
    after = summarize([factor * x + shift for x in numbers])
    assert before.half_width is not None
    assert after.half_width is not None
    assert after.mean == pytest.approx(factor * before.mean + shift, abs=1e-8)
    assert after.half_width == pytest.approx(factor * before.half_width, abs=1e-8)


@pytest.mark.parametrize("poor", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_no_interval_without_two_finite_values(poor):
    assert summarize(poor).half_width is None


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (3, 10), (9_733, 10_000), (10_000, 10_000)])
def test_one_seed_s_share_has_wilson_s_interval(right, images):
    """Wilson's interval holds the shares p from which the observed one is no further than 1.96 standard errors."""
    found = summarize_shares([right / images], images)
    assert found.lower is not None
    assert found.upper is not None
    assert 0 <= found.lower < found.upper <= 1
    for end in (found.lower, found.upper):
        if 0 < end < 1:
            z = abs(right / images - end) / math.sqrt(end * (1 - end) / images)
            assert z == pytest.approx(1.959964, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 10_000))
def test_an_interval_of_a_share_stays_within_0_and_1_and_is_never_empty(shares, images):
    found = summarize_shares(shares, images)
    assert found.lower is not None
    assert found.upper is not None
    assert 0 <= found.lower <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.upper <= 1
    assert found.upper - found.lower > 1e-6


def test_a_share_s_interval_covers_it_for_other_seeds_and_other_images():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1500):
        image_effect = generator.normal(0, math.sqrt(0.9 * 0.1 / 400))
        shares = np.clip(0.9 + image_effect + generator.normal(0, 0.02, 4), 0, 1)
        found = summarize_shares(shares.tolist(), 400)
        assert found.lower is not None
        assert found.upper is not None
        covered += found.lower < 0.9 < found.upper
    assert 0.92 < covered / 1500 < 0.985


@pytest.mark.parametrize("count", [2, 3, 6, 8])
def test_sign_flips_are_counted_one_by_one(count):
    differences = np.random.default_rng(count).normal(0.5, 1.0, count)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=count)]
    expected = np.mean([total >= abs(differences.sum()) - 1e-12 for total in sums])
    assert sign_flip_p_value(differences.tolist()) == pytest.approx(expected)


def test_sign_flips_cannot_go_below_what_so_few_allow():
    assert sign_flip_p_value([1.0, 1.1, 1.2]) == 0.25
    assert sign_flip_p_value([1.0] * 8) == 2 / 256
    assert sign_flip_p_value(np.random.default_rng(0).normal(0, 1, 40).tolist()) > 0.01
    assert sign_flip_p_value([1.0] * 40) < 1e-4


def test_a_paired_test_is_student_s_on_the_differences():
    found = paired_by_seed([0.3, 0.5, 0.1, 0.4])
    assert found is not None
    t = found.mean / (np.std([0.3, 0.5, 0.1, 0.4], ddof=1) / 2)
    assert found.t_p_value == pytest.approx(float(mpmath.betainc(1.5, 0.5, 0, 3 / (3 + t * t), regularized=True)))
    assert found.half_width == pytest.approx(3.182446 * found.mean / t, rel=1e-5)
    assert paired_by_seed([0.3]) is None
    assert paired_by_seed([0.3, math.nan]) is None
    same = paired_by_seed([0.0, 0.0])
    assert same is not None
    assert same.t_p_value == 1.0


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 0), (6, 2), (3, 3), (120, 80), (40, 160)])
def test_mcnemar_is_a_binomial_test(b, c):
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar_p_value(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_shares_are_compared_image_by_image():
    first = np.zeros((1, 1000), dtype=bool)
    second = first.copy()
    first[0, :30] = True
    second[0, 20:40] = True
    found = paired_shares(first, second)
    assert found.p_value == pytest.approx(mcnemar_p_value(20, 10))
    assert found.lower < 0.01 < found.upper
    assert (found.lower + found.upper) / 2 == pytest.approx(10 / 1002)
    # Of several seeds, an image counts for the one that was right more often.
    several = paired_shares(np.repeat(first, 3, axis=0), np.repeat(second, 3, axis=0))
    assert several.p_value == found.p_value
    # Agreement on one image is no proof of equality.
    lonely = paired_shares(np.ones((3, 1), bool), np.zeros((3, 1), bool))
    assert lonely.p_value == 1.0
    assert lonely.upper - lonely.lower > 0.9


def test_a_bootstrap_over_images_finds_the_spread_that_theory_gives():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.3, 1, (1, 3000)), generator.normal(0, 1, (1, 3000))
    found = paired_means(first, second)
    assert found is not None
    difference = (first - second)[0]
    half_width = 1.96 * difference.std() / math.sqrt(3000)
    assert found.lower == pytest.approx(difference.mean() - half_width, abs=0.15 * half_width)
    assert found.upper == pytest.approx(difference.mean() + half_width, abs=0.15 * half_width)
    assert found.p_value < 0.002
    errors = paired_root_mean_squares(2 * first, first)
    assert errors is not None
    root = math.sqrt(np.mean(first**2))
    assert errors.lower < root < errors.upper
    assert errors.upper - errors.lower < 0.1
    assert paired_means(first[:, : FEWEST_IMAGES - 1], second[:, : FEWEST_IMAGES - 1]) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_steps_down(p_values):
    """By the definition: reject the smallest, then the next, each at the level left for those that remain."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


@pytest.mark.parametrize("family", [1, 6])
def test_with_the_seeds_needed_a_difference_is_decided_and_with_one_less_it_is_not(family):
    found = paired_by_seed([0.1, 0.5, -0.1, 0.3])
    assert found is not None
    needed = seeds_needed(found, 0.0, family)
    assert needed is not None
    for count, decided in ((needed, True), (needed - 1, False)):
        t = found.mean / (found.deviation / math.sqrt(count))
        assert (student_t_p_value(t, count - 1) * family < 0.05) is decided
    tiny = paired_by_seed([0.001, -0.001, 0.002, -0.002])
    assert tiny is not None
    assert seeds_needed(tiny, 0.0, 1) is None
    assert seeds_needed(tiny, 0.5, 1) == 2
