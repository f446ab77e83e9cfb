"""The marks by which a message's text names its pictures: `[1]` is the first of them."""

import re
from collections.abc import Sequence
from typing import TypeVar

_MARK = re.compile(r"\[([1-9][0-9]{0,5})\]")
_Picture = TypeVar("_Picture")


def marks_of_nothing(text: str, pictures: int) -> list[int]:
    """The numbers of the marks in `text` that none of so many pictures has, each once."""
    return sorted({int(mark[1]) for mark in _MARK.finditer(text) if int(mark[1]) > pictures})


def place_pictures(text: str, images: Sequence[_Picture]) -> tuple[str | _Picture, ...]:
    """The parts of a turn: `[1]` in `text` is replaced by picture 1, and so on.

    The first mark of each number wins; a later one, or the mark of a picture
    that is not there, stays text. Pictures without a mark stand before the
    text, in order. What a picture is to the caller does not matter; it is no
    `str`.

    >>> place_pictures("is [2] a dog?", [b"cat", b"dog"])
    (b'cat', 'is ', b'dog', ' a dog?')
    """
    placed: set[int] = set()
    parts: list[str | _Picture] = []
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
