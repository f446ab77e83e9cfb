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

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from mmchat.client import ImagePart, Turn
from mmchat.errors import DataError
from mmchat.images import MAX_BYTES, parse_picture
from mmchat.images.headers import SUPPORTED, Refusal, read_header

QUESTIONS, ABOUT = "questions.jsonl", "data.json"
LEAST_TOKENS = 96
"""Long enough for every answer that an evaluation folder wants."""


class Text(Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of a message."""

    text: str


class Mark(Struct, frozen=True, tag_field="type", tag="image"):
    """The place of the next picture."""


class Message(Struct, frozen=True):
    """A turn of a question; what is no list is one text."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Text | Mark]


class Question(Struct, frozen=True):
    """A line of questions.jsonl, checked."""

    id: str
    type: str
    messages: list[Message]
    answer: str
    images: list[str] = []
    group: str = ""
    """The kind of question within its type, where the data says it."""
    choice: str = ""
    """What the right answer chooses within its group, where the data says it."""

    @property
    def text(self) -> str:
        """The words of the last message."""
        content = self.messages[-1].content if self.messages else ""
        if isinstance(content, str):
            return content
        return "".join(part.text for part in content if isinstance(part, Text))


class Shown(Protocol):
    """A picture of a question: `mmchat.data.types.Picture`, or a file of an evaluation folder."""

    @property
    def sha256(self) -> str: ...

    @property
    def mime(self) -> str: ...

    @property
    def data(self) -> bytes:
        """Raises DataError where it changed since it was read."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    sha256: str
    mime: str

    @property
    def data(self) -> bytes:
        found = _read(self.path, f"The picture {self.path}")
        if hashlib.sha256(found).hexdigest() != self.sha256:
            raise DataError(f"The picture {self.path} changed while it was in use: start again.")
        return found


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions that were read and checked; the pictures' bytes stay where they are."""

    source: str
    """The folder or file that they are from."""
    questions: tuple[Question, ...]
    sha256: str
    """Of the data: every text and every picture."""
    key: str
    """Of the data too, the questions' ids among it: what kept answers are kept by."""
    about: dict[str, str | int]
    """The plain facts of data.json; empty where there is none."""
    shown: Mapping[str, Shown]
    """Every picture by the name that `Question.images` has for it."""
    left_out: tuple[str, ...] = ()
    """What of the data cannot be used: place and why."""
    max_tokens: int = LEAST_TOKENS
    """Where an answer is cut."""

    def turns(self, question: Question, blank: bool = False) -> list[Turn]:
        """The conversation as the engine is asked with it, the pictures' bytes in it.

        blank: grey pictures of the same size stand for them. Raises DataError where a picture
        has changed since it was read, and with `blank` ImageError where it cannot be decoded.
        """
        pictures = [self._picture(name, blank) for name in question.images]
        marked = any(isinstance(m.content, list) and _marks(m) for m in question.messages)
        turns = []
        for message in question.messages:
            content = message.content
            parts: list[str | ImagePart] = []
            if not marked and message.role == "user":
                parts, pictures = [*pictures], []
            for part in [Text(content)] if isinstance(content, str) else content:
                parts.append(part.text if isinstance(part, Text) else pictures.pop(0))
            turns.append(Turn(message.role, tuple(parts)))
        return turns

    def _picture(self, name: str, blank: bool) -> ImagePart:
        picture = self.shown[name]
        data = picture.data
        if blank:
            size = parse_picture(data, name)
            data = grey(size.width, size.height)
            return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)
        return ImagePart(picture.sha256, picture.mime, data)


@functools.lru_cache(maxsize=16)
def grey(width: int, height: int) -> bytes:
    """A PNG of nothing but medium grey."""
    from PIL import Image

    stream = io.BytesIO()
    Image.new("L", (width, height), 128).save(stream, "PNG")
    return stream.getvalue()


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
    sha256 = digest.hexdigest()
    about = _about(folder / ABOUT)
    return Questions(str(folder), tuple(questions.values()), sha256, sha256, about, files)


def at_most(questions: Sequence[Question], limit: int) -> list[Question]:
    """The first `limit` questions of each type; all of them where it is 0."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.type] = seen.get(question.type, 0) + 1
        if not limit or seen[question.type] <= limit:
            kept.append(question)
    return kept


def _marks(message: Message) -> int:
    return sum(isinstance(part, Mark) for part in message.content)


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
