"""A prepared folder of pictures and dialogs.

    images.npy      uint8 (pictures, side, side, 3), at the tower's input size
    cells.npy       uint8 (pictures, grid, grid, channels): labels of every cell, 0 = nothing
    classes.json    the names of the labels, by channel
    samples.jsonl   {"images": [0], "dialogs": [{"type": ..., "messages": [...]}]}
    data.json       seed, counts, how it was made

All dialogs of a sample share its pictures. A message's content is a string (the
sample's pictures stand before the first one) or a list of parts, in which
`{"type": "image"}` takes the next picture; then every picture has its part.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from mmchat.errors import DataError


@dataclass(frozen=True, slots=True)
class PictureAt:
    """The place of a picture in a turn; the tokens are the same for every picture."""

    index: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn, as `mmchat.model.prompt.encode_chat` takes it."""

    role: str
    parts: tuple[str | PictureAt, ...]


@dataclass(frozen=True, slots=True)
class Dialog:
    """A conversation about a sample's pictures. `kind` is its question type."""

    kind: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures (indices into `PreparedData.images`) and the dialogs about them."""

    images: tuple[int, ...]
    dialogs: tuple[Dialog, ...]
    place: str = ""
    """File and line, for what has to be told about it."""


class _Text(Struct, tag="text", tag_field="type"):
    text: str


class _Image(Struct, tag="image", tag_field="type"):
    pass


class _Message(Struct):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Text | _Image]


class _Dialog(Struct):
    type: str
    messages: list[_Message]


class _Record(Struct):
    """A line of samples.jsonl."""

    images: list[int]
    dialogs: list[_Dialog]


class PreparedData:
    """Reads a prepared folder; pictures stay on the disk and are mapped.

    Raises DataError where the folder is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        missing = [n for n in ("images.npy", "samples.jsonl") if not (folder / n).is_file()]
        if missing:
            raise DataError(
                f"{folder} holds no prepared data ({', '.join(missing)} is missing): "
                "draw or prepare it first."
            )
        self.images = _array(folder / "images.npy")
        self._samples = (folder / "samples.jsonl").read_bytes()
        ends = np.flatnonzero(np.frombuffer(self._samples, np.uint8) == ord("\n")) + 1
        if self._samples and not self._samples.endswith(b"\n"):
            ends = np.append(ends, len(self._samples))
        if not len(ends):
            raise DataError(
                f"{folder / 'samples.jsonl'} holds no sample: draw or prepare it again."
            )
        self._starts = np.concatenate([[0], ends])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError, with file and line, where the line is no sample of these pictures."""
        line = self._samples[self._starts[index] : self._starts[index + 1]]
        place = f"{self.folder / 'samples.jsonl'}, line {index + 1}"
        try:
            record = msgspec.json.decode(line, type=_Record)
            self._check(record)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not a sample ({error}): mend or remove it.") from error
        dialogs = tuple(_dialog(dialog, len(record.images)) for dialog in record.dialogs)
        return Sample(tuple(record.images), dialogs, place)

    def _check(self, record: _Record) -> None:
        """Raises ValueError where a picture is not there, or has no place in a dialog."""
        for image in record.images:
            if not 0 <= image < len(self.images):
                raise ValueError(f"picture {image}, of {len(self.images)} counted from 0")
        if not record.dialogs or not all(dialog.messages for dialog in record.dialogs):
            raise ValueError("no dialog, or one without messages")
        for dialog in record.dialogs:
            parts = _image_parts(dialog)
            if parts is not None and parts != len(record.images):
                raise ValueError(
                    f"{parts} image parts in a dialog, and {len(record.images)} images"
                )

    @cached_property
    def cells(self) -> NDArray[np.uint8]:
        """uint8 (pictures, grid, grid, channels)."""
        file = self.folder / "cells.npy"
        if not file.is_file():
            raise DataError(f"{file} is missing: a stage of cells needs labels of every cell.")
        return _array(file)

    @cached_property
    def classes(self) -> dict[str, list[str]]:
        """The names of the labels, by channel of `cells` (without `nothing`)."""
        file = self.folder / "classes.json"
        try:
            named: dict[str, list[str]] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read ({error}): prepare the data again.") from error
        return named

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the samples and of the pictures' sizes, hexadecimal."""
        digest = hashlib.sha256(self._samples)
        digest.update(str(self.images.shape).encode())
        return digest.hexdigest()

    def texts(self, samples: int) -> list[str]:
        """Every text of every turn of the first `samples`, for training a tokenizer."""
        return [
            part
            for index in range(min(samples, len(self)))
            for dialog in self[index].dialogs
            for turn in dialog.turns
            for part in turn.parts
            if isinstance(part, str)
        ]


def _array(file: Path) -> NDArray[np.uint8]:
    """Mapped, not read; raises DataError where it is no array of bytes."""
    try:
        array: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}): draw or prepare it again.") from error
    if array.dtype != np.uint8:
        raise DataError(f"{file} holds {array.dtype}, and has to hold uint8.")
    return array


def _image_parts(dialog: _Dialog) -> int | None:
    """How many parts of the dialog take a picture; None where no message is made of parts."""
    lists = [message.content for message in dialog.messages if isinstance(message.content, list)]
    return sum(isinstance(part, _Image) for parts in lists for part in parts) if lists else None


def _dialog(record: _Dialog, pictures: int) -> Dialog:
    turns: list[Turn] = []
    taken = 0
    placed = _image_parts(record) is not None
    for number, message in enumerate(record.messages):
        parts: list[str | PictureAt] = []
        if isinstance(message.content, str):
            if number == 0 and not placed:
                parts += [PictureAt(index) for index in range(pictures)]
            parts.append(message.content)
        else:
            for part in message.content:
                if isinstance(part, _Image):
                    parts.append(PictureAt(taken))
                    taken += 1
                else:
                    parts.append(part.text)
        turns.append(Turn(message.role, tuple(parts)))
    return Dialog(record.type, tuple(turns))
