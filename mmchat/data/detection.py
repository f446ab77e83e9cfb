"""Detects the format of data, by file names and the first samples."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final

from mmchat.data import arrow_files, csv_files, prepared
from mmchat.data.fields import detect_sample_format, detect_table_format
from mmchat.data.folders import FORMATS, detect_folder_format
from mmchat.data.json_files import is_json_name, json_records
from mmchat.data.pictures import PictureResolver, has_picture_suffix
from mmchat.data.records import (
    DataSource,
    Record,
    SampleResult,
    SplitName,
    convert_records,
    examples_of,
)
from mmchat.data.types import Problem, printable
from mmchat.errors import DataError

QUESTIONS: Final = "questions.jsonl"

_SPLITS: Final[dict[str, SplitName]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("held-out", "held_out", "heldout"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLES: Final = (".csv", ".tsv", ".parquet")
_UNSUPPORTED: Final = {  # suffix: what such a file is, and what to do
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "a spreadsheet: save it as CSV UTF-8"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "an archive: unpack it"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst"), "a compressed file: unpack it"),
    **dict.fromkeys((".yaml", ".yml"), "YAML: save it as JSON"),
    **dict.fromkeys((".arrow", ".feather"), "an Arrow file: save it as parquet"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle, which can run any code: save it as JSON"),
}
_SAMPLES_TRIED: Final = 20  # to detect the format


def detect(path: Path, pictures: PictureResolver) -> list[DataSource]:
    """Detects the sources at `path`, usually one. Raises DataError and OSError."""
    if path.is_dir():
        return _detect_folder(path, pictures, splits=True)
    if has_picture_suffix(path.name):
        raise DataError(f"{printable(path)} is a single picture: give its folder.")
    if what := _UNSUPPORTED.get(path.suffix.lower()):
        raise DataError(f"{printable(path)} is {what}.")
    source = _detect_file(path, pictures)
    if source is None:
        raise DataError(f"{printable(path)} {_contents(path)}; these are read: {FORMATS}.")
    return [source]


def _detect_file(file: Path, pictures: PictureResolver, split: SplitName = "") -> DataSource | None:
    """None if the file is not in a known format."""
    ending = file.suffix.lower()
    records: Iterator[Record | Problem]
    if ending in _TABLES:
        if ending == ".parquet":
            table = arrow_files.open_table(file)
            columns, records = table.columns, table.records()
        else:
            columns, records = csv_files.csv_records(file)
        detected = detect_table_format(columns)
        name = f"parquet: {detected}" if ending == ".parquet" else f"a table: {detected}"
    elif not is_json_name(file.name) and not _begins_as_json(file):
        return None
    else:
        layout, records = json_records(file)
        first = list(islice(records, _SAMPLES_TRIED))
        formats = (detect_sample_format(one.value) for one in first if isinstance(one, Record))
        detected = next((one for one in formats if one), None)
        if detected is None and first and all(isinstance(one, Problem) for one in first):
            detected = "samples"  # reporting each broken one helps more than an unknown format
        records = chain(first, records)
        name = f"{detected} {layout}"
    if detected is None:
        return None
    if file.name in _METADATA:
        name = f"imagefolder: {detected}"
    return DataSource(split, name, _convert(records, pictures))


def _convert(
    records: Iterator[Record | Problem], pictures: PictureResolver
) -> Iterator[SampleResult]:
    return convert_records(records, lambda record: examples_of(record, pictures))


def _begins_as_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")


def _detect_folder(
    folder: Path, pictures: PictureResolver, *, splits: bool, split: SplitName = ""
) -> list[DataSource]:
    """`splits`: whether the folder may have one folder or file for each split."""
    if prepared.is_prepared(folder):
        return [DataSource(split, "mmchat's prepared data", prepared.prepared_samples(folder))]
    if (folder / QUESTIONS).is_file():
        file = folder / QUESTIONS
        source = _detect_file(file, pictures, split)
        if source is None:
            raise DataError(f"{printable(file)} {_contents(file)}, but no questions.")
        return [source]
    if (folder / "state.json").is_file():
        return [_saved(folder, pictures, split)]
    if (folder / "dataset_dict.json").is_file() and splits:
        names = arrow_files.saved_splits(folder)
        return [_saved(folder / name, pictures, _split_name(name)) for name in names]
    for name in _METADATA:
        if (folder / name).is_file():
            source = _detect_file(folder / name, pictures, split)
            if source is None:
                raise DataError(
                    f"{printable(folder / name)} {_contents(folder / name)}, but needs file_name and "
                    "text, question and answer, or label."
                )
            return [source]
    files, below = _listed(folder)
    if sources := _detect_files(folder, files, pictures, split, splits=splits):
        return sources
    if splits:
        named = {name: split for name in below if (split := _split_name(name))}
        # A folder "train" among others may be a class: the vehicle.
        if "train" in named.values() and (len(named) > 1 or len(below) == 1):
            found = [
                _detect_folder(folder / name, pictures, splits=False, split=one)
                for name, one in named.items()
            ]
            return [source for sources in found for source in sources]
    if "data" in below and (inner := _listed(folder / "data")[0]):  # the layout of hub datasets
        data_files = [name for name in inner if _is_data(name)]
        if sources := _detect_files(folder / "data", data_files, pictures, split, splits=splits):
            return sources
    unread = _unsupported_files(folder, files)
    return [detect_folder_format(folder, pictures, unread, split, _split_name)]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the data files and of the folders in `folder`, in order."""
    with os.scandir(folder) as entries:
        found = sorted((one.name, one.is_dir()) for one in entries if one.name[:1] != ".")
    files = [name for name, is_dir in found if not is_dir and _is_data(name)]
    return files, [name for name, is_dir in found if is_dir]


def _is_data(name: str) -> bool:
    return is_json_name(name) or Path(name).suffix.lower() in _TABLES


def _detect_files(
    folder: Path,
    names: Sequence[str],
    pictures: PictureResolver,
    split: SplitName,
    *,
    splits: bool,
) -> list[DataSource]:
    """The sources in the data files of a folder; empty if none is in a known format."""
    found: dict[str, DataSource] = {}
    own_splits = {name: _split_name(name) if splits else "" for name in names}
    for name in names:
        source = _detect_file(folder / name, pictures, own_splits[name] or split)
        if source is not None:
            found[name] = source
    # The shards of one file differ only in their numbers: `train-00003-of-00010.parquet`.
    shards = len({re.sub(r"\d+", "#", name) for name in found}) <= 1
    own = [own_splits[name] for name in found]
    if len(found) > 1 and not shards and not ("train" in own and all(own)):
        listed = ", ".join(printable(name) for name in list(found)[:4])
        raise DataError(f"{printable(folder)} has several data files ({listed}): give one of them.")
    return list(found.values())


def _split_name(name: str) -> SplitName:
    """The split that a file or folder name stands for: `train`, `birds_val.json`."""
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
    detected = detect_table_format(files[0].columns) if files else None
    if detected is None:
        columns = ", ".join(map(printable, files[0].columns[:12])) if files else "nothing"
        raise DataError(
            f"{printable(folder)} has the columns {columns}, but needs image and text, question and "
            "answer, label, or messages."
        )
    records = chain.from_iterable(file.records() for file in files)
    return DataSource(split, f"a saved datasets folder: {detected}", _convert(records, pictures))


def _unsupported_files(folder: Path, data_files: Sequence[str]) -> str:
    """The part of a sentence about a file in `folder` that looks like data but is not supported."""
    if data_files:
        return f"{printable(folder / data_files[0])} {_contents(folder / data_files[0])}"
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        if what := _UNSUPPORTED.get(Path(name).suffix.lower()):
            return f"{printable(folder / name)} is {what}"
    return ""


def _contents(file: Path) -> str:
    """What a file in no known format contains, as part of a sentence."""
    ending = file.suffix.lower()
    if ending == ".parquet":
        names = arrow_files.open_table(file).columns
    elif ending in _TABLES:
        names = csv_files.csv_records(file)[0]
    elif not is_json_name(file.name) and not _begins_as_json(file):
        return "is not in a known format"
    else:
        first = next(json_records(file)[1], None)
        value = first.value if isinstance(first, Record) else None
        if not isinstance(value, dict):
            return "has no samples that are JSON objects"
        names = [str(key) for key in value]
    return f"has {', '.join(map(printable, names[:12])) or 'no columns'}"
