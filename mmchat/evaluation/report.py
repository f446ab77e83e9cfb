"""What an evaluation found, for programs and for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.evaluation import metrics
from mmchat.evaluation.metrics import Share
from mmchat.evaluation.outcome import Outcome
from mmchat.evaluation.questions import Question
from mmchat.evaluation.texts import Wording, wording
from mmchat.sanitize import clean

MARGIN = 0.05
"""A control's interval may lie so far above the most frequent answer's share."""
_FACTS = ("part", "seed", "pairs", "control")


@dataclass(frozen=True, slots=True)
class TypeReport:
    """All questions of one type. Shares are from 0 to 1."""

    name: str
    exact_match: Share
    most_frequent: float
    """What always giving the most frequent answer (of each group) would get right."""
    declined: Share
    """Answers that decline: right for the types refuse_*, wrong for the others."""
    things_right: Share | None = None
    """Captions as the built-in model has them only: every thing right, whatever was said of
    writing."""
    wording: Wording | None = None
    """Captions only."""

    @property
    def is_refusal(self) -> bool:
        return self.name.startswith("refuse_")

    @property
    def above_most_frequent(self) -> bool:
        """Whether the whole interval lies more than 5 points above the most frequent answer's
        share: of a picture that shows something else, a model that looks cannot know so much."""
        return self.exact_match.interval[0] > self.most_frequent + MARGIN

    def to_dict(self) -> dict[str, Any]:
        made = {
            **_share(self.exact_match, "exact_match"),
            "most_frequent_share": self.most_frequent,
            "above_most_frequent": self.above_most_frequent,
            "declined": self.declined.share,
        }
        if self.things_right is not None:
            made["every_object_right"] = self.things_right.share
            made["every_object_right_interval"] = list(self.things_right.interval)
        if self.wording is not None:
            made["bleu"] = self.wording.bleu
            made["bleu_signature"] = self.wording.bleu_signature
            made["rouge_l"] = self.wording.rouge_l
        return made


@dataclass(frozen=True, slots=True)
class Subject:
    """Who answered, and what was asked."""

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
    """Whether grey pictures stood for the real ones."""


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one evaluation."""

    subject: Subject
    types: tuple[TypeReport, ...]
    reused: int
    """How many of the answers an earlier run had already got."""
    answers_file: str
    outcomes: tuple[Outcome, ...]
    """Of every question, in the order of the data."""

    @property
    def total(self) -> Share:
        """Right answers of all: the same as `exact_match`."""
        return self.exact_match

    @property
    def exact_match(self) -> Share:
        """Over all questions, whatever their type."""
        return _together([one.exact_match for one in self.types])

    @property
    def mean_exact_match(self) -> float:
        """The mean over the types, each counting the same."""
        return sum(one.exact_match.share for one in self.types) / len(self.types)

    @property
    def rightly_declined(self) -> Share:
        """Of the questions of the types refuse_*."""
        return _together([one.declined for one in self.types if one.is_refusal])

    @property
    def wrongly_declined(self) -> Share:
        """Of all other questions."""
        return _together([one.declined for one in self.types if not one.is_refusal])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; shares are from 0 to 1."""
        subject = self.subject
        return {
            "overall": {
                **_share(self.exact_match, "exact_match"),
                "mean_exact_match": self.mean_exact_match,
                "rightly_declined": _share(self.rightly_declined, "share"),
                "wrongly_declined": _share(self.wrongly_declined, "share"),
            },
            "types": {one.name: one.to_dict() for one in self.types},
            "model": subject.model,
            "weights_hash": subject.weights_hash,
            "adapter": subject.adapter,
            "adapter_hash": subject.adapter_hash,
            "quantization": subject.quantization,
            "compute_dtype": subject.compute_dtype,
            "device": subject.device,
            "data": subject.data,
            "data_sha256": subject.data_sha256,
            "about": subject.about,
            "reused": self.reused,
            "answers_file": self.answers_file,
        }

    def to_markdown(self) -> str:
        """The table of a model's card, which reads well on a terminal too."""
        rows = [_row(one) for one in self.types]
        every = self.exact_match
        mean = ["mean over types", "", percent(self.mean_exact_match), "", "", ""]
        rows += [mean, ["all questions", str(every.n), *figures(every), "", ""]]
        said = [*table(_HEADER, rows), ""]
        if any(one.above_most_frequent for one in self.types):
            said.append(f"\\* exact match is above it by more than {100 * MARGIN:.0f} points.")
        for one in self.types:
            of_captions = []
            if one.things_right is not None:
                of_captions.append(f"every object right {_whole(one.things_right)}")
            if one.wording is not None:
                of_captions.append(f"BLEU {one.wording.bleu:.1f}")
                of_captions.append(f"ROUGE-L {one.wording.rouge_l:.3f}")
            if of_captions:
                said.append(f"{cell(one.name)}: {', '.join(of_captions)}.")
        if self.rightly_declined.n:
            said.append(f"Declined of what is to be declined: {_whole(self.rightly_declined)}.")
        if self.wrongly_declined.n:
            said.append(f"Declined of what is to be answered: {_whole(self.wrongly_declined)}.")
        said += ["", self._made_by()]
        return clean("\n".join(said))

    def _made_by(self) -> str:
        subject = self.subject
        # A card is published: it names no folder of this machine.
        who = [f"model {_shown(subject.model)}"]
        if subject.weights_hash:
            who[0] += f" (weights {subject.weights_hash[:12]})"
        if subject.adapter:
            who.append(
                f"adapter {_shown(subject.adapter)}"
                + (f" ({subject.adapter_hash[:12]})" if subject.adapter_hash else "")
            )
        who += [word for word in (subject.quantization, subject.device) if word]
        facts = [f"{name} {subject.about[name]}" for name in _FACTS if name in subject.about]
        return cell(
            f"By `mmchat evaluate`: {', '.join(who)}; greedy; data {subject.data_sha256[:12]}"
            + (f" ({', '.join(facts)})" if facts else "")
            + "; intervals are 95 % (Wilson)."
        )


def make_report(
    subject: Subject,
    pairs: Sequence[tuple[Question, str]],
    reused: int,
    answers_file: str,
    unanswered: Mapping[str, str] | None = None,
) -> Report:
    """The figures of at least one question and its answer.

    unanswered: why there is none, by the question's id; the answer is then empty.
    """
    why = unanswered or {}
    outcomes = tuple(_outcome(question, said, why.get(question.id, "")) for question, said in pairs)
    by_type: dict[str, list[tuple[Question, Outcome]]] = {}
    for (question, _), outcome in zip(pairs, outcomes, strict=True):
        by_type.setdefault(question.type, []).append((question, outcome))
    return Report(
        subject,
        tuple(_report_type(name, of_type) for name, of_type in by_type.items()),
        reused,
        answers_file,
        outcomes,
    )


def _outcome(question: Question, said: str, unanswered: str) -> Outcome:
    return Outcome(
        question.id,
        question.type,
        question.text,
        question.answer,
        said,
        not unanswered and metrics.is_right(said, question.answer, is_caption(question)),
        tuple(question.images),
        unanswered,
    )


def _report_type(name: str, asked: Sequence[tuple[Question, Outcome]]) -> TypeReport:
    """The figures of one type, of at least one question."""
    outcomes = [one for _, one in asked]
    choices = [(q.group or name, q.choice or metrics.normalise(q.answer)) for q, _ in asked]
    things_right = words = None
    if all(is_caption(question) for question, _ in asked):
        words = wording([one.given for one in outcomes], [one.wanted for one in outcomes])
        # A person's own captions are free text, of which no object can be counted.
        if all(metrics.parse_caption(one.wanted) is not None for one in outcomes):
            hits = sum(metrics.is_things_right(one.given, one.wanted) for one in outcomes)
            things_right = Share(hits, len(outcomes))
    return TypeReport(
        name,
        Share(sum(one.right for one in outcomes), len(outcomes)),
        metrics.most_frequent(choices),
        Share(sum(metrics.is_declined(one.given) for one in outcomes), len(outcomes)),
        things_right,
        words,
    )


def is_caption(question: Question) -> bool:
    return question.type == "caption" or question.group.endswith("/caption")


_HEADER = (
    "question type",
    "n",
    "exact match",
    "95 % interval",
    "most frequent answer",
    "declined",
)


def _row(one: TypeReport) -> list[str]:
    # What a control must not have, and every other evaluation should.
    frequent = percent(one.most_frequent) + (" *" if one.above_most_frequent else "")
    declined = percent(one.declined.share)
    right = figures(one.exact_match)
    return [cell(one.name), str(one.exact_match.n), *right, frequent, declined]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with even columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)])} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (w + 1) + ':' for w in widths[1:])}|"
    return [line(header), rule, *map(line, rows)]


def _together(shares: Sequence[Share]) -> Share:
    return Share(sum(one.hits for one in shares), sum(one.n for one in shares))


def _share(one: Share, name: str) -> dict[str, Any]:
    return {"n": one.n, name: one.share, "interval": list(one.interval)}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def figures(one: Share) -> tuple[str, str]:
    low, high = one.interval
    return percent(one.share), f"{100 * low:.1f}–{100 * high:.1f} %"


def _whole(one: Share) -> str:
    return f"{' ('.join(figures(one))}; n = {one.n})"


def _shown(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def cell(text: str) -> str:
    """Foreign text in one line of Markdown that it cannot break."""
    return clean(text, keep_newlines=False).replace("|", "\\|")
