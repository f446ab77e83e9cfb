"""A conversation as every part of mmchat passes it on: turns of texts and pictures.

This is not `mmchat.chat.turns`, because that package stands above history, client and data, which all use
this module, and import-linter cannot put a package and one of its modules in different layers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Role = Literal["system", "user", "assistant"]
Image = TypeVar("Image")
Image_co = TypeVar("Image_co", covariant=True)

_MARK = re.compile(r"\[([1-9][0-9]{0,5})\]")


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a turn, as the client sends it to the engine."""

    sha256: str
    """Of the original bytes, 64 hexadecimal digits."""
    mime: str = ""
    data: bytes | None = None
    """The original bytes; None if the engine already has them."""


@dataclass(frozen=True, slots=True)
class Turn(Generic[Image_co]):
    """One message: texts and pictures in reading order.

    What a picture is depends on who has it: history has a `StoredImage`, data a `Picture`, client and
    engine an `ImagePart`. It is never a `str`.
    """

    role: Role
    parts: tuple[str | Image_co, ...]

    @property
    def text(self) -> str:
        """The text without the pictures."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Image_co]:
        """The pictures in reading order."""
        return [part for part in self.parts if not isinstance(part, str)]

    def map_images(self, convert: Callable[[Image_co], Image]) -> "Turn[Image]":
        """The same turn with `convert(picture)` in the place of each picture."""
        parts = (part if isinstance(part, str) else convert(part) for part in self.parts)
        return Turn(self.role, tuple(parts))


def place_pictures(text: str, images: Sequence[Image]) -> tuple[str | Image, ...]:
    """The parts of a turn: the mark `[1]` in `text` is replaced by picture 1, and so on.

    The first mark of each number counts. A later one, or the mark of a picture that does not exist, stays
    text. Pictures without a mark come before the text, in order.

    >>> place_pictures("is [2] a dog?", [b"cat", b"dog"])
    (b'cat', 'is ', b'dog', ' a dog?')
    """
    placed: set[int] = set()
    parts: list[str | Image] = []
    done = 0
    for mark in _MARK.finditer(text):
        number = int(mark[1]) - 1
        if number >= len(images) or number in placed:
            continue
        placed.add(number)
        parts += [text[done : mark.start()], images[number]]
        done = mark.end()
    parts.append(text[done:])
    before = [image for number, image in enumerate(images) if number not in placed]
    return (*before, *(part for part in parts if part != ""))


def marks_without_picture(text: str, pictures: int) -> list[int]:
    """The numbers of the marks in `text` that are above the number of `pictures`, each once."""
    return sorted({int(mark[1]) for mark in _MARK.finditer(text) if int(mark[1]) > pictures})
