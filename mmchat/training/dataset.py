"""A prepared folder of pictures and dialogs.

    images.npy      uint8 (pictures, side, side, 3), at the tower's input size
    cells.npy       uint8 (pictures, grid, grid, channels): labels of every cell, 0 = nothing
    classes.json    the names of the labels, by channel
    samples.jsonl   {"images": [0], "dialogs": [{"type": ..., "messages": [...]}]}
    data.json       seed, counts, how it was made

All dialogs of a sample share its pictures. A message's content is a string (the
sample's pictures stand before the first one) or a list of parts, in which
`{"type": "image"}` takes the next picture.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
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
        line = self._samples[self._starts[index] : self._starts[index + 1]]
        try:
            record = json.loads(line)
            images = tuple(record["images"])
            return Sample(images, tuple(_dialog(d, len(images)) for d in record["dialogs"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.folder / 'samples.jsonl'}, line {index + 1}: not a sample ({error})."
            ) from error

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


def _dialog(record: dict[str, Any], pictures: int) -> Dialog:
    turns: list[Turn] = []
    taken = 0
    placed = any(isinstance(message["content"], list) for message in record["messages"])
    for number, message in enumerate(record["messages"]):
        content = message["content"]
        parts: list[str | PictureAt] = []
        if isinstance(content, str):
            if number == 0 and not placed:
                parts += [PictureAt(index) for index in range(pictures)]
            parts.append(content)
        else:
            for part in content:
                if part["type"] == "image":
                    parts.append(PictureAt(taken))
                    taken += 1
                else:
                    parts.append(part["text"])
        turns.append(Turn(message["role"], tuple(parts)))
    return Dialog(record["type"], tuple(turns))
