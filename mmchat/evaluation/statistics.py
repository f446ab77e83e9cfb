"""Confidence intervals and paired tests.

Each takes a few lines of numpy, and tests compare them with scipy and with published values. scipy is
not a dependency: transformers imports it if it is installed, which would slow down every engine start.

Resampling n questions with replacement is the same as drawing their counts from a multinomial
distribution. Metrics that follow from counts are resampled that way, without a loop over questions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 20_240_229
_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile
_MAX_DRAWN = 4_000_000  # random numbers held in memory at a time

Floats = NDArray[np.float64]
Metric = Callable[[Floats], Floats]
"""(resamples, cells) counts or sums -> (resamples,) values, NaN where the metric is undefined."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """`count` of `n`."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """From 0 to 1; 0 if n is 0."""
        return self.count / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's score interval (Wilson 1927); from 0 to 1 if n is 0."""
        if not self.n:
            return 0.0, 1.0
        p, z2 = self.value, _Z * _Z / self.n
        center = (p + z2 / 2) / (1 + z2)
        half = _Z / (1 + z2) * math.sqrt(p * (1 - p) / self.n + z2 / 4 / self.n)
        # Rounding would leave these two slightly off 0 and 1.
        low = center - half if self.count else 0.0
        high = center + half if self.count < self.n else 1.0
        return low, high

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric with its 95 % interval."""

    value: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval)}


def with_interval(name: str, metric: Proportion | Estimate) -> dict[str, Any]:
    """`name` and `name_interval` of a metric, JSON-ready."""
    return {name: metric.value, f"{name}_interval": list(metric.interval)}


def percentiles(values: Floats) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile, ignoring NaN. Raises ValueError if all values are NaN."""
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def resampled_counts(counts: NDArray[np.int64]) -> Floats:
    """(cells,) -> (RESAMPLES, cells): the counts of as many resampled questions."""
    n = int(counts.sum())
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=RESAMPLES)
    return drawn.astype(np.float64)


def resampled_sums(rows: Floats) -> Floats:
    """(n, columns), one row per question -> (RESAMPLES, columns): sums over n resampled rows.

    Every call with the same n draws the same rows, so that comparisons are paired.
    """
    n = len(rows)
    rng = np.random.default_rng(SEED)
    batch = max(1, _MAX_DRAWN // n)
    sums = []
    for start in range(0, RESAMPLES, batch):
        size = min(batch, RESAMPLES - start)
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums.append(times @ rows)
    return np.concatenate(sums)


def bootstrap_counts(counts: NDArray[np.int64], metric: Metric) -> Estimate:
    """A metric of counts. If it is undefined in every resample, its interval is its value."""
    value = float(metric(counts.astype(np.float64)[None])[0])
    values = metric(resampled_counts(counts))
    return Estimate(value, percentiles(values) if not np.isnan(values).all() else (value, value))


def bootstrap_mean(values: Floats) -> Estimate:
    """(n,), one value per question -> their mean."""
    sums = resampled_sums(values[:, None])[:, 0]
    return Estimate(float(values.mean()), percentiles(sums / len(values)))


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value: twice the share of resampled differences on the rarer side of 0. Zeros count on
    both sides, and the value is never below 1 / (RESAMPLES + 1)."""
    below = int((differences <= 0).sum())
    above = int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact two-sided test (McNemar 1947).

    only_first, only_second: questions that only the first or only the second model answered correctly.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    tail = term = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, tail / (1 << (n - 1)))


def difference_interval(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[float, float]:
    """95 % interval of the difference of two proportions of the same questions: method 10 of Newcombe
    1998, which squares and adds Wilson's intervals. Unlike the bootstrap's, it has a width even if the
    two models agree on every question.
    """
    n = both + only_first + only_second + neither
    first, second = Proportion(both + only_first, n), Proportion(both + only_second, n)
    (low_first, high_first), (low_second, high_second) = first.interval, second.interval
    product = (both + only_first) * (only_second + neither)
    product *= (both + only_second) * (only_first + neither)
    covariance: float = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)
    correlation = covariance / math.sqrt(product) if product else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))

    difference = (only_first - only_second) / n
    low = difference - distance(first.value - low_first, high_second - second.value)
    high = difference + distance(high_first - first.value, second.value - low_second)
    return max(low, -1.0), min(high, 1.0)
