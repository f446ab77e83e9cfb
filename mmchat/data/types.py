"""What every reader of data gives: conversations about pictures, and what could not be read."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmchat.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, checked by its header; its bytes stay where they are until they are asked for."""

    sha256: str
    """Of the original bytes, 64 hexadecimal digits."""
    mime: str
    width: int
    height: int
    name: str
    """For people to read: the file's name, or how the data calls it."""
    file: Path | None = None
    held: bytes | None = field(default=None, repr=False, compare=False)
    """The bytes themselves, of a picture that has no file of its own (data URL, parquet)."""
    source: Callable[[], bytes] | None = field(default=None, repr=False, compare=False)
    """Reads the bytes of one that lies in another file; it can be pickled, and raises DataError."""

    @property
    def data(self) -> bytes:
        """The original bytes. Raises DataError where the file changed or went since it was read."""
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
class Turn:
    """One message: texts and pictures in the order in which they are read."""

    role: Role
    parts: tuple[str | Picture, ...]

    @property
    def text(self) -> str:
        """The words alone."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation to learn from or to ask: it ends with an answer."""

    turns: tuple[Turn, ...]
    kind: str
    """Its type in reports: a class, a question type of the data, "" where there is none."""
    place: str
    """File and line, for what has to be told about it."""
    weight: float = 1.0
    """Of its answers in the loss."""
    only_last: bool = False
    """Whether the last answer alone is learned: those before it were not approved."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """In the order in which they are read."""
        return tuple(p for turn in self.turns for p in turn.parts if isinstance(p, Picture))


@dataclass(frozen=True, slots=True)
class Problem:
    """A sample that was left out, and why, in one sentence."""

    place: str
    """File and line."""
    why: str
    about: Literal["", "missing", "broken"] = ""
    """Whether it is a picture that is not there, or one that cannot be used."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything that was read from one place."""

    form: str
    """What was recognised, in words: "LLaVA JSON", "a folder per class" …"""
    source: str
    examples: Sequence[Example]
    problems: Sequence[Problem]
    sha256: str
    """Over texts and pictures of all examples, in order."""
