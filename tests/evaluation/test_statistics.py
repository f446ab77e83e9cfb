"""Intervals and tests against other formulas of the same thing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmchat.evaluation.statistics import (
    RESAMPLES,
    bootstrap_p,
    difference_interval,
    mcnemar,
    mean,
    of_counts,
    percentiles,
    resampled_counts,
    resampled_sums,
)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_two_sided_binomial_test(one: int, other: int) -> None:
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_by_hand_and_for_many() -> None:
    assert mcnemar(0, 5) == 2 / 2**5
    assert mcnemar(1, 5) == 2 * (1 + 6) / 2**6
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5000) == 0  # smaller than any float
    assert 0 < mcnemar(4800, 5200) < 1e-4


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    # Cavo et al. 2012, in Fagerland, Lydersen and Laake 2017, "Statistical Analysis of Contingency
    # Tables", chapter 8; so is the exact p.
    assert difference_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=5e-7)


@given(*[st.integers(0, 200)] * 4)
def test_an_interval_of_a_difference_holds_it_and_turns_with_it(
    both: int, first: int, second: int, neither: int
) -> None:
    if not (n := both + first + second + neither):
        return
    low, high = difference_interval(both, first, second, neither)
    assert -1 <= low <= (first - second) / n <= high <= 1
    assert low < high
    turned = difference_interval(both, second, first, neither)
    assert turned == pytest.approx((-high, -low), abs=1e-9)


def test_a_bootstrap_mean_has_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 900)
    found = mean(values)
    half = 1.96 * values.std() / 30
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert mean(values) == found  # seeded
    assert mean(np.ones(7)).interval == (1, 1)


def test_counts_are_drawn_as_questions_are() -> None:
    counts = np.array([30, 0, 70])
    drawn = resampled_counts(counts)
    assert drawn.shape == (RESAMPLES, 3)
    assert (drawn.sum(1) == 100).all() and (drawn[:, 1] == 0).all()
    rows = np.repeat(np.eye(3), counts, axis=0)
    summed = resampled_sums(rows)
    assert drawn.mean(0) == pytest.approx(summed.mean(0), abs=0.5)
    assert drawn.std(0) == pytest.approx(summed.std(0), abs=0.3)
    share = of_counts(counts, lambda cells: cells[:, 0] / 100)
    assert share.value == 0.3
    assert share.interval == pytest.approx((0.21, 0.39), abs=0.011)


def test_sums_of_many_rows_are_paired() -> None:
    # More numbers than are held at once.
    rows = np.arange(3000.0)[:, None]
    assert (resampled_sums(rows) * 2 == resampled_sums(rows * 2)).all()
    assert resampled_sums(rows).mean() == pytest.approx(rows.sum(), rel=0.01)


def test_percentiles_leave_out_what_is_unknown() -> None:
    values = np.array([np.nan, *range(101)])
    assert percentiles(values) == (2.5, 97.5)


def test_the_bootstraps_p_counts_both_sides() -> None:
    assert bootstrap_p(np.array([1.0] * 99)) == 2 / 100
    assert bootstrap_p(np.array([0.0] * 99)) == 1
    assert bootstrap_p(np.array([1.0] * 90 + [-1.0] * 9)) == 2 * 10 / 100
