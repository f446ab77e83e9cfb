"""Saves examples in a folder, so that they do not depend on the data they came from.

FOLDER/examples.jsonl     one `Example` per line, with its pictures by sha256
FOLDER/pictures/SHA256    the original bytes
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from mmchat.data.types import Dataset, Example, Picture, Problem
from mmchat.errors import DataError
from mmchat.files import write_file
from mmchat.turns import Role, Turn

LINES, PICTURES = "examples.jsonl", "pictures"


class _PictureRef(msgspec.Struct, frozen=True, tag="picture"):
    sha256: str
    mime: str
    width: int
    height: int
    name: str


class _Text(msgspec.Struct, frozen=True, tag="text"):
    text: str


class _Turn(msgspec.Struct, frozen=True):
    role: Role
    parts: tuple[_Text | _PictureRef, ...]


class _Line(msgspec.Struct, frozen=True):
    turns: tuple[_Turn, ...]
    kind: str
    place: str
    weight: float
    only_last: bool


class _Head(msgspec.Struct, frozen=True):
    """The first line."""

    format: str
    source: str
    sha256: str
    problems: tuple[tuple[str, str], ...]


def save_snapshot(dataset: Dataset, folder: Path) -> None:
    """Writes `dataset` into `folder`. Raises DataError if a picture or the disk fails."""
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        for example in dataset.examples:
            for picture in example.pictures:
                file = folder / PICTURES / picture.sha256
                if not file.is_file():
                    write_file(file, picture.data)
        problems = tuple((problem.place, problem.why) for problem in dataset.problems)
        head = _Head(dataset.format, dataset.source, dataset.sha256, problems)
        lines = [msgspec.json.encode(head), *map(_encode, dataset.examples)]
        write_file(folder / LINES, b"\n".join(lines) + b"\n")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}): free some space."
        ) from error


def load_snapshot(folder: Path) -> Dataset:
    """Reads what `save_snapshot` wrote. Raises DataError if it is damaged."""
    try:
        first, *lines = (folder / LINES).read_bytes().splitlines()
        head = msgspec.json.decode(first, type=_Head)
        decoder = msgspec.json.Decoder(_Line)
        examples = [_decode(decoder.decode(line), folder) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / LINES} is damaged ({error}): start a new run.") from error
    problems = [Problem(*problem) for problem in head.problems]
    return Dataset(head.format, head.source, examples, problems, head.sha256)


def has_snapshot(folder: Path) -> bool:
    """Whether `folder` holds a complete snapshot."""
    return (folder / LINES).is_file()


def _encode(example: Example) -> bytes:
    return msgspec.json.encode(
        _Line(
            tuple(_Turn(turn.role, _parts(turn.parts)) for turn in example.turns),
            example.kind,
            example.place,
            example.weight,
            example.only_last,
        )
    )


def _parts(parts: Sequence[str | Picture]) -> tuple[_Text | _PictureRef, ...]:
    return tuple(
        _Text(p) if isinstance(p, str) else _PictureRef(p.sha256, p.mime, p.width, p.height, p.name)
        for p in parts
    )


def _decode(line: _Line, folder: Path) -> Example:
    turns = tuple(
        Turn(turn.role, tuple(_part(part, folder) for part in turn.parts)) for turn in line.turns
    )
    return Example(turns, line.kind, line.place, line.weight, only_last=line.only_last)


def _part(part: _Text | _PictureRef, folder: Path) -> str | Picture:
    if isinstance(part, _Text):
        return part.text
    # mmchat wrote this name, but the file may have been changed since.
    if not (len(part.sha256) == 64 and all(c in "0123456789abcdef" for c in part.sha256)):
        raise ValueError(f"{part.sha256!r} is not a hash")
    file = folder / PICTURES / part.sha256
    return Picture(part.sha256, part.mime, part.width, part.height, part.name, file)
