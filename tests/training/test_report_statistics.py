"""Intervals over seeds against independent oracles."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.statistics import order, student_t_quantile, summarize

values = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 6)), min_size=2, max_size=6)


@pytest.mark.parametrize("degrees", [*range(1, 13), 29, 30, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantile_inverts_the_distribution_function(degrees, confidence):
    t = student_t_quantile(confidence, degrees)
    tail = mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True)
    assert float(1 - tail) == pytest.approx(confidence, abs=1e-12)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 2), (1.0, 2), (0.95, 0)])
def test_quantile_refuses_what_has_no_answer(confidence, degrees):
    with pytest.raises(ValueError, match=r"got"):
        student_t_quantile(confidence, degrees)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.normal(3.0, 2.0, (4000, 3))
    summaries = [summarize(sample) for sample in samples.tolist()]
    covered = np.mean([summary.lower < 3.0 < summary.upper for summary in summaries])
    assert abs(covered - 0.95) < 0.015


@given(values, st.floats(0.1, 10), st.floats(-100, 100))
def test_interval_moves_with_its_values(numbers, factor, shift):
    before = summarize(numbers)
    after = summarize([factor * x + shift for x in numbers])
    assert before.half_width is not None
    assert after.half_width is not None
    assert after.mean == pytest.approx(factor * before.mean + shift, abs=1e-8)
    assert after.half_width == pytest.approx(factor * before.half_width, abs=1e-8)


@given(values, values)
def test_order_is_antisymmetric_and_only_speaks_when_apart(first, second):
    a, b = summarize(first), summarize(second)
    opposite = {"below": "above", "above": "below", "overlap": "overlap"}
    assert order(b, a) == opposite[order(a, b)]
    assert (order(a, b) == "overlap") == (a.lower <= b.upper and b.lower <= a.upper)


@pytest.mark.parametrize("poor", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_no_interval_no_order(poor):
    summary = summarize(poor)
    assert summary.half_width is None
    assert math.isnan(summary.lower)
    assert math.isnan(summary.upper)
    assert order(summary, summarize([5.0, 5.1])) == "unknown"
    assert order(summarize([5.0, 5.1]), summary) == "unknown"
