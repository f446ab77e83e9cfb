"""The person's own history as data: the answers that they corrected or rated as good.

Each answer is one example, with the context that the engine would get
(`mmchat.history.turns`). Only this answer is learned: those before it were not approved,
or are examples themselves.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from mmchat.data.digest import of_examples
from mmchat.data.types import Dataset, Example, Picture, Problem
from mmchat.errors import DataError, HistoryError
from mmchat.history import History, StoredImage, TrainingExample
from mmchat.history.turns import branch_turns
from mmchat.turns import Turn

FORM = "your own history"
RATINGS: tuple[Literal["good", "corrected"], ...] = ("good", "corrected")

_CUT = {
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
    """The examples of a history, by default the person's own; none if nothing was approved.

    `since` and `until` limit the time of the rating or correction. Both are seconds since
    the epoch (`until` is exclusive), or ISO 8601 dates with or without a time; a day without
    a time is included (`until="2026-03-01"` includes that day). With `tags`, a conversation
    needs one of them.

    Raises:
        HistoryError: the history cannot be read, or holds no such conversation.
        DataError: a rating or a date is invalid, or no conversation has one of `tags`.
    """
    wanted = [rating for rating in RATINGS if rating in ratings]
    if unknown := set(ratings) - set(wanted):
        raise DataError(
            f"{min(unknown)} is not a rating to learn from: choose {' or '.join(RATINGS)}."
        )
    first, last = _moment(since), _moment(until, whole_day=True)
    with ExitStack() as stack:
        if not isinstance(history, History):
            history = stack.enter_context(History.open(history))
        for conversation_id in conversations:
            history.conversation(conversation_id)
        _require_tags(history, tags)
        approved = history.training_examples(
            ratings=wanted, since=first, until=last, conversations=conversations, tags=tags
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
    return Dataset(FORM, str(file), examples, problems, of_examples(examples))


def _moment(date: float | str | None, whole_day: bool = False) -> float | None:
    """`date` in seconds since the epoch; with `whole_day` the end of a day without a time."""
    if not isinstance(date, str):
        return date
    try:
        moment = datetime.fromisoformat(date.strip())
        without_time = len(date.strip()) <= len("2026-03-01")
        return (moment + timedelta(days=whole_day and without_time)).timestamp()
    except (ValueError, OverflowError) as error:
        raise DataError(f"{date} is not a date: write one such as 2026-03-01.") from error


def _require_tags(history: History, tags: Collection[str]) -> None:
    for name in tags:
        if not history.conversations(limit=1, tag=name):
            known = ", ".join(list(history.tags())[:20])
            there = f"the tags are {known}" if known else "no conversation has a tag yet (/tag)"
            raise DataError(f"No conversation has the tag {name}: {there}.")


def _problem(example: TrainingExample, asked: Sequence[Turn[StoredImage]]) -> str:
    """Why nothing can be learned from it; "" if something can."""
    if not example.answer.text.strip():
        return "The answer is empty: correct it."
    if not example.whole:
        why = _CUT[example.answer.state]
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
            if not self.file.is_file():  # opening it would create a new history there
                raise HistoryError(f"The history {self.file} is gone.")
            with History.open(self.file) as history:
                return history.image_data(self.sha256)
        except HistoryError as error:
            raise DataError(f"The picture {self.name} cannot be read: {error}") from error
