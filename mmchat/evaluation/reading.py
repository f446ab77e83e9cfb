"""Data in whatever form as questions: every answer in it is one that is asked for.

What stands before the answer is asked with: the true turns, not what the model said to
the questions before.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from mmchat.data.digest import content
from mmchat.data.types import Dataset, Example, Picture
from mmchat.data.types import Turn as TrueTurn
from mmchat.errors import DataError
from mmchat.evaluation.learned import held_out
from mmchat.evaluation.questions import (
    LEAST_TOKENS,
    QUESTIONS,
    Mark,
    Message,
    Question,
    Questions,
    Text,
    read_questions,
)

NO_KIND = "answers"
"""The type of questions whose data names none."""
MOST_TOKENS = 1024
"""Where an answer is cut, however long a wanted one is."""

Part = Literal["auto", "held-out", "train", "all"]


def read(
    data: Path | Dataset | Questions,
    part: Part = "auto",
    *,
    adapters: Iterable[str] = (),
    allow_bad: bool = False,
    images: Path | None = None,
) -> Questions:
    """The questions of an evaluation folder, of data in any form, or of what was read before.

    part: `auto` is the data's own held-out part; where it has none and one of `adapters` was
    trained on this very data, what that training held out; else all of it. What is no data on the
    disk, and an evaluation folder, has no parts. allow_bad: whatever share of the samples cannot
    be used, else at most 1 %. images: another folder that a data file may name pictures in. Raises
    DataError.
    """
    if isinstance(data, Questions):
        return data
    if isinstance(data, Dataset):
        return questions_of(data)
    if (data / QUESTIONS).is_file():
        return read_questions(data)
    return questions_of(*_read_any(data, part, list(adapters), allow_bad, images))


def _read_any(
    data: Path, part: Part, adapters: list[str], allow_bad: bool, images: Path | None
) -> tuple[Dataset, str]:
    """(the part of the data that is asked, what it is in words where it is not all)"""
    from mmchat.data.snapshot import has_snapshot, load_snapshot

    if has_snapshot(data):
        return load_snapshot(data), ""
    from mmchat.data import read_data, read_splits

    if part == "all":
        return read_data(data, allow_bad=allow_bad, images=images), ""
    train, kept = read_splits(data, allow_bad=allow_bad, images=images)
    if part == "train":
        return train, "its training part" if kept is not None else ""
    if kept is not None:
        return kept, "its held-out part"
    examples, by = held_out(train, adapters)
    if by:
        names = " and ".join(map(_name, by))
        if not examples:
            raise DataError(
                f"{names} learned from {data}, and no example of it was kept back"
                f"{' by all of them' if len(by) > 1 else ''}: name other data, or ask all of it with "
                "--part all."
            )
        left = Dataset(train.form, train.source, examples, train.problems, train.sha256)
        return left, f"what the training of {names} held out"
    if part == "held-out":
        raise DataError(f"{data} has no held-out part: leave --part out.")
    return train, ""


def _name(adapter: str) -> str:
    return Path(adapter).name or adapter


def questions_of(dataset: Dataset, part: str = "") -> Questions:
    """Each answer of the examples that counts as one question, its pictures by their hash.

    Raises DataError where there is none.
    """
    questions: dict[str, Question] = {}
    shown: dict[str, Picture] = {}
    taken: Counter[str] = Counter()
    digest = hashlib.sha256()
    for example in dataset.examples:
        for number in _asked(example):
            id_ = _new_id(f"{example.place}#{number}", questions, taken)
            question = _question(example, number, id_)
            questions[question.id] = question
            digest.update(f"{question.id}\0{question.type}\0{number}\n".encode(errors="replace"))
        digest.update(content(example) + b"\n")
        shown |= {picture.sha256: picture for picture in example.pictures}
    if not questions:
        why = f" ({dataset.problems[0].why})" if dataset.problems else ""
        raise DataError(
            f"{dataset.source} holds no question with an answer{why}: "
            "`mmchat data inspect` says what was recognised."
        )
    about: dict[str, str | int] = {"form": dataset.form}
    return Questions(
        dataset.source,
        tuple(questions.values()),
        dataset.sha256,
        digest.hexdigest(),
        about | ({"part": part} if part else {}),
        shown,
        tuple(f"{problem.place}: {problem.why}" for problem in dataset.problems),
        _max_tokens(questions.values()),
    )


def _max_tokens(questions: Iterable[Question]) -> int:
    """Room for the longest answer that is wanted: a token is hardly ever under two bytes of it."""
    longest = max(len(question.answer.encode(errors="replace")) for question in questions)
    return min(max(longest // 2, LEAST_TOKENS), MOST_TOKENS)


def _asked(example: Example) -> Iterator[int]:
    """The places of the answers that are asked for, each after a message of the person."""
    turns = example.turns
    last = len(turns) - 1
    for number, turn in enumerate(turns):
        counts = number == last or not example.only_last
        if turn.role == "assistant" and counts and number and turns[number - 1].role == "user":
            yield number


def _question(example: Example, number: int, id_: str) -> Question:
    before = example.turns[:number]
    return Question(
        id=id_,
        type=example.kind.strip() or NO_KIND,
        messages=[_message(turn) for turn in before],
        answer=example.turns[number].text,
        images=[p.sha256 for turn in before for p in turn.parts if isinstance(p, Picture)],
    )


def _message(turn: TrueTurn) -> Message:
    return Message(turn.role, [Text(p) if isinstance(p, str) else Mark() for p in turn.parts])


def _new_id(wanted: str, known: dict[str, Question], taken: Counter[str]) -> str:
    """`wanted`, or with a number behind it where it is taken."""
    found = wanted
    while found in known:
        taken[wanted] += 1
        found = f"{wanted}~{taken[wanted] + 1}"
    return found
