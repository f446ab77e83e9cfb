"""Questions with few answers to choose from, as a classification.

Where the wanted answers are at least 2 and at most 40 different ones, and each is wanted 3 times
on average, they are classes. An answer that is none of them counts as "something else". Answers
are compared as `normalise` leaves them, and any refusal is the same refusal.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmchat.evaluation.metrics import Share, is_declined, normalise
from mmchat.evaluation.outcome import Outcome
from mmchat.evaluation.statistics import (
    Estimate,
    Figure,
    Floats,
    percentiles,
    resampled_counts,
)

MOST = 40
MEAN_WANTED = 3
ELSE = "something else"
DECLINED = "a refusal"

_Parts = tuple[Floats, Floats, Floats]


@dataclass(frozen=True, slots=True)
class OneClass:
    """The figures of one class; of none they are 0."""

    label: str
    precision: Share
    recall: Share
    f1: Estimate


@dataclass(frozen=True, slots=True)
class Averages:
    """Over the classes: each the same (macro), or each question the same (micro)."""

    precision: Estimate
    recall: Estimate
    f1: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {
            "precision": self.precision.to_dict(),
            "recall": self.recall.to_dict(),
            "f1": self.f1.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Classes:
    """A confusion matrix and what follows from it."""

    name: str
    """The question type; "" where all questions together are classes."""
    labels: tuple[str, ...]
    """The most frequent first."""
    matrix: NDArray[np.int64]
    """(wanted, given): a row a label, a column a label, and a last one for something else."""
    by_class: tuple[OneClass, ...]
    macro: Averages
    micro: Averages

    @property
    def accuracy(self) -> Share:
        return Share(int(np.trace(self.matrix)), int(self.matrix.sum()))

    def to_dict(self) -> dict[str, Any]:
        accuracy = self.accuracy
        return {
            "type": self.name,
            "n": accuracy.n,
            "accuracy": accuracy.share,
            "accuracy_interval": list(accuracy.interval),
            "classes": [
                {
                    "label": one.label,
                    "n": one.recall.n,
                    "precision": one.precision.share,
                    "precision_interval": list(one.precision.interval),
                    "recall": one.recall.share,
                    "recall_interval": list(one.recall.interval),
                    "f1": one.f1.value,
                    "f1_interval": list(one.f1.interval),
                }
                for one in self.by_class
            ],
            "macro": self.macro.to_dict(),
            "micro": self.micro.to_dict(),
            "confusion": {"columns": [*self.labels, ELSE], "rows": self.matrix.tolist()},
        }


def find_classes(outcomes: Sequence[Outcome]) -> tuple[Classes, ...]:
    """Of all questions together where their wanted answers are classes, else of each type
    whose are."""
    if (whole := _classes("", outcomes)) is not None:
        return (whole,)
    by_type: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_type.setdefault(outcome.type, []).append(outcome)
    found = [_classes(name, of_type) for name, of_type in by_type.items()]
    return tuple(one for one in found if one is not None)


def label_of(answer: str) -> str:
    """What an answer says, as a class."""
    return DECLINED if is_declined(answer) else normalise(answer)


def _classes(name: str, outcomes: Sequence[Outcome]) -> Classes | None:
    wanted = [label_of(outcome.wanted) for outcome in outcomes]
    counts = Counter(wanted)
    if not 2 <= len(counts) <= MOST or len(wanted) < MEAN_WANTED * len(counts):
        return None
    labels = tuple(sorted(counts, key=lambda label: (-counts[label], label)))
    places = {label: place for place, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels) + 1), np.int64)
    for label, outcome in zip(wanted, outcomes, strict=True):
        matrix[places[label], places.get(label_of(outcome.given), len(labels))] += 1
    return classes_of(name, labels, matrix)


def classes_of(name: str, labels: tuple[str, ...], matrix: NDArray[np.int64]) -> Classes:
    """The figures of a confusion matrix (labels, labels + 1) that is not empty."""
    true = matrix.astype(np.float64)[None]
    drawn = resampled_counts(matrix.ravel()).reshape(-1, *matrix.shape)
    right, wanted, given = (part[0].astype(int) for part in _sums(true))

    def estimate(figure: Figure, place: int | None = None) -> Estimate:
        found, again = figure(true), figure(drawn)
        if place is not None:
            found, again = found[:, place], again[:, place]
        return Estimate(float(found[0]), percentiles(again))

    by_class = tuple(
        OneClass(
            label,
            Share(int(right[place]), int(given[place])),
            Share(int(right[place]), int(wanted[place])),
            estimate(_f1, place),
        )
        for place, label in enumerate(labels)
    )
    macro, micro = (
        Averages(*(estimate(partial(_averaged, parts, average)) for parts in _PARTS))
        for average in (_macro, _micro)
    )
    return Classes(name, labels, matrix, by_class, macro, micro)


def _sums(matrices: Floats) -> _Parts:
    """(…, k, k + 1) -> how often each class was right, wanted and given, (…, k) each."""
    count = matrices.shape[-2]
    right = np.diagonal(matrices[..., :count], axis1=-2, axis2=-1)
    return right, matrices.sum(-1), matrices[..., :count].sum(-2)


def _precision(matrices: Floats) -> _Parts:
    """Of each class: numerator, denominator, how often it was drawn at all."""
    right, wanted, given = _sums(matrices)
    return right, given, wanted + given


def _recall(matrices: Floats) -> _Parts:
    right, wanted, given = _sums(matrices)
    return right, wanted, wanted + given


def _f_parts(matrices: Floats) -> _Parts:
    right, wanted, given = _sums(matrices)
    return 2 * right, wanted + given, wanted + given


_PARTS = (_precision, _recall, _f_parts)


def _f1(matrices: Floats) -> Floats:
    return _divided(*_f_parts(matrices)[:2])


def _averaged(
    parts: Callable[[Floats], _Parts], average: Callable[..., Floats], matrices: Floats
) -> Floats:
    return average(*parts(matrices))


def _macro(part: Floats, whole: Floats, there: Floats) -> Floats:
    """The mean over the classes that were drawn; one that was drawn and has no whole counts 0."""
    drawn = there > 0
    sums = np.where(drawn, _divided(part, whole), 0.0).sum(-1)
    return sums / np.maximum(drawn.sum(-1), 1)


def _micro(part: Floats, whole: Floats, there: Floats) -> Floats:
    return _divided(part.sum(-1), whole.sum(-1))


def _divided(part: Floats, whole: Floats) -> Floats:
    """0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
