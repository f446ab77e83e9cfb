"""The questions of an evaluation folder.

    pictures/000001.png …
    questions.jsonl     a line each: {"id", "type", "images": ["pictures/000001.png"],
                        "messages": [{"role", "content"}, …], "answer"}, and where they are known
                        "group" and "choice", for the share of the most frequent answer
    data.json           how it was made, if somebody wrote it down

The last message is the person's. A message's content is a text, or a list of parts
{"type": "text", "text": …} and {"type": "image"}, which takes the next picture. Where
no part names a picture, all stand before the first text of the person.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from mmchat.client import ImagePart, Turn
from mmchat.errors import DataError
from mmchat.images import MAX_BYTES
from mmchat.images.headers import SUPPORTED, Refusal, read_header

QUESTIONS, ABOUT = "questions.jsonl", "data.json"


class _Text(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class _Image(Struct, frozen=True, tag_field="type", tag="image"):
    pass


class _Message(Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Text | _Image]


class Question(Struct, frozen=True):
    """A line of questions.jsonl, checked."""

    id: str
    type: str
    messages: list[_Message]
    answer: str
    images: list[str] = []
    group: str = ""
    """The kind of question within its type, where the data says it."""
    choice: str = ""
    """What the right answer chooses within its group, where the data says it."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    sha256: str
    mime: str


@dataclass(frozen=True, slots=True)
class Questions:
    """An evaluation folder that was read and checked; the pictures' bytes stay on the disk."""

    folder: Path
    questions: tuple[Question, ...]
    sha256: str
    """Of questions.jsonl and of every picture."""
    about: dict[str, str | int]
    """The plain facts of data.json; empty where there is none."""
    _files: dict[str, _File]

    def turns(self, question: Question) -> list[Turn]:
        """The conversation as the engine is asked with it, the pictures' bytes in it.

        Raises DataError where a picture has changed since the folder was read.
        """
        pictures = [self._picture(name) for name in question.images]
        marked = any(isinstance(m.content, list) and _marks(m) for m in question.messages)
        turns = []
        for message in question.messages:
            content = message.content
            parts: list[str | ImagePart] = []
            if not marked and message.role == "user":
                parts, pictures = [*pictures], []
            for part in [_Text(content)] if isinstance(content, str) else content:
                parts.append(part.text if isinstance(part, _Text) else pictures.pop(0))
            turns.append(Turn(message.role, tuple(parts)))
        return turns

    def _picture(self, name: str) -> ImagePart:
        file = self._files[name]
        data = _read(file.path, f"The picture {file.path}")
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise DataError(f"The picture {file.path} changed while it was in use: start again.")
        return ImagePart(file.sha256, file.mime, data)


def read_questions(folder: Path) -> Questions:
    """Reads and checks a whole evaluation folder.

    Raises DataError with the file, and the line if there is one, that has to be mended.
    """
    file = folder / QUESTIONS
    if not file.is_file():
        raise DataError(
            f"{folder} is no evaluation folder, for it holds no {QUESTIONS}: "
            "name a folder that was made for evaluation."
        )
    raw = _read(file, str(file), limited=False)
    decoder = msgspec.json.Decoder(Question)
    questions: dict[str, Question] = {}
    files: dict[str, _File] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            question = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{where}: this is no question ({error}); mend the line.") from error
        if fault := _fault(question, questions):
            raise DataError(f"{where}: {fault}.")
        for name in question.images:
            if name not in files:
                files[name] = _checked(folder, name, where)
        questions[question.id] = question
    if not questions:
        raise DataError(f"{file} holds no question: make the data again.")
    digest = hashlib.sha256(raw)
    for name in sorted(files):
        digest.update(f"\0{name}\0{files[name].sha256}".encode())
    return Questions(
        folder, tuple(questions.values()), digest.hexdigest(), _about(folder / ABOUT), files
    )


def at_most(questions: Sequence[Question], limit: int) -> list[Question]:
    """The first `limit` questions of each type; all of them where it is 0."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.type] = seen.get(question.type, 0) + 1
        if not limit or seen[question.type] <= limit:
            kept.append(question)
    return kept


def _marks(message: _Message) -> int:
    return sum(isinstance(part, _Image) for part in message.content)


def _fault(question: Question, known: dict[str, Question]) -> str:
    """What is wrong with a question that has the right form; empty where nothing is."""
    if question.id in known:
        return f"the id {question.id!r} is there twice; give every question its own"
    if not question.type.strip():
        return "the type is empty; name the kind of question"
    if not question.messages or question.messages[-1].role != "user":
        return "the last message has to be the person's (role user)"
    marks = [(m.role, _marks(m)) for m in question.messages if _marks(m)]
    if any(role != "user" for role, _ in marks):
        return "only the person's messages can hold pictures"
    named = sum(count for _, count in marks)
    if named and named != len(question.images):
        return f"the messages place {named} pictures and images names {len(question.images)}"
    return ""


def _checked(folder: Path, name: str, where: str) -> _File:
    """A picture's place and identity; raises DataError."""
    path = folder / name
    try:
        # The file is foreign: it may not send other files of this person to a server.
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {name!r} cannot be the name of a picture.") from error
    if not inside:
        raise DataError(f"{where}: the picture {name} is outside {folder}; copy it in.")
    data = _read(path, f"{where}: the picture {name}")
    try:
        header = read_header(data)
    except Refusal as refusal:
        raise DataError(f"{where}: the picture {name} {refusal}.") from None
    return _File(path, hashlib.sha256(data).hexdigest(), SUPPORTED[header.format])


def _read(path: Path, called: str, limited: bool = True) -> bytes:
    try:
        if not path.is_file():  # a missing one, a folder, and what would wait for ever
            raise DataError(f"{called} is not there: make the data again.")
        if limited and path.stat().st_size > MAX_BYTES:
            raise DataError(f"{called} is over {MAX_BYTES // 1_000_000} MB: make it smaller.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{called} cannot be read ({error.strerror}).") from error


def _about(file: Path) -> dict[str, str | int]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON ({error}): make the data again.") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is no JSON object: make the data again.")
    return {key: value for key, value in found.items() if isinstance(value, str | int)}
