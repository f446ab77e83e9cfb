"""How sure a figure is: percentile bootstrap intervals, seeded, and paired tests.

Resampling n questions with replacement is, for figures that follow from counts, a draw from the
multinomial distribution of those counts: it is done so, without a loop over questions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def bootstrap_p(differences: Floats) -> float:
    """Two-sided: twice the share of resampled differences on the rarer side of 0 (ties on both),
    never below 1 in RESAMPLES + 1."""
    below = int((differences <= 0).sum())
    above = int((differences >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))
