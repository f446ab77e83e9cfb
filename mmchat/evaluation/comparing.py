"""Two evaluations of the same questions side by side: who is better, and whether that is luck."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmchat.errors import DataError
from mmchat.evaluation.outcome import Outcome
from mmchat.evaluation.report import Report
from mmchat.evaluation.statistics import (
    Estimate,
    bootstrap_p,
    difference_interval,
    mcnemar,
    percentiles,
    resampled_sums,
)
from mmchat.evaluation.texts import KINDS, Texts, bleu, find_texts


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both. `difference` is the first less the second."""

    name: str
    n: int
    first: float
    second: float
    difference: Estimate
    p: float
    """Two-sided: McNemar's exact test of shares, else the paired bootstrap."""
    is_share: bool = True
    """From 0 to 1; else on the figure's own scale."""
    only_first: int = 0
    """Of a share: questions that only the first got right."""
    only_second: int = 0

    def to_dict(self) -> dict[str, Any]:
        made: dict[str, Any] = {
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
            made |= {"only_first": self.only_first, "only_second": self.only_second}
        return made


@dataclass(frozen=True, slots=True)
class Comparison:
    """The table of two. The first row is of all questions."""

    first: str
    second: str
    rows: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "rows": [row.to_dict() for row in self.rows],
        }


def compare(first: Report, second: Report, names: tuple[str, str]) -> Comparison:
    """Over the questions that both answered; raises DataError where there is none."""
    others = {outcome.id: outcome for outcome in second.outcomes}
    pairs = [(one, others[one.id]) for one in first.outcomes if one.id in others]
    if not pairs:
        raise DataError("The two evaluations have no question in common.")
    by_type: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for pair in pairs:
        by_type.setdefault(pair[0].type, []).append(pair)
    rows = [_of_shares("all questions", [(one.right, other.right) for one, other in pairs])]
    if len(by_type) > 1:
        rows += [
            _of_shares(name, [(one.right, other.right) for one, other in of_type])
            for name, of_type in by_type.items()
        ]
    matches = [(one.same_words, other.same_words) for one, other in pairs]
    rows.append(_of_shares("normalised match", matches))
    texts = (find_texts([one for one, _ in pairs]), find_texts([other for _, other in pairs]))
    if texts[0] is not None and texts[1] is not None:
        rows += _of_texts(texts[0], texts[1])
    return Comparison(*names, tuple(rows))


def _of_shares(name: str, pairs: Sequence[tuple[bool, bool]]) -> Difference:
    both = sum(pair == (True, True) for pair in pairs)
    only_first = sum(pair == (True, False) for pair in pairs)
    only_second = sum(pair == (False, True) for pair in pairs)
    n = len(pairs)
    interval = difference_interval(
        both, only_first, only_second, n - both - only_first - only_second
    )
    return Difference(
        name,
        n,
        (both + only_first) / n,
        (both + only_second) / n,
        Estimate((only_first - only_second) / n, interval),
        mcnemar(only_first, only_second),
        only_first=only_first,
        only_second=only_second,
    )


_SHOWN: Mapping[str, str] = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def _of_texts(first: Texts, second: Texts) -> list[Difference]:
    # The same questions are drawn for both, for their number is the same.
    drawn = bleu(resampled_sums(first.bleu_rows)) - bleu(resampled_sums(second.bleu_rows))
    rows = [
        Difference(
            "BLEU",
            first.n,
            first.bleu.value,
            second.bleu.value,
            Estimate(first.bleu.value - second.bleu.value, percentiles(drawn)),
            bootstrap_p(drawn),
            is_share=False,
        )
    ]
    sums = resampled_sums(first.rouge_rows - second.rouge_rows) / first.n
    for place, kind in enumerate(KINDS):
        one, other = first.rouge[kind].value, second.rouge[kind].value
        rows.append(
            Difference(
                _SHOWN[kind],
                first.n,
                one,
                other,
                Estimate(one - other, percentiles(sums[:, place])),
                bootstrap_p(sums[:, place]),
                is_share=False,
            )
        )
    return rows
