"""Intervals and tests against published values, scipy and other formulas of the same thing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmchat.evaluation.statistics import (
    RESAMPLES,
    Proportion,
    bootstrap_counts,
    bootstrap_mean,
    bootstrap_p,
    difference_interval,
    mcnemar,
    percentiles,
    resampled_counts,
    resampled_sums,
)


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(count: int, n: int, low: float, high: float) -> None:
    assert Proportion(count, n).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_score_test_is_just_significant_at_the_ends_of_wilsons_interval(
    pair: tuple[int, int],
) -> None:
    count, n = pair
    share = Proportion(count, n)
    low, high = share.interval
    assert 0 <= low <= share.value <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = abs(share.value - end) / math.sqrt(end * (1 - end) / n)
            assert z == pytest.approx(1.959964, rel=1e-4)


def test_the_proportion_of_no_questions() -> None:
    assert Proportion(0, 0).value == 0
    assert Proportion(0, 0).interval == (0, 1)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(pair: tuple[int, int]) -> None:
    expected = stats.binomtest(*pair).proportion_ci(method="wilson")
    assert Proportion(*pair).interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_the_two_sided_binomial_test_of_scipy(one: int, other: int) -> None:
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
def test_the_interval_of_a_difference_contains_it_and_is_symmetric(
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
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / 30
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert bootstrap_mean(values) == found  # seeded
    assert bootstrap_mean(np.ones(7)).interval == (1, 1)


def test_a_bootstrap_of_sums_agrees_with_scipy() -> None:
    rows = np.random.default_rng(2).integers(0, 9, (300, 2)).astype(np.float64)

    def ratio(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    expected = stats.bootstrap(
        tuple(rows.T),
        lambda one, other, axis: ratio(np.stack([one.sum(axis), other.sum(axis)], -1)),
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert percentiles(ratio(resampled_sums(rows))) == pytest.approx(tuple(expected), abs=0.01)


def test_resampled_counts_agree_with_resampled_questions() -> None:
    counts = np.array([30, 0, 70])
    drawn = resampled_counts(counts)
    assert drawn.shape == (RESAMPLES, 3)
    assert (drawn.sum(1) == 100).all() and (drawn[:, 1] == 0).all()
    rows = np.repeat(np.eye(3), counts, axis=0)
    summed = resampled_sums(rows)
    assert drawn.mean(0) == pytest.approx(summed.mean(0), abs=0.5)
    assert drawn.std(0) == pytest.approx(summed.std(0), abs=0.3)
    share = bootstrap_counts(counts, lambda cells: cells[:, 0] / 100)
    assert share.value == 0.3
    assert share.interval == pytest.approx((0.21, 0.39), abs=0.011)


def test_sums_of_many_rows_are_paired() -> None:
    # More numbers than are drawn in one batch.
    rows = np.arange(3000.0)[:, None]
    assert (resampled_sums(rows) * 2 == resampled_sums(rows * 2)).all()
    assert resampled_sums(rows).mean() == pytest.approx(rows.sum(), rel=0.01)


def test_percentiles_ignore_nan() -> None:
    values = np.array([np.nan, *range(101)])
    assert percentiles(values) == (2.5, 97.5)


def test_the_bootstraps_p_counts_both_sides() -> None:
    assert bootstrap_p(np.array([1.0] * 99)) == 2 / 100
    assert bootstrap_p(np.array([0.0] * 99)) == 1
    assert bootstrap_p(np.array([1.0] * 90 + [-1.0] * 9)) == 2 * 10 / 100
