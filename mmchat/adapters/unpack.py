"""A zip file or a folder from outside, of which only certain files are taken. Nothing here is trusted."""

import contextlib
import re
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from mmchat.adapters.card import CARD, LORA, LORA_CONFIG, LORA_WEIGHTS
from mmchat.errors import AdapterError

_ENTRIES = 1000
_DIRECTORY = 1 << 20  # bytes of a zip file's list of its entries
# Weights hardly get smaller: what would unpack to more than 20 times its size is a bomb.
_RATIO, _SLACK = 20, 16 << 20
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What zipfile raises for what is no zip file, or none of a form that it knows.
_BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


class Found(ABC):
    """What of `source` is an adapter's: `files` by their names in an adapter's folder, with their sizes."""

    def __init__(self, source: Path, there: Mapping[str, int], known: Mapping[str, int]) -> None:
        """`there` are all files of the source, `known` those that are taken, with their largest sizes."""
        self.source = source
        self._places = _places(source, there, known)
        self.files = {name: there[place] for name, place in self._places.items()}
        self.left_out = tuple(sorted(there.keys() - set(self._places.values())))
        for name, size in self.files.items():
            if known[name] and size > known[name]:
                raise AdapterError(
                    f"{name} in {source} has {size / 1e6:.0f} MB, which such a file never has: get the "
                    "adapter again, or from somebody else."
                )

    def copy(self, name: str, target: Path) -> None:
        """Writes a file, private to its owner; raises AdapterError where it is not as long as it says."""
        left = self.files[name]
        target.touch(mode=0o600)
        with self._open(self._places[name]) as source, target.open("wb") as stream:
            while left and (part := source.read(min(left, 1 << 20))):
                stream.write(part)
                left -= len(part)
            if left or source.read(1):
                raise AdapterError(
                    f"{name} in {self.source} is not as long as it says: get the adapter again."
                )

    @contextlib.contextmanager
    def told_of(self, folder: Path) -> Iterator[None]:
        """What is wrong with the copy in `folder` is told of the source."""
        try:
            yield
        except AdapterError as error:
            raise AdapterError(str(error).replace(str(folder), str(self.source))) from error

    @abstractmethod
    @contextlib.contextmanager
    def _open(self, place: str) -> Iterator[IO[bytes]]: ...


@contextlib.contextmanager
def open_source(source: Path, known: Mapping[str, int]) -> Iterator[Found]:
    """The files of `source`, a zip file or a folder, that are in `known`.

    A stock peft LoRA's are found where they belong in an adapter's folder. Raises AdapterError where
    `source` cannot be read, or has the form of an attack.
    """
    with contextlib.ExitStack() as stack:
        try:
            if source.is_dir():
                found: Found = _Folder(source, known)
            elif source.is_file():
                with _told(source):
                    _check_directory(source)
                    archive = stack.enter_context(zipfile.ZipFile(source))
                found = _Zip(source, archive, known)
            else:
                raise AdapterError(f"There is no file or folder {source}: mend the path.")
        except OSError as error:
            raise AdapterError(
                f"{source} cannot be read ({error.strerror}): mend its permissions."
            ) from error
        yield found


class _Folder(Found):
    def __init__(self, source: Path, known: Mapping[str, int]) -> None:
        there: dict[str, int] = {}
        for number, file in enumerate(source.rglob("*")):
            if number >= _ENTRIES:
                raise AdapterError(
                    f"{source} holds more than {_ENTRIES} files: name the adapter's own folder."
                )
            name = file.relative_to(source).as_posix()
            # A link may lead to anything of this person's. The hub's cache has weights and a LoRA's
            # configuration as links, and only these are checked to be nothing else.
            link = file.is_symlink() and not (
                file.suffix == ".safetensors" or file.name == LORA_CONFIG
            )
            if file.is_file() and not link:
                there[name] = file.stat().st_size
        super().__init__(source, there, known)

    @contextlib.contextmanager
    def _open(self, place: str) -> Iterator[IO[bytes]]:
        with (self.source / place).open("rb") as stream:
            yield stream


class _Zip(Found):
    def __init__(self, source: Path, archive: zipfile.ZipFile, known: Mapping[str, int]) -> None:
        self._archive = archive
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in archive.infolist():
            _check_entry(source, entry)
            if entry.is_dir():
                continue
            if entry.filename in self._entries:
                raise _hostile(source, f"has {entry.filename[:100]} twice")
            self._entries[entry.filename] = entry
        there = {name: entry.file_size for name, entry in self._entries.items()}
        super().__init__(source, there, known)
        for place in self._places.values():
            entry = self._entries[place]
            if entry.file_size > entry.compress_size * _RATIO + _SLACK:
                raise _hostile(source, f"would unpack {place} to {entry.file_size / 1e9:.1f} GB")

    @contextlib.contextmanager
    def _open(self, place: str) -> Iterator[IO[bytes]]:
        with _told(self.source), self._archive.open(self._entries[place]) as stream:
            yield stream


def _check_entry(source: Path, entry: zipfile.ZipInfo) -> None:
    """Raises AdapterError for a name or a kind of entry that no adapter has."""
    name = entry.filename
    parts = name.removesuffix("/").split("/")
    # zipfile cuts a name at a NUL; what stood there was meant to deceive.
    if name != entry.orig_filename or _UNSAFE.search(name) or not all(parts) or ".." in parts:
        raise _hostile(source, f"names a file {name[:100]!r} that would leave its folder")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _hostile(source, f"has a link or a device, {name[:100]!r}")
    if entry.flag_bits & 0x1:
        raise AdapterError(f"{source} is encrypted: unpack it and import its folder.")


def _check_directory(source: Path) -> None:
    """Raises AdapterError where the list of entries is too long to be read into memory.

    zipfile reads it whole, whatever its size.
    """
    size = source.stat().st_size
    with source.open("rb") as stream:
        stream.seek(max(0, size - (1 << 16) - 128))
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("it is no zip file")
    lengths = [int.from_bytes(tail[end + 12 : end + 16], "little")]
    entries = [int.from_bytes(tail[end + 10 : end + 12], "little")]
    end64 = tail.rfind(b"PK\x06\x06", 0, end)
    if end64 >= 0:
        lengths.append(int.from_bytes(tail[end64 + 40 : end64 + 48], "little"))
        entries.append(int.from_bytes(tail[end64 + 32 : end64 + 40], "little"))
    elif tail.rfind(b"PK\x06\x07", 0, end) >= 0:
        raise _hostile(source, "has its list of files in an odd place")
    lengths = [length for length in lengths if length != 0xFFFFFFFF]
    entries = [count for count in entries if count != 0xFFFF]
    if max(lengths, default=0) > _DIRECTORY or max(entries, default=0) > _ENTRIES:
        raise _hostile(source, f"lists more than {_ENTRIES} files")


def _places(source: Path, there: Mapping[str, int], known: Mapping[str, int]) -> dict[str, str]:
    """Of each file that is taken: its name in an adapter's folder, and in the source."""
    tops = {name.partition("/")[0] for name in there if "/" in name} - {"__MACOSX"}
    top = f"{tops.pop()}/" if not there.keys() & {CARD, LORA_CONFIG} and len(tops) == 1 else ""
    inner = {name.removeprefix(top): name for name in there if name.startswith(top)}
    if CARD not in inner and LORA_CONFIG in inner:
        pickled = [name for name in there if name.endswith(_PICKLED)]
        if LORA_WEIGHTS not in inner and pickled:
            raise AdapterError(
                f"{source} has its weights as a pickle file ({pickled[0][:100]}), which can run any "
                "program and is never loaded: save it as safetensors."
            )
        stock = (LORA_CONFIG, LORA_WEIGHTS, "README.md")
        inner = {f"{LORA}/{name}": inner[name] for name in stock if name in inner}
    return {name: inner[name] for name in known if name in inner}


@contextlib.contextmanager
def _told(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise AdapterError(
            f"{source} is damaged or no zip file ({reason}): get the adapter again."
        ) from error


def _hostile(source: Path, what: str) -> AdapterError:
    return AdapterError(f"{source} {what}, which no adapter does: do not use it.")
