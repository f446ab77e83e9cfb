"""Reads known files from an untrusted zip file or folder."""

import contextlib
import re
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO

from mmchat.adapters.card import CARD, LORA, LORA_CONFIG, LORA_WEIGHTS
from mmchat.display.numbers import format_size
from mmchat.errors import AdapterError, describe_error

_MAX_ENTRIES = 1000
_MAX_DIRECTORY_BYTES = 1 << 20  # a zip file's central directory
# Weights hardly shrink, so a file that would unpack to more than 20 times its size is a zip bomb.
_MAX_RATIO, _RATIO_ALLOWANCE = 20, 16 << 20
_UNSAFE_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\\:]")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What zipfile raises for damaged and unsupported files.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


class AdapterSource(ABC):
    """The adapter files in a zip file or a folder."""

    def __init__(self, source: Path, sizes: Mapping[str, int], limits: Mapping[str, int]) -> None:
        """`sizes`: every file of the source, in bytes. `limits`: the files to take, with their maximum
        sizes (0: none)."""
        self.source = source
        self._paths = _find_adapter_files(source, sizes, limits)
        self.files = {name: sizes[path] for name, path in self._paths.items()}
        """Sizes in bytes, by their names in an adapter's folder."""
        self.skipped = tuple(sorted(sizes.keys() - set(self._paths.values())))
        for name, size in self.files.items():
            if limits[name] and size > limits[name]:
                raise AdapterError(
                    f"{name} in {source} has {format_size(size)}, far more than such a file can need: "
                    "get the adapter again, or from another source."
                )

    def copy(self, name: str, target: Path) -> None:
        """Copies a file, readable by its owner only. Raises AdapterError if its size is not the declared one."""
        left = self.files[name]
        target.touch(mode=0o600)
        with self._open(self._paths[name]) as source, target.open("wb") as stream:
            while left and (part := source.read(min(left, 1 << 20))):
                stream.write(part)
                left -= len(part)
            if left or source.read(1):
                raise AdapterError(
                    f"{name} in {self.source} does not have its declared size: get the adapter again."
                )

    @contextlib.contextmanager
    def named_in_errors(self, folder: Path) -> Iterator[None]:
        """Errors about the copy in `folder` name the source instead."""
        try:
            yield
        except AdapterError as error:
            raise AdapterError(str(error).replace(str(folder), str(self.source))) from error

    @abstractmethod
    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[IO[bytes]]: ...


@contextlib.contextmanager
def open_source(source: Path, limits: Mapping[str, int]) -> Iterator[AdapterSource]:
    """Opens a zip file or a folder, of which only the files named in `limits` are taken.

    The files of a stock peft LoRA are mapped to their names in an adapter's folder. Raises AdapterError
    if `source` cannot be read or looks malicious.
    """
    with contextlib.ExitStack() as stack:
        try:
            if source.is_dir():
                opened: AdapterSource = _FolderSource(source, limits)
            elif source.is_file():
                with _zip_errors(source):
                    _check_central_directory(source)
                    archive = stack.enter_context(zipfile.ZipFile(source))
                opened = _ZipSource(source, archive, limits)
            else:
                raise AdapterError(f"There is no file or folder {source}: check the path.")
        except OSError as error:
            raise AdapterError(
                f"{source} cannot be read ({error.strerror}): fix its permissions."
            ) from error
        yield opened


class _FolderSource(AdapterSource):
    def __init__(self, source: Path, limits: Mapping[str, int]) -> None:
        sizes: dict[str, int] = {}
        for number, file in enumerate(source.rglob("*")):
            if number >= _MAX_ENTRIES:
                raise AdapterError(
                    f"{source} holds more than {_MAX_ENTRIES} files: name the adapter's own folder."
                )
            name = file.relative_to(source).as_posix()
            # A symbolic link may lead to any file of this user. It is followed only for weights and a
            # LoRA's configuration, which are links in the Hub's cache and are validated later.
            link = file.is_symlink() and not (
                file.suffix == ".safetensors" or file.name == LORA_CONFIG
            )
            if file.is_file() and not link:
                sizes[name] = file.stat().st_size
        super().__init__(source, sizes, limits)

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[IO[bytes]]:
        with (self.source / path).open("rb") as stream:
            yield stream


class _ZipSource(AdapterSource):
    def __init__(self, source: Path, archive: zipfile.ZipFile, limits: Mapping[str, int]) -> None:
        self._archive = archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            _check_entry(source, entry)
            if entry.is_dir():
                continue
            if entry.filename in self._entries:
                raise _malicious(source, f"has {entry.filename[:100]} twice")
            self._entries[entry.filename] = entry
        sizes = {name: entry.file_size for name, entry in self._entries.items()}
        super().__init__(source, sizes, limits)
        for path in self._paths.values():
            entry = self._entries[path]
            if entry.file_size > entry.compress_size * _MAX_RATIO + _RATIO_ALLOWANCE:
                raise _malicious(source, f"would unpack {path} to {format_size(entry.file_size)}")

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[IO[bytes]]:
        with _zip_errors(self.source), self._archive.open(self._entries[path]) as stream:
            yield stream


def _check_entry(source: Path, entry: zipfile.ZipInfo) -> None:
    """Raises AdapterError if the entry has a name or a type that no adapter has."""
    name = entry.filename
    parts = name.removesuffix("/").split("/")
    # zipfile cuts a name at a NUL, which only a malicious file has.
    if (
        name != entry.orig_filename
        or _UNSAFE_CHARACTERS.search(name)
        or not all(parts)
        or ".." in parts
    ):
        raise _malicious(source, f"names a file {name[:100]!r} that would leave its folder")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _malicious(source, f"has a link or a device, {name[:100]!r}")
    if entry.flag_bits & 0x1:
        raise AdapterError(f"{source} is encrypted: unpack it and import its folder.")


def _check_central_directory(source: Path) -> None:
    """Raises AdapterError if the central directory is too large: zipfile would read all of it into memory."""
    size = source.stat().st_size
    with source.open("rb") as stream:
        stream.seek(max(0, size - (1 << 16) - 128))
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("it has no central directory")
    lengths = [int.from_bytes(tail[end + 12 : end + 16], "little")]
    entries = [int.from_bytes(tail[end + 10 : end + 12], "little")]
    end64 = tail.rfind(b"PK\x06\x06", 0, end)
    if end64 >= 0:
        lengths.append(int.from_bytes(tail[end64 + 40 : end64 + 48], "little"))
        entries.append(int.from_bytes(tail[end64 + 32 : end64 + 40], "little"))
    elif tail.rfind(b"PK\x06\x07", 0, end) >= 0:
        raise _malicious(source, "has its central directory in an unusual place")
    lengths = [length for length in lengths if length != 0xFFFFFFFF]
    entries = [count for count in entries if count != 0xFFFF]
    if max(lengths, default=0) > _MAX_DIRECTORY_BYTES or max(entries, default=0) > _MAX_ENTRIES:
        raise _malicious(source, f"lists more than {_MAX_ENTRIES} files")


def _find_adapter_files(
    source: Path, paths: Collection[str], wanted: Collection[str]
) -> dict[str, str]:
    """The path in the source of each file to take, by its name in an adapter's folder."""
    tops = {path.partition("/")[0] for path in paths if "/" in path} - {"__MACOSX"}
    top = f"{tops.pop()}/" if not {CARD, LORA_CONFIG} & {*paths} and len(tops) == 1 else ""
    inner = {path.removeprefix(top): path for path in paths if path.startswith(top)}
    if CARD not in inner and LORA_CONFIG in inner:
        pickled = [path for path in paths if path.endswith(_PICKLE_SUFFIXES)]
        if LORA_WEIGHTS not in inner and pickled:
            raise AdapterError(
                f"{source} has its weights in a pickle file ({pickled[0][:100]}), which could run any code "
                "and is never loaded: save the adapter as safetensors."
            )
        stock = (LORA_CONFIG, LORA_WEIGHTS, "README.md")
        inner = {f"{LORA}/{name}": inner[name] for name in stock if name in inner}
    return {name: inner[name] for name in wanted if name in inner}


@contextlib.contextmanager
def _zip_errors(source: Path) -> Iterator[None]:
    """Raises AdapterError for what zipfile raises."""
    try:
        yield
    except OSError:
        raise
    except _ZIP_ERRORS as error:
        raise AdapterError(
            f"{source} is damaged or not a zip file ({describe_error(error)}): get the adapter again."
        ) from error


def _malicious(source: Path, what: str) -> AdapterError:
    return AdapterError(f"{source} {what}, which no real adapter does: do not use it.")
