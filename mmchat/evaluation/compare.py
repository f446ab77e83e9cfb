"""Compares two evaluations of the same questions: the differences, their intervals and p-values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmchat.errors import DataError
from mmchat.evaluation.graders import GradedAnswer
from mmchat.evaluation.results import EvaluationResult
from mmchat.evaluation.statistics import (
    Estimate,
    Floats,
    bootstrap_p,
    difference_interval,
    mcnemar,
    percentiles,
    resampled_sums,
)
from mmchat.evaluation.text_metrics import (
    ROUGE_TYPES,
    TextMetrics,
    bleu_of_counts,
    compute_text_metrics,
)


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One metric of both evaluations. `difference` is the first minus the second."""

    name: str
    n: int
    first: float
    second: float
    difference: Estimate
    p: float
    """Two-sided: by McNemar's exact test for shares, else by the paired bootstrap."""
    is_share: bool = True
    """Whether it is a share from 0 to 1; otherwise it is on the metric's own scale."""
    only_first: int = 0
    """For a share: the number of questions that only the first answered correctly."""
    only_second: int = 0

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "name": self.name,
            "n": self.n,
            "first": self.first,
            "second": self.second,
            "difference": self.difference.value,
            "interval": list(self.difference.interval),
            "p": self.p,
            "test": "McNemar, exact" if self.is_share else "paired bootstrap",
        }
        if self.is_share:
            values |= {"only_first": self.only_first, "only_second": self.only_second}
        return values


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two evaluations side by side. The first row covers all questions."""

    first: str
    second: str
    rows: tuple[ComparisonRow, ...]

    def to_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.rows]
        return {"first": self.first, "second": self.second, "rows": rows}


def compare(
    first: EvaluationResult, second: EvaluationResult, names: tuple[str, str]
) -> Comparison:
    """Compares the questions that are in both evaluations. Raises DataError if there are none."""
    seconds = {answer.id: answer for answer in second.answers}
    pairs = [(one, seconds[one.id]) for one in first.answers if one.id in seconds]
    if not pairs:
        raise DataError("The two evaluations have no question in common.")
    by_type: dict[str, list[tuple[GradedAnswer, GradedAnswer]]] = {}
    for pair in pairs:
        by_type.setdefault(pair[0].type, []).append(pair)
    rows = [_compare_shares("all questions", [(a.correct, b.correct) for a, b in pairs])]
    if len(by_type) > 1:
        rows += [
            _compare_shares(name, [(a.correct, b.correct) for a, b in of_type])
            for name, of_type in by_type.items()
        ]
    rows.append(_compare_shares("same words", [(a.same_words, b.same_words) for a, b in pairs]))
    texts = [compute_text_metrics(answers) for answers in zip(*pairs, strict=True)]
    if texts[0] is not None and texts[1] is not None:
        rows += _compare_texts(texts[0], texts[1])
    return Comparison(*names, tuple(rows))


def _compare_shares(name: str, pairs: Sequence[tuple[bool, bool]]) -> ComparisonRow:
    n = len(pairs)
    both = sum(pair == (True, True) for pair in pairs)
    only_first = sum(pair == (True, False) for pair in pairs)
    only_second = sum(pair == (False, True) for pair in pairs)
    neither = n - both - only_first - only_second
    interval = difference_interval(both, only_first, only_second, neither)
    return ComparisonRow(
        name,
        n,
        (both + only_first) / n,
        (both + only_second) / n,
        Estimate((only_first - only_second) / n, interval),
        mcnemar(only_first, only_second),
        only_first=only_first,
        only_second=only_second,
    )


def _compare_texts(first: TextMetrics, second: TextMetrics) -> list[ComparisonRow]:
    def row(name: str, one: Estimate, other: Estimate, resampled: Floats) -> ComparisonRow:
        difference = Estimate(one.value - other.value, percentiles(resampled))
        p = bootstrap_p(resampled)
        return ComparisonRow(name, first.n, one.value, other.value, difference, p, is_share=False)

    # Both have the same number of questions, so the same questions are drawn for both.
    bleu = bleu_of_counts(resampled_sums(first.bleu_counts))
    bleu -= bleu_of_counts(resampled_sums(second.bleu_counts))
    rouge = resampled_sums(first.rouge_scores - second.rouge_scores) / first.n
    rows = [row("BLEU", first.bleu, second.bleu, bleu)]
    for i, kind in enumerate(ROUGE_TYPES):
        name = f"ROUGE-{kind.removeprefix('rouge')}"
        rows.append(row(name, first.rouge[kind], second.rouge[kind], rouge[:, i]))
    return rows
