"""How sure a figure is: percentile bootstrap intervals, seeded, and paired tests.

Resampling n questions with replacement is, for figures that follow from counts, a draw from the
multinomial distribution of those counts: it is done so, without a loop over questions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmchat.evaluation.metrics import Share

RESAMPLES = 2000
SEED = 20_240_229
_CHUNK = 4_000_000  # drawn numbers that are held at once

Floats = NDArray[np.float64]
Figure = Callable[[Floats], Floats]
"""From (resamples, cells) of counts or sums to the figure of each, NaN where it has none."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval)}


def percentiles(values: Floats) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile, those that are NaN left out; raises ValueError
    where all are."""
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def resampled_counts(counts: NDArray[np.int64]) -> Floats:
    """(cells,) of counts -> (RESAMPLES, cells) of as many questions drawn again."""
    n = int(counts.sum())
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=RESAMPLES)
    return drawn.astype(np.float64)


def resampled_sums(rows: Floats) -> Floats:
    """(n, figures), a row a question -> (RESAMPLES, figures): the sums over n rows drawn again.

    The same rows are drawn in every call of the same n: what is compared is paired.
    """
    n = len(rows)
    rng = np.random.default_rng(SEED)
    at_once = max(1, _CHUNK // n)
    sums = []
    for begin in range(0, RESAMPLES, at_once):
        many = min(at_once, RESAMPLES - begin)
        drawn = rng.integers(n, size=(many, n)) + np.arange(many)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=many * n).reshape(many, n)
        sums.append(times @ rows)
    return np.concatenate(sums)


def of_counts(counts: NDArray[np.int64], figure: Figure) -> Estimate:
    """A figure of counts; where it has no value in any resample its interval is its value."""
    value = float(figure(counts.astype(np.float64)[None])[0])
    values = figure(resampled_counts(counts))
    return Estimate(value, percentiles(values) if not np.isnan(values).all() else (value, value))


def mean(values: Floats) -> Estimate:
    """The mean of a figure of each question."""
    sums = resampled_sums(values[:, None])[:, 0]
    return Estimate(float(values.mean()), percentiles(sums / len(values)))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test (McNemar 1947), by the binomial distribution.

    only_first, only_second: questions that only the one, only the other got right.
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
    """95 % of the difference of two shares of the same questions: method 10 of Newcombe 1998, which
    squares and adds Wilson's intervals. Unlike the bootstrap's it has a width where the two differ
    in no question.
    """
    n = both + only_first + only_second + neither
    first, second = Share(both + only_first, n), Share(both + only_second, n)
    (low_first, high_first), (low_second, high_second) = first.interval, second.interval
    product = (both + only_first) * (only_second + neither)
    product *= (both + only_second) * (only_first + neither)
    together: float = both * neither - only_first * only_second
    if together > 0:
        together = max(together - n / 2, 0)
    correlation = together / math.sqrt(product) if product else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))

    middle = (only_first - only_second) / n
    low = middle - reach(first.share - low_first, high_second - second.share)
    high = middle + reach(high_first - first.share, second.share - low_second)
    return max(low, -1.0), min(high, 1.0)


def bootstrap_p(differences: Floats) -> float:
    """Two-sided: twice the share of resampled differences on the rarer side of 0 (ties on both),
    never below 1 in RESAMPLES + 1."""
    below = int((differences <= 0).sum())
    above = int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))
