"""Training data from the user's own history: answers that they corrected or rated as good.

Each answer is one example, with the context that the engine would get
(`mmchat.history.turns`). Only this answer is trained on: earlier ones were not approved, or
are examples themselves.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from mmchat.data.types import Dataset, Example, Picture, Problem, hash_examples
from mmchat.errors import DataError, HistoryError
from mmchat.history import History, StoredImage, TrainingExample
from mmchat.history.turns import branch_turns
from mmchat.turns import Turn

FORMAT = "your own history"
RATINGS: tuple[Literal["good", "corrected"], ...] = ("good", "corrected")

_INCOMPLETE = {
    "length": "it was cut at the token limit",
    "interrupted": "it was interrupted",
    "failed": "it failed",
}


def read_history(
    history: History | Path | None = None,
    *,
    ratings: Collection[str] = RATINGS,
    since: float | str | None = None,
    until: float | str | None = None,
    conversations: Collection[int] = (),
    tags: Collection[str] = (),
) -> Dataset:
    """Reads the examples of a history, by default the user's own; empty if nothing was approved.

    `since` and `until` limit the time of the rating or correction. Both are seconds since
    the epoch (`until` is exclusive), or ISO 8601 dates with or without a time;
    `until="2026-03-01"` includes that day. With `tags`, a conversation needs one of them.

    Raises:
        HistoryError: the history cannot be read, or has no such conversation.
        DataError: a rating or a date is invalid, or no conversation has one of `tags`.
    """
    selected = [rating for rating in RATINGS if rating in ratings]
    if unknown := set(ratings) - set(selected):
        raise DataError(
            f"{min(unknown)} is not a rating to train on: choose {' or '.join(RATINGS)}."
        )
    first, last = _moment(since), _moment(until, whole_day=True)
    with ExitStack() as stack:
        if not isinstance(history, History):
            history = stack.enter_context(History.open(history))
        for conversation_id in conversations:
            history.conversation(conversation_id)
        _require_tags(history, tags)
        approved = history.training_examples(
            ratings=selected, since=first, until=last, conversations=conversations, tags=tags
        )
        file = history.file
    examples: list[Example] = []
    problems: list[Problem] = []
    for example in approved:
        place = f"conversation {example.conversation.id}, message {example.answer.id}"
        asked = branch_turns(example.messages[:-1], example.conversation.system)
        problem = _problem(example, asked)
        if problem:
            problems.append(Problem(place, problem))
            continue
        turns = (*_turns(asked, file), Turn("assistant", (example.answer.text,)))
        examples.append(Example(turns, example.kind, place, only_last=True))
    return Dataset(FORMAT, str(file), examples, problems, hash_examples(examples))


def _moment(date: float | str | None, whole_day: bool = False) -> float | None:
    """`date` in seconds since the epoch; with `whole_day`, a date without a time is its end."""
    if not isinstance(date, str):
        return date
    try:
        moment = datetime.fromisoformat(date.strip())
        without_time = len(date.strip()) <= len("2026-03-01")
        return (moment + timedelta(days=whole_day and without_time)).timestamp()
    except (ValueError, OverflowError) as error:
        raise DataError(f"{date} is not a date: write it like 2026-03-01.") from error


def _require_tags(history: History, tags: Collection[str]) -> None:
    for name in tags:
        if not history.conversations(limit=1, tag=name):
            known = ", ".join(list(history.tags())[:20])
            hint = f"the tags are {known}" if known else "no conversation has a tag yet (/tag)"
            raise DataError(f"No conversation has the tag {name}: {hint}.")


def _problem(example: TrainingExample, asked: Sequence[Turn[StoredImage]]) -> str:
    """Why the example cannot be used; "" if it can."""
    if not example.answer.text.strip():
        return "The answer is empty: correct it."
    if not example.is_complete:
        why = _INCOMPLETE[example.answer.state]
        return f"The answer is not complete, because {why}: correct it."
    if not asked or asked[-1].role != "user":
        return "There is no question before the answer."
    return ""


def _turns(asked: Iterable[Turn[StoredImage]], file: Path) -> list[Turn[Picture]]:
    def picture(image: StoredImage) -> Picture:
        source = _HistoryPictureSource(file, image.sha256, image.name)
        return Picture(
            image.sha256, image.mime, image.width, image.height, image.name, source=source
        )

    return [turn.map_images(picture) for turn in asked]


@dataclass(frozen=True, slots=True)
class _HistoryPictureSource:
    """Reads the bytes of a picture in the history, in any process."""

    file: Path
    sha256: str
    name: str

    def __call__(self) -> bytes:
        try:
            if not self.file.is_file():  # opening would create a new history
                raise HistoryError(f"The history {self.file} does not exist any more.")
            with History.open(self.file) as history:
                return history.image_data(self.sha256)
        except HistoryError as error:
            raise DataError(f"The picture {self.name} cannot be read: {error}") from error
