"""Grades answers: decides whether an answer is correct.

Answers are compared as text (`mmchat.answer_match`). A built-in base whose answers have a grammar
has its own grader, `grader.py` beside its weights, which knows which answers decline a question and
that a caption may list its objects in any order. Data can name a grader in data.json; otherwise the
grader of the base that answers is used. Only graders that come with mmchat are run, never code from
a user's folder.
"""

import functools
import importlib.util
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from mmchat.answer_match import normalize, same_words
from mmchat.evaluation.questions import Question
from mmchat.settings import builtin_adapters

GRADER = "grader.py"


class Grader(Protocol):
    """Knows what the answers to some data mean. All texts are as `normalize` returns them."""

    def content(self, text: str, caption: bool) -> Hashable:
        """A value that is equal for two answers that say the same. caption: whether they are captions."""

    def is_refusal(self, text: str) -> bool:
        """Whether the answer declines the question."""

    def objects(self, caption: str) -> Hashable | None:
        """A value that is equal for two captions that list the same objects, whatever writing they
        mention; None if `caption` is not a list of objects."""


class TextGrader:
    """Compares answers as text."""

    def content(self, text: str, caption: bool) -> Hashable:
        return text

    def is_refusal(self, text: str) -> bool:
        return False

    def objects(self, caption: str) -> Hashable | None:
        return None


def find_grader(base: str) -> Grader | None:
    """The grader of the built-in base with this name or folder; None if there is none."""
    root = builtin_adapters().resolve()
    try:
        folder = (root / base).resolve()
        if folder.parent != root or not (folder / GRADER).is_file():
            return None
    except (OSError, RuntimeError, ValueError):  # not a possible file name
        return None
    return _load(folder / GRADER)


@functools.cache
def _load(file: Path) -> Grader:
    spec = importlib.util.spec_from_file_location(f"mmchat_grader_{file.parent.name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Grader, module)


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """A question with its reference answer and the model's answer, compared."""

    id: str
    type: str
    question: str
    """The text of the last message."""
    reference: str
    prediction: str
    correct: bool
    """Exact match: the prediction has the same content as the reference."""
    is_caption: bool = False
    declined: bool = False
    """Whether the prediction is a refusal."""
    should_decline: bool = False
    """Whether the reference is a refusal."""
    objects_correct: bool | None = None
    """Whether a caption lists the objects of its reference; None if the reference lists none."""
    images: tuple[str, ...] = ()
    """Names, as in `QuestionSet.pictures`."""
    error: str = ""
    """Why the question could not be answered, which counts as wrong; "" if it was answered."""

    @property
    def verbatim(self) -> bool:
        """Whether the prediction equals the reference, except for white space at the ends."""
        return not self.error and self.prediction.strip() == self.reference.strip()

    @property
    def same_words(self) -> bool:
        return not self.error and same_words(self.prediction, self.reference)

    def to_dict(self) -> dict[str, Any]:
        names = ("id", "type", "question", "reference", "prediction", "correct", "error")
        return {name: getattr(self, name) for name in names}


def grade(question: Question, prediction: str, grader: Grader, error: str = "") -> GradedAnswer:
    """Compares an answer with its reference. error: why there is no answer; `prediction` is then ""."""
    answer, reference = normalize(prediction), normalize(question.answer)
    caption = question.is_caption
    objects = grader.objects(reference) if caption else None
    return GradedAnswer(
        id=question.id,
        type=question.type,
        question=question.text,
        reference=question.answer,
        prediction=prediction,
        correct=not error and grader.content(answer, caption) == grader.content(reference, caption),
        is_caption=caption,
        declined=grader.is_refusal(answer),
        should_decline=grader.is_refusal(reference),
        objects_correct=None if objects is None else grader.objects(answer) == objects,
        images=tuple(question.images),
        error=error,
    )
