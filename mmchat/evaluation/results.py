"""The result of an evaluation: the graded answers and all metrics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmchat.answer_match import normalize
from mmchat.evaluation.classification import Classification, YesNoMetrics, classify, compute_yes_no
from mmchat.evaluation.graders import GradedAnswer, Grader, TextGrader, grade
from mmchat.evaluation.questions import Question
from mmchat.evaluation.statistics import Proportion, with_interval
from mmchat.evaluation.text_metrics import (
    TextMetrics,
    TextScores,
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
