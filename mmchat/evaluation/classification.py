"""Classification metrics, for questions with few different answers and for yes/no questions.

References are classes if there are 2 to 40 different ones, each of which occurs 3 times on average.
A prediction that is not a class counts as "something else". Predictions are compared as `normalize`
leaves them, and all refusals are one class.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmchat.answer_match import normalize
from mmchat.evaluation.graders import GradedAnswer
from mmchat.evaluation.statistics import (
    Estimate,
    Floats,
    Proportion,
    bootstrap_counts,
    percentiles,
    resampled_counts,
    with_interval,
)

MAX_CLASSES = 40
MIN_MEAN_COUNT = 3
SOMETHING_ELSE = "something else"
REFUSAL = "a refusal"


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class. They are 0 if there is nothing to divide by."""

    label: str
    precision: Proportion
    recall: Proportion
    f1: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "n": self.recall.n,
            **with_interval("precision", self.precision),
            **with_interval("recall", self.recall),
            **with_interval("f1", self.f1),
        }


@dataclass(frozen=True, slots=True)
class AverageMetrics:
    """Averages in which every class counts the same (macro) or every question does (micro)."""

    precision: Estimate
    recall: Estimate
    f1: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_dict() for name in ("precision", "recall", "f1")}


@dataclass(frozen=True, slots=True)
class Classification:
    """A confusion matrix and its metrics."""

    type: str
    """The question type; "" if all questions together are classified."""
    labels: tuple[str, ...]
    """The most frequent first."""
    matrix: NDArray[np.int64]
    """(reference, prediction): a row per label, a column per label, and a last column for
    something else."""
    classes: tuple[ClassMetrics, ...]
    macro: AverageMetrics
    micro: AverageMetrics

    @property
    def accuracy(self) -> Proportion:
        return Proportion(int(np.trace(self.matrix)), int(self.matrix.sum()))

    def to_dict(self) -> dict[str, Any]:
        accuracy = self.accuracy
        return {
            "type": self.type,
            "n": accuracy.n,
            **with_interval("accuracy", accuracy),
            "classes": [one.to_dict() for one in self.classes],
            "macro": self.macro.to_dict(),
            "micro": self.micro.to_dict(),
            "confusion": {"columns": [*self.labels, SOMETHING_ELSE], "rows": self.matrix.tolist()},
        }


def classify(answers: Sequence[GradedAnswer]) -> tuple[Classification, ...]:
    """One classification of all answers if their references are classes; else one for each question
    type whose references are classes."""
    if (together := _classify("", answers)) is not None:
        return (together,)
    by_type: dict[str, list[GradedAnswer]] = {}
    for answer in answers:
        by_type.setdefault(answer.type, []).append(answer)
    per_type = [_classify(type_, of_type) for type_, of_type in by_type.items()]
    return tuple(one for one in per_type if one is not None)


def _classify(type_: str, answers: Sequence[GradedAnswer]) -> Classification | None:
    references = [REFUSAL if a.should_decline else normalize(a.reference) for a in answers]
    predictions = [REFUSAL if a.declined else normalize(a.prediction) for a in answers]
    counts = Counter(references)
    if not 2 <= len(counts) <= MAX_CLASSES or len(references) < MIN_MEAN_COUNT * len(counts):
        return None
    labels = tuple(sorted(counts, key=lambda label: (-counts[label], label)))
    columns = {label: column for column, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels) + 1), np.int64)
    for reference, prediction in zip(references, predictions, strict=True):
        matrix[columns[reference], columns.get(prediction, len(labels))] += 1
    return _measure(type_, labels, matrix)


def _measure(type_: str, labels: tuple[str, ...], matrix: NDArray[np.int64]) -> Classification:
    by_class, macro, micro = _precision_recall_f1(matrix.astype(np.float64)[None])
    resampled = resampled_counts(matrix.ravel()).reshape(-1, *matrix.shape)
    by_class_resampled, macro_resampled, micro_resampled = _precision_recall_f1(resampled)

    def average(values: Floats, drawn: Floats) -> AverageMetrics:
        return AverageMetrics(
            *(Estimate(float(v[0]), percentiles(d)) for v, d in zip(values, drawn, strict=True))
        )

    classes = tuple(
        ClassMetrics(
            label,
            Proportion(int(matrix[k, k]), int(matrix[:, k].sum())),
            Proportion(int(matrix[k, k]), int(matrix[k].sum())),
            Estimate(float(by_class[2, 0, k]), percentiles(by_class_resampled[2, :, k])),
        )
        for k, label in enumerate(labels)
    )
    return Classification(
        type_,
        labels,
        matrix,
        classes,
        average(macro, macro_resampled),
        average(micro, micro_resampled),
    )


def _precision_recall_f1(matrices: Floats) -> tuple[Floats, Floats, Floats]:
    """(n, k, k + 1) confusion matrices -> by class (3, n, k), macro (3, n), micro (3, n).

    The macro average is over the classes that occur in a matrix, as a reference or a prediction.
    """
    k = matrices.shape[-2]
    correct = np.diagonal(matrices[..., :k], axis1=-2, axis2=-1)
    actual, predicted = matrices.sum(-1), matrices[..., :k].sum(-2)
    numerators = np.stack([correct, correct, 2 * correct])
    denominators = np.stack([predicted, actual, actual + predicted])
    by_class = _divide(numerators, denominators)
    occurs = actual + predicted > 0
    macro = np.where(occurs, by_class, 0.0).sum(-1) / np.maximum(occurs.sum(-1), 1)
    micro = _divide(numerators.sum(-1), denominators.sum(-1))
    return by_class, macro, micro


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    """Elementwise; 0 where the denominator is 0."""
    return np.divide(
        numerators, denominators, out=np.zeros(numerators.shape), where=denominators > 0
    )


YesOrNo = Literal["yes", "no", ""]

_STRICT = re.compile(r"(yes|no)(?:\s*[,.;:!?–—-]|$)")
_POPE_NO = {"No", "not", "no"}


def parse_pope(answer: str) -> YesOrNo:
    """POPE's own parser (Li et al. 2023): "no" if the first sentence, which ends at a full stop, has
    the word No, no or not, else "yes". Words are separated by spaces; commas are removed."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if _POPE_NO & set(words) else "yes"


def parse_strict(answer: str) -> YesOrNo:
    """The yes or no at the beginning of the answer, as a word by itself; "" if there is none."""
    match = _STRICT.match(normalize(answer))
    if match is None:
        return ""
    return "yes" if match[1] == "yes" else "no"


@dataclass(frozen=True, slots=True)
class YesNoScores:
    """The metrics with one parser, with yes as the positive class.

    An answer that is missing or cannot be parsed counts as wrong, and not as a yes.
    """

    accuracy: Proportion
    precision: Proportion
    recall: Proportion
    f1: Estimate
    yes_ratio: Proportion

    def to_dict(self) -> dict[str, Any]:
        names = ("accuracy", "precision", "recall", "yes_ratio", "f1")
        return {name: getattr(self, name).to_dict() for name in names}


@dataclass(frozen=True, slots=True)
class YesNoMetrics:
    """Whether a model says yes to what is not in the picture, as POPE measures it."""

    n: int
    reference_yes: int
    """Questions whose reference is yes."""
    pope: YesNoScores
    strict: YesNoScores
    unparsed: Proportion
    """Answers that are missing or that the strict parser could not read."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "reference_yes": self.reference_yes,
            "pope": self.pope.to_dict(),
            "strict": self.strict.to_dict(),
            **with_interval("unparsed", self.unparsed),
        }


def compute_yes_no(answers: Sequence[GradedAnswer]) -> YesNoMetrics | None:
    """The metrics of the questions whose reference is yes or no; None if there are none."""
    questions = [(ref, a) for a in answers if (ref := parse_strict(a.reference))]
    if not questions:
        return None

    def parsed_by(parse: Callable[[str], YesOrNo]) -> list[tuple[YesOrNo, YesOrNo]]:
        # An empty answer is parsed; a missing one is not.
        return [(ref, "" if a.error else parse(a.prediction)) for ref, a in questions]

    strict = parsed_by(parse_strict)
    return YesNoMetrics(
        len(questions),
        sum(reference == "yes" for reference, _ in questions),
        _score_yes_no(parsed_by(parse_pope)),
        _score_yes_no(strict),
        Proportion(sum(not parsed for _, parsed in strict), len(strict)),
    )


def _score_yes_no(pairs: Sequence[tuple[YesOrNo, YesOrNo]]) -> YesNoScores:
    """pairs: (reference, prediction)"""
    hits = sum(pair == ("yes", "yes") for pair in pairs)
    actual = sum(reference == "yes" for reference, _ in pairs)
    predicted = sum(prediction == "yes" for _, prediction in pairs)
    # True positives, false negatives, false positives, all others.
    others = len(pairs) - actual - predicted + hits
    cells = np.array([hits, actual - hits, predicted - hits, others])

    def f1(counts: Floats) -> Floats:
        twice = 2 * counts[:, 0]
        return _divide(twice, twice + counts[:, 1] + counts[:, 2])

    return YesNoScores(
        Proportion(sum(reference == prediction for reference, prediction in pairs), len(pairs)),
        Proportion(hits, predicted),
        Proportion(hits, actual),
        bootstrap_counts(cells, f1),
        Proportion(predicted, len(pairs)),
    )
