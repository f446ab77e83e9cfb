"""The result of an evaluation: the graded answers and all metrics; and the comparison of two results."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmchat.answer_match import normalize
from mmchat.errors import DataError
from mmchat.evaluation.classification import Classification, YesNoMetrics, classify, compute_yes_no
from mmchat.evaluation.graders import GradedAnswer, Grader, TextGrader, grade
from mmchat.evaluation.questions import Question
from mmchat.evaluation.statistics import (
    Estimate,
    Floats,
    Proportion,
    bootstrap_p,
    difference_interval,
    mcnemar,
    percentiles,
    resampled_sums,
    with_interval,
)
from mmchat.evaluation.text_metrics import (
    ROUGE_TYPES,
    TextMetrics,
    TextScores,
    bleu_of_counts,
    compute_text_metrics,
    score_texts,
)

MARGIN = 0.05
"""How far a control's interval may be above the share of the most frequent answer."""


@dataclass(frozen=True, slots=True)
class EvaluationSetup:
    """The model and the data of an evaluation."""

    model: str
    weights_hash: str
    adapter: str
    adapter_hash: str
    quantization: str
    compute_dtype: str
    device: str
    data: str
    data_sha256: str
    about: dict[str, str | int]
    blank: bool = False
    """Whether grey pictures replaced the real ones."""


@dataclass(frozen=True, slots=True)
class TypeMetrics:
    """The metrics of all questions of one type."""

    name: str
    exact_match: Proportion
    most_frequent: float
    """The score of a baseline that always gives the most frequent answer of each group."""
    declined: Proportion
    objects_correct: Proportion | None = None
    """Captions whose objects are all correct, whatever they say about writing. None unless all
    references are captions that list objects."""
    caption_scores: TextScores | None = None
    """None unless all questions ask for captions."""

    @property
    def above_most_frequent(self) -> bool:
        """Whether the interval of the exact match is more than 5 points above the most frequent answer's
        share, which a model cannot reach if it sees other pictures."""
        return self.exact_match.interval[0] > self.most_frequent + MARGIN

    def to_dict(self) -> dict[str, Any]:
        values = {
            **_proportion_dict(self.exact_match, "exact_match"),
            "most_frequent_share": self.most_frequent,
            "above_most_frequent": self.above_most_frequent,
            "declined": self.declined.value,
        }
        if self.objects_correct is not None:
            values |= with_interval("objects_correct", self.objects_correct)
        if self.caption_scores is not None:
            values["bleu"] = self.caption_scores.bleu
            values["bleu_signature"] = self.caption_scores.bleu_signature
            values["rouge_l"] = self.caption_scores.rouge_l
        return values


@dataclass(frozen=True, slots=True)
class AnswerMetrics:
    """The metrics across all types. Those that do not apply to the questions are None or empty."""

    verbatim: Proportion
    same_words: Proportion
    classifications: tuple[Classification, ...]
    yes_no: YesNoMetrics | None
    texts: TextMetrics | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "verbatim": _proportion_dict(self.verbatim, "value"),
            "same_words": _proportion_dict(self.same_words, "value"),
            "classes": [one.to_dict() for one in self.classifications],
            "yes_no": self.yes_no.to_dict() if self.yes_no else None,
            "texts": self.texts.to_dict() if self.texts else None,
        }


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The answers of one model to one set of questions, in the order of the data."""

    setup: EvaluationSetup
    types: tuple[TypeMetrics, ...]
    answers: tuple[GradedAnswer, ...]
    reused: int
    """How many answers come from an earlier run."""
    answers_file: str
    knows_refusals: bool
    """Whether the grader can tell that an answer declines the question."""

    @property
    def exact_match(self) -> Proportion:
        """Over all questions."""
        return _share([a.correct for a in self.answers])

    @property
    def mean_exact_match(self) -> float:
        """The mean over the types: every type counts the same."""
        return sum(one.exact_match.value for one in self.types) / len(self.types)

    @property
    def correctly_declined(self) -> Proportion:
        """Over the questions whose reference declines."""
        return _share([a.declined for a in self.answers if a.should_decline])

    @property
    def wrongly_declined(self) -> Proportion:
        """Over all other questions."""
        return _share([a.declined for a in self.answers if not a.should_decline])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares are from 0 to 1."""
        return {
            "overall": {
                **_proportion_dict(self.exact_match, "exact_match"),
                "mean_exact_match": self.mean_exact_match,
                "correctly_declined": _proportion_dict(self.correctly_declined, "share"),
                "wrongly_declined": _proportion_dict(self.wrongly_declined, "share"),
            },
            "types": {one.name: one.to_dict() for one in self.types},
            **{key: value for key, value in asdict(self.setup).items() if key != "blank"},
            "reused": self.reused,
            "answers_file": self.answers_file,
        }


def make_result(
    setup: EvaluationSetup,
    pairs: Sequence[tuple[Question, str]],
    *,
    grader: Grader | None = None,
    errors: Mapping[str, str] | None = None,
    reused: int = 0,
    answers_file: str = "",
) -> EvaluationResult:
    """Grades at least one question and its answer.

    errors: why a question could not be answered, by its id; its answer is then empty.
    """
    knows_refusals = grader is not None
    grader, errors = grader or TextGrader(), errors or {}
    answers = tuple(grade(q, answer, grader, errors.get(q.id, "")) for q, answer in pairs)
    by_type: dict[str, list[tuple[Question, GradedAnswer]]] = {}
    for (question, _), answer in zip(pairs, answers, strict=True):
        by_type.setdefault(question.type, []).append((question, answer))
    types = tuple(_type_metrics(name, graded) for name, graded in by_type.items())
    return EvaluationResult(setup, types, answers, reused, answers_file, knows_refusals)


def _type_metrics(name: str, graded: Sequence[tuple[Question, GradedAnswer]]) -> TypeMetrics:
    answers = [answer for _, answer in graded]
    choices = [(q.group or name, q.choice or normalize(q.answer)) for q, _ in graded]
    objects_correct = caption_scores = None
    if all(a.is_caption for a in answers):
        caption_scores = score_texts(
            [a.prediction for a in answers], [a.reference for a in answers]
        )
        checked = [a.objects_correct for a in answers if a.objects_correct is not None]
        if len(checked) == len(answers):
            objects_correct = _share(checked)
    return TypeMetrics(
        name,
        _share([a.correct for a in answers]),
        most_frequent_share(choices),
        _share([a.declined for a in answers]),
        objects_correct,
        caption_scores,
    )


def compute_metrics(answers: Sequence[GradedAnswer]) -> AnswerMetrics:
    """The metrics of at least one answer, across all types."""
    return AnswerMetrics(
        _share([a.verbatim for a in answers]),
        _share([a.same_words for a in answers]),
        classify(answers),
        compute_yes_no(answers),
        compute_text_metrics(answers),
    )


def most_frequent_share(choices: Sequence[tuple[str, str]]) -> float:
    """The score of a baseline that always gives the most frequent choice of each group.

    choices: (group, choice) of every question.
    """
    groups: dict[str, Counter[str]] = {}
    for group, choice in choices:
        groups.setdefault(group, Counter())[choice] += 1
    best = sum(max(counts.values()) for counts in groups.values())
    return best / len(choices) if choices else 0.0


def _share(flags: Sequence[bool]) -> Proportion:
    return Proportion(sum(flags), len(flags))


def _proportion_dict(proportion: Proportion, name: str) -> dict[str, Any]:
    return {"n": proportion.n, name: proportion.value, "interval": list(proportion.interval)}


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
