"""Samples in parquet files and saved `datasets` folders.

pyarrow (`mmchat[datasets]`) is imported only when such data is read. Pictures in a table are
not kept in memory: each is read again from its row when it is needed.
"""

import bisect
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Protocol

from mmchat.data.fields import is_known, normalized_key
from mmchat.data.pictures import find_embedded
from mmchat.data.records import Record
from mmchat.data.types import Problem, printable
from mmchat.errors import DataError

Batch = Any
"""A pyarrow.RecordBatch. The library is optional."""
_ROWS_AT_ONCE: Final = 16  # rows of pictures: a few dozen MB
_MOST_JSON: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class TablePictureSource:
    """Reads a picture in a row of a parquet or Arrow file."""

    file: Path
    row: int
    sha256: str

    def __call__(self) -> bytes:
        try:
            with _LOCK:
                batch, at = _cached_file(self.file, self.file.stat().st_mtime_ns).batch_with(
                    self.row
                )
                values = batch.slice(at, 1).to_pylist()
        except DataError:
            raise
        except Exception as error:  # Arrow raises many types, which all mean the same here
            raise DataError(f"{self.file} cannot be read ({printable(error)}).") from error
        data = find_embedded(values, self.sha256)
        if data is None:
            raise DataError(f"{self.file} changed while it was in use: start again.")
        return data


@dataclass(frozen=True, slots=True)
class Table:
    """A parquet or Arrow file."""

    file: Path
    columns: list[str]
    """Their normalized names."""
    label_names: Mapping[str, Sequence[str]]
    """The class names of integer labels, by normalized column name."""

    def records(self) -> Iterator[Record | Problem]:
        """Yields the rows. Raises DataError if the file is damaged."""
        file, row = self.file.absolute(), 0
        try:
            for batch in _open_file(self.file).batches():
                for values in _values(batch):
                    place = f"{printable(self.file)}, row {row + 1}"
                    if values is None:
                        yield Problem(place, "it has text that is not UTF-8")
                    else:
                        source = partial(TablePictureSource, file, row)
                        yield Record(place, values, self.file.parent, source, self.label_names)
                    row += 1
        except (DataError, MemoryError):
            raise
        except Exception as error:  # as above
            raise DataError(f"{printable(self.file)} is damaged ({printable(error)}).") from error


def _values(batch: Batch) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a batch; None for a row with invalid UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def open_table(file: Path) -> Table:
    """Opens a parquet file, or an Arrow file of a saved dataset. Raises DataError."""
    try:
        schema = _open_file(file).schema
        names = _label_names(schema.metadata or {})
    except (DataError, MemoryError):
        raise
    except Exception as error:  # as above
        raise DataError(f"{printable(file)} cannot be read ({printable(error)}).") from error
    return Table(file, [normalized_key(name) for name in schema.names], names)


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files in a `Dataset.save_to_disk` folder, in order. Raises DataError."""
    state = _json(folder / "state.json")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or state.get("_indices_files"):
        raise DataError(
            f"{printable(folder)} is a saved dataset in an unknown format: save it again."
        )
    found = []
    for entry in listed:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(
                f"{printable(folder / 'state.json')} names the file {printable(name)}: save it again."
            )
        found.append(folder / name)
    return found


def saved_splits(folder: Path) -> list[str]:
    """The split names in a `DatasetDict.save_to_disk` folder. Raises DataError."""
    splits = _json(folder / "dataset_dict.json").get("splits")
    names = [one for one in splits if isinstance(one, str)] if isinstance(splits, list) else []
    if not names or any(Path(name).name != name for name in names):
        raise DataError(
            f"{printable(folder / 'dataset_dict.json')} does not name any splits: save it again."
        )
    return names


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MOST_JSON:
            raise DataError(f"{printable(file)} is far too large: save the dataset again.")
        value = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{printable(file)} is broken ({printable(error)}): save it again."
        ) from error
    return value if isinstance(value, dict) else {}


def _label_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The class names of each `ClassLabel` column, which `datasets` stores in the metadata."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            normalized_key(column): [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


class _TableFile(Protocol):
    schema: Any

    def batches(self) -> Iterator[Batch]:
        """Yields the known columns of all rows, in order."""

    def batch_with(self, row: int) -> tuple[Batch, int]:
        """Returns the batch with the row, and the row's index in it."""


class _Parquet:
    """A parquet file. Rows in order are cheap; random access reads a row group."""

    def __init__(self, file: Path) -> None:
        import pyarrow.parquet as parquet

        # Without a buffer, whole columns of a row group are read, maybe gigabytes.
        self._file = parquet.ParquetFile(str(file), buffer_size=1 << 20)
        self.schema = self._file.schema_arrow
        self._columns = _known_columns(self.schema.names)
        groups = range(self._file.num_row_groups)
        self._rows = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._ahead: Iterator[tuple[int, Batch]] = iter(())
        self._at: tuple[int, Batch] | None = None

    def batches(self) -> Iterator[Batch]:
        for _, batch in self._from(0):
            yield batch

    def batch_with(self, row: int) -> tuple[Batch, int]:
        if self._at is None or row < self._at[0] or row - self._at[0] > 50 * _ROWS_AT_ONCE:
            self._ahead, self._at = self._from(row), None
        while self._at is None or row >= self._at[0] + self._at[1].num_rows:
            self._at = next(self._ahead, None)
            if self._at is None:
                raise IndexError(f"it has no row {row + 1}")
        return self._at[1], row - self._at[0]

    def _from(self, row: int) -> Iterator[tuple[int, Batch]]:
        """Yields (first row, batch), from the row group with `row` on."""
        first = 0
        for group, rows in enumerate(self._rows):
            if first + rows > row:
                at = first
                for batch in self._file.iter_batches(
                    _ROWS_AT_ONCE, row_groups=[group], columns=self._columns, use_threads=False
                ):
                    yield at, batch
                    at += batch.num_rows
            first += rows


class _Arrow:
    """A memory-mapped Arrow stream: random access is cheap."""

    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_stream(pa.memory_map(str(file)))
        self.schema = reader.schema
        columns = _known_columns(self.schema.names)
        self._batches = []
        for batch in reader:
            batch.validate(full=True)  # offsets in an untrusted file may point anywhere
            self._batches.append(batch.select(columns))
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def batches(self) -> Iterator[Batch]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(start, _ROWS_AT_ONCE)

    def batch_with(self, row: int) -> tuple[Batch, int]:
        number = bisect.bisect_right(self._ends, row)
        batch = self._batches[number]
        return batch, row - (self._ends[number] - batch.num_rows)


_LOCK = threading.Lock()


def _open_file(file: Path) -> _TableFile:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"Reading {printable(file)} needs pyarrow: pip install 'mmchat[datasets]'."
        ) from error
    return _Parquet(file) if file.suffix.lower() == ".parquet" else _Arrow(file)


@lru_cache(maxsize=4)
def _cached_file(file: Path, mtime_ns: int) -> _TableFile:
    return _open_file(file)


def _known_columns(names: Sequence[str]) -> list[str]:
    return [name for name in names if is_known(name)]
