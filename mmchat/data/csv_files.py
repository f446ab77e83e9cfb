"""Samples in CSV files, with the separators and encodings of spreadsheet programs."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from mmchat.data.fields import detect_table_format, normalized_key
from mmchat.data.records import Record
from mmchat.data.types import Problem, printable
from mmchat.errors import DataError
from mmchat.images import MAX_BYTES

_LONGEST_CELL: Final = MAX_BYTES * 4 // 3 + 1000  # characters: a picture as base64
_LONGEST_LIST: Final = 65_536
_SEPARATORS: Final = ",;\t|"
_SEPARATOR_LINE: Final = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)  # Excel's first line


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a file is encoded and separated."""

    encoding: str
    separator: str
    columns: list[str]
    """Not normalized."""
    skipped: int
    """The number of rows before the header."""


def csv_records(file: Path) -> tuple[list[str], Iterator[Record | Problem]]:
    """Returns the normalized column names and an iterator over the rows.

    Both may raise DataError if the file is not a table in UTF-8 or UTF-16.
    """
    # Python's default limit is 131,072 characters, less than a picture in base64.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    layout = _layout(file)
    return [normalized_key(name) for name in layout.columns], _rows(file, layout)


def _layout(file: Path) -> _Layout:
    encoding = _encoding(file)
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    first = _row(file, encoding, usual, 0)
    if separator_line := _SEPARATOR_LINE.fullmatch(usual.join(first)):
        separator = separator_line[1]
        return _Layout(encoding, separator, _row(file, encoding, separator, 1), 1)
    found = [
        _Layout(encoding, separator, _row(file, encoding, separator, 0), 0)
        for separator in dict.fromkeys(usual + _SEPARATORS)
    ]
    known = [layout for layout in found if detect_table_format(map(normalized_key, layout.columns))]
    # Without known columns, the separator that gives the most columns is the likeliest.
    return known[0] if known else max(found, key=lambda layout: len(layout.columns))


def _encoding(file: Path) -> str:
    """Detects the encoding by the byte order mark. Raises DataError if it is not a text file."""
    with file.open("rb") as stream:
        begins = stream.read(4096)
    if begins[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        raise DataError(f"{printable(file)} is UTF-32 text: save it as UTF-8.")
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if begins[:4] == b"PK\3\4":
        raise DataError(
            f"{printable(file)} is an Excel or OpenDocument workbook, not text: save it as CSV UTF-8."
        )
    if b"\0" in begins:
        raise DataError(f"{printable(file)} is not text in UTF-8: save it as CSV UTF-8.")
    return "utf-8-sig"


def _row(file: Path, encoding: str, separator: str, number: int) -> list[str]:
    """Row `number`, from 0; empty if the file is shorter. Raises DataError."""
    with _opened(file, encoding) as stream:
        rows = csv.reader(stream, delimiter=separator)
        try:
            for at, row in enumerate(rows):
                if at == number:
                    return row
        except UnicodeError as error:
            raise _wrong_encoding(file) from error
        except csv.Error as error:
            raise DataError(
                f"{printable(file)} is not a CSV table ({printable(error)})."
            ) from error
    return []


def _rows(file: Path, layout: _Layout) -> Iterator[Record | Problem]:
    with _opened(file, layout.encoding) as stream:
        # Strict, because an unclosed quote would swallow all later rows.
        rows = csv.reader(stream, delimiter=layout.separator, strict=True)
        header_rows = layout.skipped + 1
        while True:
            place = f"{printable(file)}, line {rows.line_num + 1}"
            try:
                cells = next(rows, None)
            except csv.Error as error:
                header_rows = 0
                yield Problem(place, f"this is not a row of a table ({printable(error)})")
                continue
            except UnicodeError as error:
                raise _wrong_encoding(file) from error
            if cells is None:
                return
            if header_rows:
                header_rows -= 1
                continue
            while len(cells) > len(layout.columns) and not cells[-1]:
                cells.pop()
            if len(cells) > len(layout.columns):
                why = f"it has {len(cells)} cells but there are {len(layout.columns)} columns"
                yield Problem(place, why)
            elif any(cells):
                row: dict[str, Any] = dict(zip(layout.columns, map(_cell, cells), strict=False))
                yield Record(place, row, file.parent)


def _opened(file: Path, encoding: str) -> TextIO:
    return file.open(encoding=encoding, newline="")


def _wrong_encoding(file: Path) -> DataError:
    return DataError(
        f"{printable(file)} is not text in UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)."
    )


def _cell(text: str) -> object:
    """Parses a cell: `["a.png", "b.png"]` is a list, as `datasets` writes several file names."""
    if text.startswith("[") and text.endswith("]") and len(text) < _LONGEST_LIST:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, list) and all(isinstance(one, str | list) for one in value):
            return value
    return text
