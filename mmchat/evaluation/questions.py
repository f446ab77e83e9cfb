"""Questions with reference answers, and the evaluation folders that hold them.

    pictures/000001.png …
    questions.jsonl     one per line: {"id", "type", "images": ["pictures/000001.png"],
                        "messages": [{"role", "content"}, …], "answer"}, optionally "group" and
                        "choice" for the share of the most frequent answer
    data.json           optional: how the data was made, and its "grader" (`mmchat.evaluation.graders`)

The last message is the user's. A message's content is a text, or a list of parts
{"type": "text", "text": …} and {"type": "image"}, which takes the next picture. If there is no
image part, all pictures come before the first text of the user. Answers of the type "caption", or of a
group that ends in "/caption", are compared as captions.
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

from mmchat.errors import DataError
from mmchat.images import MAX_BYTES, parse_picture
from mmchat.images.headers import SUPPORTED, UnreadablePicture, read_header
from mmchat.turns import ImagePart, Turn

QUESTIONS, DATA_CARD = "questions.jsonl", "data.json"
MIN_TOKENS = 96
"""Enough for every reference answer of an evaluation folder."""


class Text(Struct, frozen=True, tag_field="type", tag="text"):
    """The text part of a message."""

    text: str


class Image(Struct, frozen=True, tag_field="type", tag="image"):
    """The image part of a message, which takes the next picture."""


class Message(Struct, frozen=True):
    """A message of a question."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Text | Image]


class Question(Struct, frozen=True):
    """A line of questions.jsonl."""

    id: str
    type: str
    messages: list[Message]
    answer: str
    """The reference."""
    images: list[str] = []
    group: str = ""
    """A finer classification within the type."""
    choice: str = ""
    """Which of its group's answers the reference is."""

    @property
    def text(self) -> str:
        """The text of the last message."""
        content = self.messages[-1].content if self.messages else ""
        if isinstance(content, str):
            return content
        return "".join(part.text for part in content if isinstance(part, Text))

    @property
    def is_caption(self) -> bool:
        """Whether it asks for a caption."""
        return self.type == "caption" or self.group.endswith("/caption")


class QuestionPicture(Protocol):
    """A picture of a question: `mmchat.data.types.Picture`, or a file of an evaluation folder."""

    @property
    def sha256(self) -> str: ...

    @property
    def mime(self) -> str: ...

    @property
    def data(self) -> bytes:
        """The file's bytes. Raises DataError if it has changed since it was read."""


@dataclass(frozen=True, slots=True)
class _PictureFile:
    path: Path
    sha256: str
    mime: str

    @property
    def data(self) -> bytes:
        data = _read(self.path, f"The picture {self.path}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(f"The picture {self.path} changed while it was in use: start again.")
        return data


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Validated questions and their pictures. The bytes of their pictures are read when they are needed."""

    source: str
    """The folder or file that they come from."""
    questions: tuple[Question, ...]
    sha256: str
    """Hash of every text and every picture."""
    key: str
    """Hash of the data and the questions' ids, by which answers are cached."""
    about: dict[str, str | int]
    """The strings and numbers in data.json."""
    pictures: Mapping[str, QuestionPicture]
    """By the names in `Question.images`."""
    skipped: tuple[str, ...] = ()
    """Samples that cannot be used, each with its place and the reason."""
    max_tokens: int = MIN_TOKENS
    """The maximum length of an answer."""

    @property
    def grader(self) -> str:
        """The base whose grader scores the answers; "" if data.json does not name one."""
        return str(self.about.get("grader", ""))

    def turns(self, question: Question, blank: bool = False) -> list[Turn[ImagePart]]:
        """The conversation to send to the engine, with the bytes of its pictures.

        blank: replace every picture with a grey one of the same size. Raises DataError if a picture
        has changed since it was read, and with `blank` ImageError if it cannot be decoded.
        """
        pictures = [self._picture(name, blank) for name in question.images]
        placed = any(_count_images(message) for message in question.messages)
        turns = []
        for message in question.messages:
            content = message.content
            parts: list[str | ImagePart] = []
            if not placed and message.role == "user":
                parts, pictures = [*pictures], []
            for part in [Text(content)] if isinstance(content, str) else content:
                parts.append(part.text if isinstance(part, Text) else pictures.pop(0))
            turns.append(Turn(message.role, tuple(parts)))
        return turns

    def _picture(self, name: str, blank: bool) -> ImagePart:
        picture = self.pictures[name]
        data = picture.data
        if blank:
            size = parse_picture(data, name)
            data = grey_png(size.width, size.height)
            return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)
        return ImagePart(picture.sha256, picture.mime, data)


@functools.lru_cache(maxsize=16)
def grey_png(width: int, height: int) -> bytes:
    """A PNG file of medium grey."""
    import PIL.Image

    stream = io.BytesIO()
    PIL.Image.new("L", (width, height), 128).save(stream, "PNG")
    return stream.getvalue()


def read_questions(folder: Path) -> QuestionSet:
    """Reads and checks a whole evaluation folder.

    Raises DataError with the file, and the line if there is one, that has to be corrected.
    """
    file = folder / QUESTIONS
    if not file.is_file():
        raise DataError(
            f"{folder} is not an evaluation folder, because it has no {QUESTIONS}: "
            "name a folder that was made for evaluation."
        )
    raw = _read(file, str(file), limited=False)
    decoder = msgspec.json.Decoder(Question)
    questions: dict[str, Question] = {}
    pictures: dict[str, _PictureFile] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            question = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(
                f"{where}: this is not a question ({error}): correct the line."
            ) from error
        if problem := _find_problem(question, questions):
            raise DataError(f"{where}: {problem}.")
        for name in question.images:
            if name not in pictures:
                pictures[name] = _check_picture(folder, name, where)
        questions[question.id] = question
    if not questions:
        raise DataError(f"{file} has no questions: make the data again.")
    digest = hashlib.sha256(raw)
    for name in sorted(pictures):
        digest.update(f"\0{name}\0{pictures[name].sha256}".encode())
    sha256 = digest.hexdigest()
    about = _read_data_card(folder / DATA_CARD)
    return QuestionSet(str(folder), tuple(questions.values()), sha256, sha256, about, pictures)


def limit_per_type(questions: Sequence[Question], limit: int) -> list[Question]:
    """The first `limit` questions of each type, or all of them if it is 0."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.type] = seen.get(question.type, 0) + 1
        if not limit or seen[question.type] <= limit:
            kept.append(question)
    return kept


def _count_images(message: Message) -> int:
    content = message.content
    return 0 if isinstance(content, str) else sum(isinstance(part, Image) for part in content)


def _find_problem(question: Question, known: dict[str, Question]) -> str:
    """What is wrong with a question that has been decoded; "" if nothing is."""
    if question.id in known:
        return f"the id {question.id!r} is there twice: give every question its own"
    if not question.type.strip():
        return "the type is empty: name the kind of question"
    if not question.messages or question.messages[-1].role != "user":
        return "the last message has to be the user's (role user)"
    counts = [(m.role, _count_images(m)) for m in question.messages if _count_images(m)]
    if any(role != "user" for role, _ in counts):
        return "only the user's messages can have pictures"
    placed = sum(count for _, count in counts)
    if placed and placed != len(question.images):
        return f"the messages place {placed} pictures and images names {len(question.images)}"
    return ""


def _check_picture(folder: Path, name: str, where: str) -> _PictureFile:
    path = folder / name
    try:
        # Untrusted data must not send the user's other files to a server.
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {name!r} cannot be the name of a picture.") from error
    if not inside:
        raise DataError(
            f"{where}: the picture {name} is outside {folder}: copy it into the folder."
        )
    data = _read(path, f"{where}: the picture {name}")
    try:
        header = read_header(data)
    except UnreadablePicture as refusal:
        raise DataError(f"{where}: the picture {name} {refusal}.") from None
    return _PictureFile(path, hashlib.sha256(data).hexdigest(), SUPPORTED[header.format])


def _read(path: Path, name: str, limited: bool = True) -> bytes:
    """The bytes of a file. Raises DataError, which calls the file `name`."""
    try:
        if not path.is_file():  # missing, a folder, or a pipe that would block for ever
            raise DataError(f"{name} does not exist: make the data again.")
        if limited and path.stat().st_size > MAX_BYTES:
            raise DataError(f"{name} is over {MAX_BYTES // 1_000_000} MB: make it smaller.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}).") from error


def _read_data_card(file: Path) -> dict[str, str | int]:
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON ({error}): make the data again.") from error
    if not isinstance(card, dict):
        raise DataError(f"{file} is not a JSON object: make the data again.")
    return {key: value for key, value in card.items() if isinstance(value, str | int)}
