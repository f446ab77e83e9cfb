"""Tables with the separators, encodings and long cells that spreadsheets and benchmarks have."""

import base64
from pathlib import Path

import pytest

from mmchat.data import read_data
from mmchat.errors import DataError
from tests.data.making import (
    only,
    write_pictures,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a.png", "images/b.png"])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file_name;text\r\na.png;ein grünes, rotes\r\n;\r\n", "utf-8-sig"),
        ("sep=;\r\nfile_name;text\r\na.png;ein grünes, rotes\r\n", "utf-8"),
        ("file_name\ttext\na.png\tein grünes, rotes\n", "utf-16"),
        ("file_name|text\na.png|ein grünes, rotes\n", "utf-8"),
        ('file_name,text,\n"a.png","ein grünes, rotes",,,\n,,\n', "utf-8"),
        ('"File Name";"Text"\na.png;"ein grünes, rotes"\n', "utf-16-be-bom"),
    ],
)
def test_tables_as_spreadsheets_write_them(folder: Path, text: str, encoding: str) -> None:
    data = text.encode("utf-16-be") if encoding.endswith("bom") else text.encode(encoding)
    (folder / "metadata.csv").write_bytes((b"\xfe\xff" if encoding.endswith("bom") else b"") + data)
    assert only(read_data(folder))[1] == ("assistant", "ein grünes, rotes")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            "file_name,text\na.png,grün\n".encode("cp1252"),
            r"is not text in UTF-8: save it as UTF-8 \(in Excel: CSV UTF-8\)",
        ),
        (
            "file_name,text\na.png,x\n".encode("utf-16-le"),
            "is not text in UTF-8: save it as CSV UTF-8",
        ),
        ("file_name,text\na.png,x\n".encode("utf-32"), "is UTF-32 text: save it as UTF-8"),
        (b"PK\3\4" + bytes(50), "is an Excel or OpenDocument workbook, not text"),
        (b"name;breed\na.png;x\n", "has name, breed, but needs file_name"),
    ],
)
def test_tables_that_cannot_be_read_say_what_to_do(folder: Path, data: bytes, why: str) -> None:
    (folder / "metadata.csv").write_bytes(data)
    with pytest.raises(DataError, match=why):
        read_data(folder)


def test_a_quote_that_is_never_closed_swallows_nothing(folder: Path) -> None:
    (folder / "metadata.csv").write_text('file_name,text\na.png,x\na.png,"y\na.png,z\n')
    data = read_data(folder, allow_bad=True)
    assert len(data.examples) == 1 and "is not a row of a table" in data.problems[0].why
    assert data.problems[0].place.endswith("metadata.csv, line 3")


def test_cells_longer_than_pythons_limit(folder: Path) -> None:
    rows = [bytes((x * 7 + y * 13) % 256 for x in range(900)) for y in range(160)]
    from tests.images.builders import png

    large = png(300, 160, rows, 8, 2)
    text = base64.b64encode(large + bytes(100_000)).decode()
    assert len(text) > 131_072
    for name in (text, f"data:image/png;base64,{text}"):
        (folder / "d.tsv").write_text(f"index\timage\tquestion\tanswer\n1\t{name}\twhat?\ta kite\n")
        (example,) = read_data(folder / "d.tsv").examples
        assert (example.pictures[0].width, example.pictures[0].height) == (300, 160)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("metadata.xlsx", "is a spreadsheet: save it as CSV UTF-8"),
        ("pictures.zip", "is an archive: unpack it"),
        ("train.jsonl.gz", "is a compressed file: unpack it"),
        ("data.yaml", "is YAML: save it as JSON"),
    ],
)
def test_files_that_are_not_read_are_named(folder: Path, name: str, why: str) -> None:
    (folder / name).write_bytes(b"PK\3\4")
    for path in (folder / name, folder):
        with pytest.raises(DataError, match=f"{name} {why}"):
            read_data(path)
