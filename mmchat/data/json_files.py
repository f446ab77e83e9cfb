"""Samples in JSON files: one document, or one sample per line, whatever the suffix.

Each sample is decoded on its own, so a broken one does not affect the others. A picture inside
a sample is read again by the sample's byte offset.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from mmchat.data.pictures import SourceFactory, find_embedded
from mmchat.data.records import Record
from mmchat.data.types import Problem, SampleError, printable
from mmchat.errors import DataError

Layout = Literal["JSON", "JSON Lines"]

MAX_LINE: Final = 512_000_000  # bytes: enough for several pictures as data URLs
MAX_JSON: Final = 4_000_000_000  # bytes: a document is read whole
_LINES_SUFFIXES: Final = (".jsonl", ".ndjson")
_LIST_KEYS: Final = ("data", "samples", "rows", "examples")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class JsonPictureSource:
    """Reads a picture that is a data URL or base64 in a byte range of a JSON file."""

    file: Path
    start: int
    length: int
    sha256: str

    def __call__(self) -> bytes:
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.start)
                value = _decoded(stream.read(self.length))
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}).") from error
        except SampleError:
            value = None
        data = find_embedded(value, self.sha256)
        if data is None:
            raise DataError(f"{self.file} changed while it was in use: start again.")
        return data


def json_records(file: Path) -> tuple[Layout, Iterator[Record | Problem]]:
    """Returns the file's layout and an iterator over its samples.

    Both may raise DataError if the file cannot be read.
    """
    with file.open("rb") as stream:
        begins = stream.read(65_536)
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{printable(file)} is UTF-16 text: save it as UTF-8.")
    begins = begins.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not begins:
        raise DataError(f"{printable(file)} is empty.")
    if begins[:1] == b"[":
        return "JSON", _of_document(file)
    if begins[:1] != b"{":
        raise DataError(f"{printable(file)} is not JSON: it begins with {printable(begins[:12])}.")
    if file.suffix.lower() in _LINES_SUFFIXES or _has_lines(file):
        return "JSON Lines", _of_lines(file)
    return "JSON", _of_document(file)


def _has_lines(file: Path) -> bool:
    """Whether a file that begins with an object has one object per line."""
    with file.open("rb") as stream:
        first = stream.readline(MAX_LINE).removeprefix(_BYTE_ORDER_MARK).strip()
        second = b""
        while not second and (line := stream.readline(65_536)):
            second = line.strip()
    if not second:
        return False
    # The first line of an indented document ends inside the object.
    return first.endswith(b"}") and second.startswith(b"{")


def _of_lines(file: Path) -> Iterator[Record | Problem]:
    with file.open("rb") as stream:
        start = number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            length = len(line)
            place = f"{printable(file)}, line {number}"
            if length > MAX_LINE and not line.endswith(b"\n"):
                while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                    length += len(rest)
                length += len(rest)
                yield Problem(place, f"the line is over {MAX_LINE // 1_000_000} MB")
            elif line := line.removeprefix(_BYTE_ORDER_MARK).strip():
                yield _record(file, place, line, start, length)
            start += length


def _of_document(file: Path) -> Iterator[Record | Problem]:
    if file.stat().st_size > MAX_JSON:
        raise DataError(
            f"{printable(file)} is over {MAX_JSON // 10**9} GB: save it with one sample per "
            "line (.jsonl), which is read line by line."
        )
    data = file.read_bytes()
    body = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        samples = msgspec.json.decode(body, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        values = _values(file, body)
        for number, value in enumerate(values, 1):
            yield Record(f"{printable(file)}, sample {number}", value, file.parent)
        return
    at = 0
    for number, sample in enumerate(samples, 1):
        text = bytes(sample)
        at = data.find(text, at)
        yield _record(file, f"{printable(file)}, sample {number}", text, at, len(text))
        at += len(text)


def _values(file: Path, data: bytes) -> list[object]:
    """The samples of a document that is not a plain list, or has NaN. Raises DataError."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable(file)} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{printable(file)} is broken JSON in line {error.lineno}, column {error.colno} "
            f"({error.msg}): correct it."
        ) from error
    except RecursionError as error:
        raise DataError(f"{printable(file)} is nested too deeply.") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(
            f"{printable(file)} cannot be read as JSON ({printable(error)})."
        ) from error
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [value[key] for key in _LIST_KEYS if isinstance(value.get(key), list)]
        if len(lists) == 1:
            return list(lists[0])
    return [value]


def _record(file: Path, place: str, text: bytes, start: int, length: int) -> Record | Problem:
    try:
        value = _decoded(text)
    except SampleError as why:
        return Problem(place, str(why))
    source: SourceFactory = partial(JsonPictureSource, file.absolute(), start, length)
    return Record(place, value, file.parent, source)


def _decoded(text: bytes) -> Any:
    """Decodes one sample. Raises SampleError."""
    try:
        return msgspec.json.decode(text)
    except UnicodeDecodeError as error:
        raise SampleError("this is not UTF-8 text") from error
    except RecursionError as error:
        raise SampleError("this is nested too deeply") from error
    except msgspec.DecodeError:
        pass
    try:  # this parser accepts NaN and reports the column of an error
        return json.loads(text.decode())
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in text else ""
        raise SampleError(f"broken JSON at {line}column {error.colno} ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise SampleError(f"this cannot be read as JSON ({printable(error)})") from error


def is_json_name(name: str) -> bool:
    """Whether a file name has a JSON suffix."""
    return re.search(r"\.(json|jsonl|ndjson)$", name, re.IGNORECASE) is not None
