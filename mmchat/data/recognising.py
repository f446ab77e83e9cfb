"""Which form data has, told from its names and first samples."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

from mmchat.data import folders, prepared, tables
from mmchat.data.json_files import is_json_name, json_records
from mmchat.data.pictures import Pictures, is_picture_name, shown
from mmchat.data.records import Record, examples_of, form_of, form_of_columns
from mmchat.data.types import Problem
from mmchat.errors import DataError

Side = Literal["", "train", "validation", "test"]
"""Which part of the data it is, where the data itself says so."""

FORMS: Final = (
    "LLaVA, ShareGPT, LLaMA-Factory or OpenAI chat JSON; pictures with a metadata.jsonl or "
    "metadata.csv; pictures each beside a text file of its name; a folder of pictures for each "
    "class; parquet; a saved datasets folder"
)
QUESTIONS: Final = "questions.jsonl"

_SIDES: Final[dict[str, Side]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("held-out", "held_out", "heldout"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLES: Final = (".csv", ".tsv", ".parquet")
_LOOKED_AT: Final = 20  # samples by which a form is told


@dataclass(frozen=True, slots=True)
class Part:
    """Data of one form, not yet read."""

    side: Side
    form: str
    outcomes: Iterator[folders.Outcome]


def recognise(path: Path, pictures: Pictures) -> list[Part]:
    """The parts of the data at `path`, mostly one; raises DataError and OSError."""
    if path.is_dir():
        return _of_folder(path, pictures, ask_sides=True)
    if is_picture_name(path.name):
        raise DataError(f"{shown(path)} is a single picture: name the folder that it lies in.")
    part = _of_file(path, pictures)
    if part is None:
        raise DataError(f"{shown(path)} {_saw(path)}; what is read: {FORMS}.")
    return [part]


def _of_file(file: Path, pictures: Pictures, side: Side = "") -> Part | None:
    """None where the file is of no known form."""
    ending = file.suffix.lower()
    records: Iterator[Record | Problem]
    if ending in _TABLES:
        if ending == ".parquet":
            table = tables.open_table(file)
            columns, records = table.columns, table.records()
        else:
            columns, records = tables.csv_records(file)
        form = form_of_columns(columns)
        name = f"parquet: {form}" if ending == ".parquet" else f"a table: {form}"
    elif not is_json_name(file.name) and not _begins_as_json(file):
        return None
    else:
        layout, records = json_records(file)
        first = list(islice(records, _LOOKED_AT))
        seen = (form_of(one.value) for one in first if isinstance(one, Record))
        form = next((one for one in seen if one), None)
        if form is None and first and all(isinstance(one, Problem) for one in first):
            form = "samples"  # each is told as broken, which says more than that no form was known
        records = chain(first, records)
        name = f"{form} {layout}"
    if form is None:
        return None
    if file.name in _METADATA:
        name = f"imagefolder: {form}"
    return Part(side, name, folders.outcomes(records, lambda record: examples_of(record, pictures)))


def _begins_as_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")


def _of_folder(folder: Path, pictures: Pictures, *, ask_sides: bool, side: Side = "") -> list[Part]:
    if prepared.is_prepared(folder):
        return [Part(side, "mmchat's prepared data", prepared.prepared(folder))]
    if (folder / QUESTIONS).is_file():
        part = _of_file(folder / QUESTIONS, pictures, side)
        return [part] if part else _refuse(folder)
    if (folder / "state.json").is_file():
        return [_saved(folder, pictures, side)]
    if (folder / "dataset_dict.json").is_file() and ask_sides:
        splits = tables.saved_splits(folder)
        return [_saved(folder / name, pictures, _side(name)) for name in splits]
    for name in _METADATA:
        if (folder / name).is_file():
            part = _of_file(folder / name, pictures, side)
            if part is None:
                raise DataError(
                    f"{shown(folder / name)} {_saw(folder / name)}, and needs file_name and text, question "
                    "and answer, or label."
                )
            return [part]
    files, below = _listed(folder)
    if found_in_files := _of_files(folder, files, pictures, side, ask_sides=ask_sides):
        return found_in_files
    if ask_sides:
        sides = {name: side for name in below if (side := _side(name))}
        # A train alone may be one of several classes: a vehicle.
        if "train" in sides.values() and (len(sides) > 1 or len(below) == 1):
            found = [
                _of_folder(folder / name, pictures, ask_sides=False, side=one)
                for name, one in sides.items()
            ]
            return [part for parts in found for part in parts]
    if "data" in below and (inner := _listed(folder / "data")[0]):  # as hubs lay it out
        named = [name for name in inner if _is_data(name)]
        found_in_files = _of_files(folder / "data", named, pictures, side, ask_sides=ask_sides)
        if found_in_files:
            return found_in_files
    return [_of_tree(folder, files, pictures, side)]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """(names of the data files, of the folders) in `folder`, in order."""
    with os.scandir(folder) as entries:
        found = sorted((one.name, one.is_dir()) for one in entries if one.name[:1] != ".")
    files = [name for name, is_dir in found if not is_dir and _is_data(name)]
    return files, [name for name, is_dir in found if is_dir]


def _is_data(name: str) -> bool:
    return is_json_name(name) or Path(name).suffix.lower() in _TABLES


def _of_files(
    folder: Path, names: Sequence[str], pictures: Pictures, side: Side, *, ask_sides: bool
) -> list[Part]:
    """What the data files of a folder hold; empty where none of them is data."""
    found: dict[str, Part] = {}
    sides = {name: _side(name) if ask_sides else "" for name in names}
    for name in names:
        part = _of_file(folder / name, pictures, sides[name] or side)
        if part is not None:
            found[name] = part
    shards = len({_unnumbered(name) for name in found}) <= 1
    own = [sides[name] for name in found]
    if len(found) > 1 and not shards and not ("train" in own and all(own)):
        shown_names = ", ".join(shown(name) for name in list(found)[:4])
        raise DataError(
            f"{shown(folder)} holds several data files ({shown_names}): name one of them."
        )
    return list(found.values())


def _unnumbered(name: str) -> str:
    """A shard's name without its number: `train-00003-of-00010.parquet`."""
    return re.sub(r"\d+", "#", name)


def _side(name: str) -> Side:
    """Which part a file or folder of this name is: `train`, `birds_val.json`."""
    stem = name.lower()
    if is_json_name(stem) or Path(stem).suffix in _TABLES:
        stem = Path(stem).stem
    if stem in _SIDES:
        return _SIDES[stem]
    found = {_SIDES[word] for word in re.split(r"[-_. ]+", stem) if word in _SIDES}
    is_file = stem != name.lower()
    return found.pop() if is_file and len(found) == 1 else ""


def _saved(folder: Path, pictures: Pictures, side: Side) -> Part:
    files = [tables.open_table(file) for file in tables.saved_files(folder)]
    form = form_of_columns(files[0].columns) if files else None
    if form is None:
        columns = ", ".join(map(shown, files[0].columns[:12])) if files else "nothing"
        raise DataError(
            f"{shown(folder)} has the columns {columns}, and needs image and text, question and "
            "answer, label, or messages."
        )
    records = chain.from_iterable(file.records() for file in files)
    return Part(
        side,
        f"a saved datasets folder: {form}",
        folders.outcomes(records, lambda record: examples_of(record, pictures)),
    )


def _of_tree(folder: Path, files: Sequence[str], pictures: Pictures, side: Side) -> Part:
    tree = folders.tree_of(folder)
    # One text of a picture's name may be an accident; with classes it takes more of them.
    if tree.captioned and (2 * tree.captioned >= len(tree.pictures) or len(tree.classes) < 2):
        return Part(side, "pictures with text files", folders.captioned(tree, pictures))
    if len(tree.classes) > 1:
        return Part(side, "a folder per class", folders.classified(tree, pictures))
    if files:
        raise DataError(
            f"{shown(folder / files[0])} {_saw(folder / files[0])}; what is read: {FORMS}."
        )
    if not tree.pictures:
        what = "is empty" if not any(folder.iterdir()) else "holds no pictures and no data file"
        raise DataError(f"{shown(folder)} {what}; what is read: {FORMS}.")
    many = f"{len(tree.pictures)} pictures" if len(tree.pictures) > 1 else "one picture"
    where = ", all in one folder" if tree.classes else ""
    raise DataError(
        f"{shown(folder)} holds {many}{where}, and nothing that says what they show; what is read: {FORMS}."
    )


def _saw(file: Path) -> str:
    """What a file of no known form holds, as the middle of a sentence."""
    ending = file.suffix.lower()
    if ending == ".parquet":
        names = tables.open_table(file).columns
    elif ending in _TABLES:
        names = tables.csv_records(file)[0]
    elif not is_json_name(file.name) and not _begins_as_json(file):
        return "is of no form that is known"
    else:
        first = next(json_records(file)[1], None)
        value = first.value if isinstance(first, Record) else None
        if not isinstance(value, dict):
            return "holds no samples that are JSON objects"
        names = [str(key) for key in value]
    return f"has {', '.join(map(shown, names[:12])) or 'no columns'}"


def _refuse(folder: Path) -> list[Part]:
    raise DataError(f"{shown(folder / QUESTIONS)} {_saw(folder / QUESTIONS)}, and no questions.")
