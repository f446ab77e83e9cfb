"""Loads the questions to ask, from an evaluation folder or from data in any other format.

Every answer in the data is a reference. The turns before it are sent as they are in the data, not with
the model's own earlier answers. An adapter is only asked what it was not trained on.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from mmchat.adapters.card import find_adapter
from mmchat.data import read_data, read_splits, split
from mmchat.data.snapshot import has_snapshot, load_snapshot
from mmchat.data.types import Dataset, Example, Picture
from mmchat.errors import AdapterError, DataError, RecipeError
from mmchat.evaluation.questions import (
    MIN_TOKENS,
    QUESTIONS,
    Image,
    Message,
    Question,
    QuestionSet,
    Text,
    read_questions,
)
from mmchat.settings import NO_ADAPTER
from mmchat.training.finetune_config import FinetuneConfig, read_config
from mmchat.training.run_folder import RECIPE
from mmchat.turns import Turn

DEFAULT_TYPE = "answers"
"""The type of questions whose data does not name one."""
MAX_TOKENS = 1024
"""The maximum length of an answer, even if its reference is longer."""

DataPart = Literal["auto", "held-out", "train", "all"]


def load_questions(
    data: Path | Dataset | QuestionSet,
    part: DataPart = "auto",
    *,
    adapters: Iterable[str] = (),
    allow_bad: bool = False,
    images: Path | None = None,
) -> QuestionSet:
    """The questions of an evaluation folder, or of data in any other format.

    part: `auto` is the data's held-out part; if there is none and one of `adapters` was trained on
    this data, the examples that its training held out; otherwise everything. Evaluation folders and
    data sets in memory have no parts. allow_bad: accept any share of unusable samples instead of at
    most 1 %. images: a second folder for the pictures that a data file names.
    Raises DataError.
    """
    if isinstance(data, QuestionSet):
        return data
    if isinstance(data, Dataset):
        return dataset_questions(data)
    if (data / QUESTIONS).is_file():
        return read_questions(data)
    return dataset_questions(*_read_part(data, part, list(adapters), allow_bad, images))


def _read_part(
    data: Path, part: DataPart, adapters: list[str], allow_bad: bool, images: Path | None
) -> tuple[Dataset, str]:
    """(the part of the data to ask, its description; "" if it is everything)"""
    if has_snapshot(data):
        return load_snapshot(data), ""
    if part == "all":
        return read_data(data, allow_bad=allow_bad, images=images), ""
    train, held_out = read_splits(data, allow_bad=allow_bad, images=images)
    if part == "train":
        return train, "its training part" if held_out is not None else ""
    if held_out is not None:
        return held_out, "its held-out part"
    examples, trained = held_out_of_training(train, adapters)
    if trained:
        names = " and ".join(Path(adapter).name or adapter for adapter in trained)
        if not examples:
            raise DataError(
                f"{names} {'was' if len(trained) == 1 else 'were'} trained on {data}, and no example was "
                f"held out{' by all of them' if len(trained) > 1 else ''}: choose other data, or ask "
                "everything with --part all."
            )
        rest = Dataset(train.format, train.source, examples, train.problems, train.sha256)
        return rest, f"what the training of {names} held out"
    if part == "held-out":
        raise DataError(f"{data} has no held-out part: omit --part.")
    return train, ""


def held_out_of_training(data: Dataset, adapters: Iterable[str]) -> tuple[list[Example], list[str]]:
    """(the examples that no training of `adapters` used, the adapters that were trained on this data)

    The examples are in the order of the data; there may be none. Both lists are empty if no adapter
    was trained on this data. An adapter's recipe says how its data was split.
    """
    kept: Sequence[Example] = data.examples
    trained = []
    for adapter in dict.fromkeys(adapters):
        recipe = _read_recipe(adapter)
        if recipe is None or recipe.data.sha256 != data.sha256:
            continue
        trained.append(adapter)
        held_out = {id(e) for e in split(data.examples, recipe.data.held_out, recipe.seed)[1]}
        kept = [example for example in kept if id(example) in held_out]
    return (list(kept), trained) if trained else ([], [])


def _read_recipe(adapter: str) -> FinetuneConfig | None:
    """None if there is no recipe or no adapter. Problems of the adapter are left to the engine to report."""
    if adapter in ("", NO_ADAPTER):
        return None
    try:
        return read_config(find_adapter(adapter) / RECIPE)
    except (AdapterError, RecipeError):
        return None


def dataset_questions(dataset: Dataset, part: str = "") -> QuestionSet:
    """One question for every answer in the examples; pictures are named by their hash.

    part: which part of the data it is, for the report. Raises DataError if there are no answers.
    """
    questions: dict[str, Question] = {}
    pictures: dict[str, Picture] = {}
    taken: Counter[str] = Counter()
    digest = hashlib.sha256()
    for example in dataset.examples:
        for number in _answer_turns(example):
            id_ = _unique_id(f"{example.place}#{number}", questions, taken)
            question = _question(example, number, id_)
            questions[question.id] = question
            digest.update(f"{question.id}\0{question.type}\0{number}\n".encode(errors="replace"))
        digest.update(example.content + b"\n")
        pictures |= {picture.sha256: picture for picture in example.pictures}
    if not questions:
        why = f" ({dataset.problems[0].why})" if dataset.problems else ""
        raise DataError(
            f"{dataset.source} has no question with an answer{why}: "
            "`mmchat data inspect` shows what was recognised."
        )
    about: dict[str, str | int] = {"form": dataset.format}
    return QuestionSet(
        dataset.source,
        tuple(questions.values()),
        dataset.sha256,
        digest.hexdigest(),
        about | ({"part": part} if part else {}),
        pictures,
        tuple(f"{problem.place}: {problem.why}" for problem in dataset.problems),
        _max_tokens(questions.values()),
    )


def _max_tokens(questions: Iterable[Question]) -> int:
    """Enough for the longest reference, because a token is hardly ever less than two bytes of text."""
    longest = max(len(question.answer.encode(errors="replace")) for question in questions)
    return min(max(longest // 2, MIN_TOKENS), MAX_TOKENS)


def _answer_turns(example: Example) -> Iterator[int]:
    """The positions of the answers to ask for. Each follows a user message."""
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
        type=example.kind.strip() or DEFAULT_TYPE,
        messages=[_message(turn) for turn in before],
        answer=example.turns[number].text,
        images=[picture.sha256 for turn in before for picture in turn.images],
    )


def _message(turn: Turn[Picture]) -> Message:
    return Message(turn.role, [Text(p) if isinstance(p, str) else Image() for p in turn.parts])


def _unique_id(id_: str, known: dict[str, Question], taken: Counter[str]) -> str:
    """`id_`, with a number appended if it is taken."""
    unique = id_
    while unique in known:
        taken[id_] += 1
        unique = f"{id_}~{taken[id_] + 1}"
    return unique
