"""The types that reading data returns, and errors about a single sample."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmchat.errors import DataError
from mmchat.sanitize import clean
from mmchat.turns import Turn


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture whose header was checked; its bytes are read when they are needed."""

    sha256: str
    """Of the original bytes, 64 hexadecimal digits."""
    mime: str
    width: int
    height: int
    name: str
    """For people: the file's name, or what the data calls it."""
    file: Path | None = None
    held: bytes | None = field(default=None, repr=False, compare=False)
    """The bytes, if the picture has no file of its own (a data URL)."""
    source: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    """Reads the bytes of a picture inside another file; can be pickled, raises DataError."""

    @property
    def data(self) -> bytes:
        """The original bytes. Raises DataError if the file changed or was removed since."""
        if self.held is not None:
            return self.held
        if self.source is not None:
            return self.source()
        assert self.file is not None
        try:
            data = self.file.read_bytes()
        except OSError as error:
            raise DataError(
                f"The picture {self.file} cannot be read ({error.strerror})."
            ) from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(f"The picture {self.file} changed while it was in use: start again.")
        return data


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to learn from or to ask: it ends with an answer."""

    turns: tuple[Turn[Picture], ...]
    kind: str
    """Its type in reports: a class, or the data's question type; "" if there is none."""
    place: str
    """File and line, for messages about it."""
    weight: float = 1.0
    """The weight of its answers in the loss."""
    only_last: bool = False
    """Whether only the last answer is learned, because the earlier ones were not approved."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """In reading order."""
        return tuple(picture for turn in self.turns for picture in turn.images)

    @property
    def content(self) -> bytes:
        """What is hashed: one JSON line per turn; place, kind and weight do not count.

        Equal texts and pictures have equal hashes, whatever their files.
        """
        lines = []
        for turn in self.turns:
            parts = [
                ["text", p] if isinstance(p, str) else ["picture", p.sha256] for p in turn.parts
            ]
            lines.append(json.dumps([turn.role, parts]).encode() + b"\n")
        return b"".join(lines)

    @property
    def sha256(self) -> str:
        """The hash of its content, 64 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


def hash_examples(examples: Iterable[Example]) -> str:
    """The sha256 of all examples in order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.content + b"\n")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Problem:
    """A sample that was left out, and why, in one sentence."""

    place: str
    """File and line."""
    why: str
    about: Literal["", "missing", "broken"] = ""
    """Whether a picture does not exist, or cannot be used."""
    kind: str = ""
    """The class of the sample, if the data tells the class."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything that was read from one source."""

    format: str
    """The detected format, in words: "LLaVA JSON", "a folder per class" …"""
    source: str
    examples: Sequence[Example]
    problems: Sequence[Problem]
    sha256: str
    """Of the texts and pictures of all examples, in order."""
    remarks: Sequence[str] = ()
    """What looks wrong but may be intended, one sentence each."""


class SampleError(Exception):
    """A sample cannot be used. The message continues `PLACE: …` and becomes a `Problem`."""

    def __init__(self, why: str, about: Literal["", "missing", "broken"] = "") -> None:
        super().__init__(why)
        self.about: Literal["", "missing", "broken"] = about


def printable(value: object) -> str:
    """An untrusted value for a message: clean, on one line, at most 160 characters."""
    text = clean(str(value), keep_newlines=False)
    return text if len(text) <= 160 else f"{text[:60]}…{text[-90:]}"


def type_name(value: object) -> str:
    """The JSON type of a value, in words."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bytes: "raw bytes"}
    names |= {bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "something else")
