"""Finds the pictures that data refers to; each is read, checked and hashed once.

A data file is untrusted. It may refer to files in its folder (or in `--images DIR`), links
resolved, and to no other file on this machine. URLs are never fetched.
"""

import base64
import hashlib
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from mmchat.data.types import Picture, SampleError, printable
from mmchat.errors import ImageError
from mmchat.images import MAX_BYTES, PICTURE_SUFFIXES, UNSUPPORTED_SUFFIXES, parse_picture
from mmchat.images.headers import (
    ORIENTATION,
    SUPPORTED,
    Header,
    UnreadablePicture,
    is_cut_off,
    orientation,
    read_header,
    read_tags,
)

SourceFactory = Callable[[str], Callable[[], bytes]]
"""Makes the callable that reads a picture's bytes again (`Picture.source`) from its sha256."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL: Final = re.compile(r"data:[^;,]*(;[^;,]*)*;base64", re.IGNORECASE)
_WINDOWS_DRIVE: Final = re.compile(r"/?[A-Za-z]:[\\/]|\\\\")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_BASE64_OF_PICTURES: Final = (
    "iVBORw0KGgo",
    "/9j/",
    "_9j_",
    "R0lGOD",
    "UklGR",
    "Qk",
    "SUkq",
    "TU0A",
)
_SHORTEST_BASE64: Final = 40  # characters; a one-pixel GIF has 56
_LONGEST_PATH: Final = 1024  # characters of one path without a dot
_EXIF_WITHIN: Final = 262_144  # bytes from the start of a JPEG in which its EXIF block begins
_ALL_SUFFIXES: Final = PICTURE_SUFFIXES | UNSUPPORTED_SUFFIXES


class PictureResolver:
    """Finds the pictures of one dataset; a file that occurs twice is read once."""

    def __init__(self, root: Path, images: Path | None = None) -> None:
        """`root` is the data's folder, `images` another folder that it may refer to."""
        self.root = root
        self.images = images
        self._allowed = [os.path.realpath(folder) for folder in (root, images) if folder]
        self._known: dict[str, Picture | SampleError] = {}
        self._held: dict[str, bytes] = {}
        self._listings: dict[str, dict[str, list[str]]] = {}

    def resolve(self, name: str, base: Path, source: SourceFactory | None = None) -> Picture:
        """The picture `name`: a path relative to `base`, a file or data URL, or base64.

        `source` is for pictures inside the data file; without it, their bytes are kept in
        memory. Raises SampleError.
        """
        data = embedded_bytes(name)
        if data is not None:
            return self.from_bytes(data, "", source)
        if _URL.match(name):
            name = _path_of_url(name)
        return self.from_file(name, base)

    def from_file(self, name: str, base: Path) -> Picture:
        """The picture in a file. Raises SampleError.

        `name` is relative to `--images`, `base` or the data's folder.
        """
        folders = list(dict.fromkeys(folder for folder in (self.images, base, self.root) if folder))
        try:
            inside = [real for folder in folders if (real := self._inside(folder, name))]
            found = next(filter(os.path.lexists, inside), "") or self._similar(name, folders)
        except (OSError, ValueError) as error:  # too long, a NUL
            why = f"{printable(name)} is not a valid file name"
            raise SampleError(why, "missing") from error
        if found:
            return self._from_real_file(found, name)
        if _WINDOWS_DRIVE.match(name):
            raise SampleError(
                f"the picture {printable(name)} is on a Windows drive: write its path relative to "
                f"the data's folder (or --images), such as {_last_part(name)}",
                "missing",
            )
        if not inside:
            raise self._outside(name)
        raise SampleError(f"the picture {printable(name)} does not exist", "missing")

    def from_path(self, path: Path) -> Picture:
        """The picture in a file found in the data's folder. Raises SampleError."""
        real = os.path.realpath(path)
        if not self._is_allowed(real):
            raise self._outside(path.name)
        return self._from_real_file(real, path.name)

    def from_bytes(self, data: bytes, name: str, source: SourceFactory | None) -> Picture:
        """A picture inside the data file. Raises SampleError."""
        checked = _check_picture(data, name or "picture")
        reader = source(checked.sha256) if source else None
        return replace(
            checked,
            name=_last_part(name) or checked.sha256[:12],
            held=None if reader else self._held.setdefault(checked.sha256, data),
            source=reader,
        )

    def _from_real_file(self, real: str, name: str) -> Picture:
        known = self._known.get(real)
        if known is None:
            try:
                known = replace(_check_picture(_read(real, name), name), file=Path(real))
            except SampleError as error:
                known = error
            self._known[real] = known
        if isinstance(known, SampleError):
            raise SampleError(str(known), known.about)
        return known

    def _outside(self, name: str) -> SampleError:
        return SampleError(
            f"the picture {printable(name)} is outside {printable(self.root)}: copy it there, or "
            "give its folder with --images",
            "missing",
        )

    def _inside(self, folder: Path, name: str) -> str:
        """The real path of `name` in `folder`; "" if it is outside the allowed folders."""
        real = os.path.realpath(folder / name)
        return real if self._is_allowed(real) else ""

    def _is_allowed(self, real: str) -> bool:
        return any(_is_inside(real, allowed) for allowed in self._allowed)

    def _similar(self, name: str, folders: Iterable[Path]) -> str:
        """The file that another system calls `name`; "" if there is none.

        Windows writes `images\\a.png`, macOS decomposes `é`, and both ignore case.
        """
        for folder in folders:
            path = os.path.normpath(folder.absolute() / name.strip().replace("\\", "/"))
            for allowed in dict.fromkeys([str(folder.absolute()), *self._allowed]):
                if _is_inside(path, allowed):
                    found = self._walk(allowed, path[len(allowed) :].strip("/").split("/"))
                    if found and self._is_allowed(real := os.path.realpath(found)):
                        return real
        return ""

    def _walk(self, folder: str, names: Iterable[str]) -> str:
        """The path of `names` below `folder`, spelled as on this disk; "" if there is none."""
        path = folder
        for name in names:
            below = os.path.join(path, name)  # noqa: PTH118 - as everywhere here
            if not os.path.lexists(below):
                spelled = self._spelled(path, name)
                if not spelled:
                    return ""
                below = os.path.join(path, spelled)  # noqa: PTH118
            path = below
        return path

    def _spelled(self, folder: str, name: str) -> str:
        real = os.path.realpath(folder)
        if not self._is_allowed(real) or not os.path.isdir(real):  # noqa: PTH112
            return ""
        if real not in self._listings:
            listing: dict[str, list[str]] = {}
            for entry in os.listdir(real):  # noqa: PTH208
                listing.setdefault(_folded(entry), []).append(entry)
            self._listings[real] = listing
        names = self._listings[real].get(_folded(name), [])
        composed = unicodedata.normalize("NFC", name)
        same = [one for one in names if unicodedata.normalize("NFC", one) == composed]
        # If two names differ only in case, do not guess.
        return (same or names)[0] if len(same or names) == 1 else ""


def embedded_bytes(text: str) -> bytes | None:
    """Decodes a picture in `text`, a data URL or bare base64; None if `text` is neither.

    Raises SampleError if it cannot be decoded.
    """
    is_url = text[:5].lower() == "data:"
    body = text
    if is_url:
        head, comma, body = text.partition(",")
        if not comma or not _DATA_URL.fullmatch(head):
            raise SampleError("a picture's data URL is not base64", "broken")
    elif not _begins_as_base64(text):
        return None
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise SampleError(f"a picture in it is over {MAX_BYTES // 1_000_000} MB", "broken")
    body = "".join(body.split())
    if not is_url:
        if not _BASE64.fullmatch(body):
            return None
        body = body.translate(str.maketrans("-_", "+/")).rstrip("=")
        body += "=" * (-len(body) % 4)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        what = "a picture's data URL" if is_url else "a picture in it"
        raise SampleError(f"{what} is not valid base64", "broken") from error


def find_embedded(value: object, sha256: str) -> bytes | None:
    """The picture with this hash in a nested value: bytes, data URL or base64; None if absent."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            with suppress(SampleError):
                item = embedded_bytes(item)
        if isinstance(item, bytes):
            if hashlib.sha256(item).hexdigest() == sha256:
                return item
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += item.values()
    return None


def _begins_as_base64(text: str) -> bool:
    if len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(
        "".join(text[:_SHORTEST_BASE64].split())
    ):
        return False
    return text.lstrip().startswith(_BASE64_OF_PICTURES) or len(text) > _LONGEST_PATH


def _path_of_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SampleError(f"{printable(url)} is not a valid URL", "missing") from error
    if parts.scheme.lower() != "file":
        raise SampleError(
            f"the picture {printable(url)} is on a network, and nothing is downloaded: save it beside "
            "the data and use that file name",
            "missing",
        )
    if parts.netloc not in ("", "localhost"):
        raise SampleError(f"the picture {printable(url)} is on another machine", "missing")
    return unquote(parts.path)


def _is_inside(real: str, folder: str) -> bool:
    return real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _read(real: str, name: str) -> bytes:
    """The contents of a regular file. Raises SampleError."""
    subject = f"the picture {printable(name)}"
    try:
        state = os.stat(real)  # noqa: PTH116 - `real` is not a Path
        if not stat.S_ISREG(state.st_mode):  # reading a pipe would wait forever
            raise SampleError(f"{subject} is not a file", "missing")
        with open(real, "rb") as file:  # noqa: PTH123
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SampleError(f"{subject} cannot be read ({error.strerror})", "broken") from error
    if len(data) > MAX_BYTES:
        raise SampleError(
            f"{subject} is over {MAX_BYTES // 1_000_000} MB: make it smaller", "broken"
        )
    return data


def has_picture_suffix(name: str) -> bool:
    """Whether a file name has the suffix of a picture format, supported or not."""
    return os.path.splitext(name)[1].lower() in _ALL_SUFFIXES  # noqa: PTH122 - of 100,000 names


def _last_part(name: str) -> str:
    """The file name in a path, printable and at most 120 characters long."""
    last = printable(re.split(r"[/\\]", name)[-1])
    return last if len(last) <= 120 else "…" + last[-119:]


def _check_picture(data: bytes, name: str) -> Picture:
    """The properties of a picture; it is decoded only if it looks damaged.

    Raises SampleError if it is damaged or its format is not supported.
    """
    shown = _last_part(name)
    try:
        if len(data) > MAX_BYTES:
            raise UnreadablePicture(f"is over {MAX_BYTES // 1_000_000} MB: make it smaller")
        header = read_header(data, named_as_picture=has_picture_suffix(name))
        complete, turned = _inspect(header, data)
    except UnreadablePicture as refusal:
        raise SampleError(f"the picture {printable(name)} {refusal}", "broken") from None
    if header.size is None or not complete:
        # It looks damaged; only decoding can tell.
        try:
            picture = parse_picture(data, shown or "picture")
        except ImageError as error:
            raise SampleError(f"the picture {error}", "broken") from error
        return Picture(picture.sha256, picture.mime, picture.width, picture.height, shown)
    width, height = header.size[::-1] if turned else header.size
    digest = hashlib.sha256(data).hexdigest()
    return Picture(digest, SUPPORTED[header.format], width, height, shown)


def _inspect(header: Header, data: bytes) -> tuple[bool, bool]:
    """Returns whether the file looks complete, and whether EXIF swaps width and height."""
    if header.format == "PNG":
        return _inspect_png(data)
    turn = 1
    if header.format == "JPEG":
        at = data.find(b"Exif\0\0", 0, _EXIF_WITHIN)
        turn = orientation(data[at : at + 65_536]) if at >= 0 else 1
    elif header.format == "WEBP" and data[12:16] == b"VP8X":
        at = data.rfind(b"EXIF")
        turn = orientation(data[at + 8 :]) if at >= 0 else 1
    elif header.format == "TIFF":
        turn = read_tags(data).get(ORIENTATION, 1)
    return not is_cut_off(header, data), 5 <= turn <= 8


def _inspect_png(data: bytes) -> tuple[bool, bool]:
    """`_inspect` for PNG, by the checksum of every chunk."""
    view, position, turned = memoryview(data), 8, False
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4])
        end = position + 8 + length
        kind = bytes(view[position + 4 : position + 8])
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return False, False
        if kind == b"IEND":
            return True, turned
        if kind == b"eXIf":
            turned = 5 <= orientation(data[position + 8 : end]) <= 8
        position = end + 4
    return False, False
