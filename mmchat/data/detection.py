"""Detects which form data has, by its names and first samples."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

from mmchat.data import arrow_files, csv_files, folder_forms, prepared
from mmchat.data.fields import form_of, form_of_columns
from mmchat.data.folders import SampleResult, results
from mmchat.data.json_files import is_json_name, json_records
from mmchat.data.picture_check import has_picture_suffix
from mmchat.data.pictures import PictureResolver
from mmchat.data.records import Record, examples_of
from mmchat.data.sample_errors import printable
from mmchat.data.types import Problem
from mmchat.errors import DataError

SplitName = Literal["", "train", "validation", "test"]
"""Which split of the data it is, if the data itself is split."""

QUESTIONS: Final = "questions.jsonl"

_SPLITS: Final[dict[str, SplitName]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("held-out", "held_out", "heldout"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLES: Final = (".csv", ".tsv", ".parquet")
_UNREAD: Final = {  # ending: what such a file is, and what to do
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "a spreadsheet: save it as CSV UTF-8"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "an archive: unpack it"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst"), "a compressed file: unpack it"),
    **dict.fromkeys((".yaml", ".yml"), "YAML: save it as JSON"),
    **dict.fromkeys((".arrow", ".feather"), "an Arrow file: save it as parquet"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle, which can run any code: save it as JSON"),
}
_LOOKED_AT: Final = 20  # samples that are looked at for the form


@dataclass(frozen=True, slots=True)
class DataSource:
    """Data of one form that has not been read yet."""

    split: SplitName
    form: str
    results: Iterator[SampleResult]
    remarks: Sequence[str] = ()
    """What looks wrong and may be meant, one sentence each."""


def detect(path: Path, pictures: PictureResolver) -> list[DataSource]:
    """The sources at `path`, usually one. Raises DataError and OSError."""
    if path.is_dir():
        return _of_folder(path, pictures, splits=True)
    if has_picture_suffix(path.name):
        raise DataError(f"{printable(path)} is a single picture: name the folder that it lies in.")
    if what := _UNREAD.get(path.suffix.lower()):
        raise DataError(f"{printable(path)} is {what}.")
    source = _of_file(path, pictures)
    if source is None:
        raise DataError(f"{printable(path)} {_contents(path)}; what is read: {folder_forms.FORMS}.")
    return [source]


def _of_file(file: Path, pictures: PictureResolver, split: SplitName = "") -> DataSource | None:
    """None if the file has no known form."""
    ending = file.suffix.lower()
    records: Iterator[Record | Problem]
    if ending in _TABLES:
        if ending == ".parquet":
            table = arrow_files.open_table(file)
            columns, records = table.columns, table.records()
        else:
            columns, records = csv_files.csv_records(file)
        form = form_of_columns(columns)
        name = f"parquet: {form}" if ending == ".parquet" else f"a table: {form}"
    elif not is_json_name(file.name) and not _begins_as_json(file):
        return None
    else:
        layout, records = json_records(file)
        first = list(islice(records, _LOOKED_AT))
        forms = (form_of(one.value) for one in first if isinstance(one, Record))
        form = next((one for one in forms if one), None)
        if form is None and first and all(isinstance(one, Problem) for one in first):
            form = "samples"  # reporting each broken one is more helpful than an unknown form
        records = chain(first, records)
        name = f"{form} {layout}"
    if form is None:
        return None
    if file.name in _METADATA:
        name = f"imagefolder: {form}"
    return DataSource(split, name, results(records, lambda record: examples_of(record, pictures)))


def _begins_as_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")


def _of_folder(
    folder: Path, pictures: PictureResolver, *, splits: bool, split: SplitName = ""
) -> list[DataSource]:
    """`splits`: the folder may hold one folder or file for each split."""
    if prepared.is_prepared(folder):
        return [DataSource(split, "mmchat's prepared data", prepared.prepared_samples(folder))]
    if (folder / QUESTIONS).is_file():
        source = _of_file(folder / QUESTIONS, pictures, split)
        return [source] if source else _refuse_questions(folder)
    if (folder / "state.json").is_file():
        return [_saved(folder, pictures, split)]
    if (folder / "dataset_dict.json").is_file() and splits:
        names = arrow_files.saved_splits(folder)
        return [_saved(folder / name, pictures, _split_name(name)) for name in names]
    for name in _METADATA:
        if (folder / name).is_file():
            source = _of_file(folder / name, pictures, split)
            if source is None:
                raise DataError(
                    f"{printable(folder / name)} {_contents(folder / name)}, and needs file_name and "
                    "text, question and answer, or label."
                )
            return [source]
    files, below = _listed(folder)
    if sources := _of_files(folder, files, pictures, split, splits=splits):
        return sources
    if splits:
        named = {name: split for name in below if (split := _split_name(name))}
        # A train alone may be one of several classes: a vehicle.
        if "train" in named.values() and (len(named) > 1 or len(below) == 1):
            found = [
                _of_folder(folder / name, pictures, splits=False, split=one)
                for name, one in named.items()
            ]
            return [source for sources in found for source in sources]
    if "data" in below and (inner := _listed(folder / "data")[0]):  # as hubs lay it out
        data_files = [name for name in inner if _is_data(name)]
        if sources := _of_files(folder / "data", data_files, pictures, split, splits=splits):
            return sources
    form = folder_forms.form_of_tree(folder, pictures, _unread_files(folder, files), _split_name)
    return [DataSource(split, form.name, form.results, form.remarks)]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the data files and of the folders in `folder`, in order."""
    with os.scandir(folder) as entries:
        found = sorted((one.name, one.is_dir()) for one in entries if one.name[:1] != ".")
    files = [name for name, is_dir in found if not is_dir and _is_data(name)]
    return files, [name for name, is_dir in found if is_dir]


def _is_data(name: str) -> bool:
    return is_json_name(name) or Path(name).suffix.lower() in _TABLES


def _of_files(
    folder: Path,
    names: Sequence[str],
    pictures: PictureResolver,
    split: SplitName,
    *,
    splits: bool,
) -> list[DataSource]:
    """What the data files of a folder hold; empty if none of them is data."""
    found: dict[str, DataSource] = {}
    own_splits = {name: _split_name(name) if splits else "" for name in names}
    for name in names:
        source = _of_file(folder / name, pictures, own_splits[name] or split)
        if source is not None:
            found[name] = source
    shards = len({_unnumbered(name) for name in found}) <= 1
    own = [own_splits[name] for name in found]
    if len(found) > 1 and not shards and not ("train" in own and all(own)):
        listed = ", ".join(printable(name) for name in list(found)[:4])
        raise DataError(
            f"{printable(folder)} holds several data files ({listed}): name one of them."
        )
    return list(found.values())


def _unnumbered(name: str) -> str:
    """A shard's name without its number: `train-00003-of-00010.parquet`."""
    return re.sub(r"\d+", "#", name)


def _split_name(name: str) -> SplitName:
    """Which split a file or folder of this name is: `train`, `birds_val.json`."""
    stem = name.lower()
    if is_json_name(stem) or Path(stem).suffix in _TABLES:
        stem = Path(stem).stem
    if stem in _SPLITS:
        return _SPLITS[stem]
    found = {_SPLITS[word] for word in re.split(r"[-_. ]+", stem) if word in _SPLITS}
    is_file = stem != name.lower()
    return found.pop() if is_file and len(found) == 1 else ""


def _saved(folder: Path, pictures: PictureResolver, split: SplitName) -> DataSource:
    files = [arrow_files.open_table(file) for file in arrow_files.saved_files(folder)]
    form = form_of_columns(files[0].columns) if files else None
    if form is None:
        columns = ", ".join(map(printable, files[0].columns[:12])) if files else "nothing"
        raise DataError(
            f"{printable(folder)} has the columns {columns}, and needs image and text, question and "
            "answer, label, or messages."
        )
    records = chain.from_iterable(file.records() for file in files)
    return DataSource(
        split,
        f"a saved datasets folder: {form}",
        results(records, lambda record: examples_of(record, pictures)),
    )


def _unread_files(folder: Path, data_files: Sequence[str]) -> str:
    """Files in `folder` that could be its data and are not read, as part of a sentence."""
    if data_files:
        return f"{printable(folder / data_files[0])} {_contents(folder / data_files[0])}"
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        if what := _UNREAD.get(Path(name).suffix.lower()):
            return f"{printable(folder / name)} is {what}"
    return ""


def _contents(file: Path) -> str:
    """What a file without a known form holds, as the middle of a sentence."""
    ending = file.suffix.lower()
    if ending == ".parquet":
        names = arrow_files.open_table(file).columns
    elif ending in _TABLES:
        names = csv_files.csv_records(file)[0]
    elif not is_json_name(file.name) and not _begins_as_json(file):
        return "has no known form"
    else:
        first = next(json_records(file)[1], None)
        value = first.value if isinstance(first, Record) else None
        if not isinstance(value, dict):
            return "holds no samples that are JSON objects"
        names = [str(key) for key in value]
    return f"has {', '.join(map(printable, names[:12])) or 'no columns'}"


def _refuse_questions(folder: Path) -> list[DataSource]:
    file = folder / QUESTIONS
    raise DataError(f"{printable(file)} {_contents(file)}, but no questions.")
