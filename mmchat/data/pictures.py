"""Pictures that data names: only the data's own files, each checked and hashed once.

A data file is foreign. It may name what lies in its folder (or in `--images DIR`), links
resolved, and nothing else of this person's; what it names on a network is never fetched.
"""

import base64
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from mmchat.data.types import Picture
from mmchat.errors import ImageError
from mmchat.images import MAX_BYTES, PICTURE_SUFFIXES, parse_picture
from mmchat.images.headers import (
    ORIENTATION,
    SUPPORTED,
    Header,
    Refusal,
    is_cut_off,
    orientation,
    read_header,
    read_tags,
)
from mmchat.sanitize import clean

Keep = Callable[[str], Callable[[], bytes]]
"""From a picture's sha256 to what reads its bytes again (`Picture.source`)."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:[^;,]*(;[^;,]*)*;base64", re.IGNORECASE)
_EXIF_WITHIN: Final = 262_144  # bytes from the beginning of a JPEG in which its EXIF block begins


class Unusable(Exception):  # noqa: N818 - becomes a `Problem`
    """Why a sample is left out, the part of the sentence after its place."""

    def __init__(self, why: str, about: Literal["", "missing", "broken"] = "") -> None:
        super().__init__(why)
        self.about: Literal["", "missing", "broken"] = about


def shown(name: object) -> str:
    """A foreign name or value as it may stand in a sentence."""
    text = clean(str(name), keep_newlines=False)
    return text if len(text) <= 160 else f"{text[:60]}…{text[-90:]}"


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is one, by its ending."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122 - of 100,000 names


class Pictures:
    """All pictures of one reading; a file that is named again is not read again."""

    def __init__(self, root: Path, images: Path | None = None) -> None:
        """`root` is the data's folder, `images` another one that it may name pictures in."""
        self.root = root
        self.images = images
        self._allowed = [os.path.realpath(folder) for folder in (root, images) if folder]
        self._known: dict[str, Picture | Unusable] = {}
        self._held: dict[str, bytes] = {}

    def named(self, name: str, base: Path, keep: Keep | None = None) -> Picture:
        """The picture that data calls `name`: a path from `base`, or a file or data URL.

        `keep` is for pictures that lie in the data file itself; without it their
        bytes are held. Raises Unusable.
        """
        if name[:5].lower() == "data:":
            return self.inside(data_url_bytes(name), "", keep)
        if _URL.match(name):
            name = _path_of_url(name)
        return self.file(name, base)

    def file(self, name: str, base: Path) -> Picture:
        """The picture in a file, `name` being a path from `--images`, `base` or the root."""
        found, inside = "", False
        folders = dict.fromkeys(folder for folder in (self.images, base, self.root) if folder)
        for folder in folders:
            try:
                real = os.path.realpath(folder / name)
                if any(_is_inside(real, allowed) for allowed in self._allowed):
                    inside = True
                    if os.path.lexists(real):
                        found = real
                        break
            except (OSError, ValueError) as error:  # too long, a NUL
                why = f"{shown(name)} cannot be the name of a picture"
                raise Unusable(why, "missing") from error
        if found:
            return self._known_file(found, name)
        if not inside:
            raise Unusable(
                f"the picture {shown(name)} lies outside of {shown(self.root)}: copy it in, or name "
                "its folder with --images",
                "missing",
            )
        raise Unusable(f"the picture {shown(name)} is not there", "missing")

    def inside(self, data: bytes, name: str, keep: Keep | None) -> Picture:
        """A picture that lies in the data file itself."""
        digest, mime, width, height = _checked(data, name or "picture")
        source = keep(digest) if keep else None
        held = None if source else self._held.setdefault(digest, data)
        return Picture(
            digest, mime, width, height, _name(name) or digest[:12], held=held, source=source
        )

    def _known_file(self, real: str, name: str) -> Picture:
        known = self._known.get(real)
        if known is None:
            try:
                digest, mime, width, height = _checked(_read(real, name), name)
                known = Picture(digest, mime, width, height, _name(name), Path(real))
            except Unusable as why:
                known = why
            self._known[real] = known
        if isinstance(known, Unusable):
            raise Unusable(str(known), known.about)
        return known


def data_url_bytes(url: str) -> bytes:
    """The bytes in a `data:image/…;base64,…` URL; raises Unusable."""
    head, comma, body = url.partition(",")
    if not comma or not _DATA_URL.fullmatch(head):
        raise Unusable("a picture's data URL is not base64", "broken")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise Unusable(f"a picture in it is over {MAX_BYTES // 1_000_000} MB", "broken")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise Unusable("a picture's data URL is not valid base64", "broken") from error


def _path_of_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Unusable(f"{shown(url)} is no picture's address", "missing") from error
    if parts.scheme.lower() != "file":
        raise Unusable(
            f"the picture {shown(url)} lies on a network, and nothing is fetched: save it beside the "
            "data and name that file",
            "missing",
        )
    if parts.netloc not in ("", "localhost"):
        raise Unusable(f"the picture {shown(url)} lies on another machine", "missing")
    return unquote(parts.path)


def _is_inside(real: str, folder: str) -> bool:
    return real == folder or real.startswith(folder.rstrip(os.sep) + os.sep)


def _name(name: str) -> str:
    last = shown(re.split(r"[/\\]", name)[-1])
    return last if len(last) <= 120 else "…" + last[-119:]


def _read(real: str, name: str) -> bytes:
    """The whole of a regular file; raises Unusable."""
    called = f"the picture {shown(name)}"
    try:
        state = os.stat(real)  # noqa: PTH116 - `real` is no Path
        if not stat.S_ISREG(state.st_mode):  # a pipe would wait for ever
            raise Unusable(f"{called} is no file", "missing")
        with open(real, "rb") as file:  # noqa: PTH123
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unusable(f"{called} cannot be read ({error.strerror})", "broken") from error
    if len(data) > MAX_BYTES:
        raise Unusable(f"{called} is over {MAX_BYTES // 1_000_000} MB: make it smaller", "broken")
    return data


def _checked(data: bytes, name: str) -> tuple[str, str, int, int]:
    """(sha256, mime, width, height), the size upright; raises Unusable."""
    called = _name(name) or "picture"
    try:
        if len(data) > MAX_BYTES:
            raise Refusal(f"is over {MAX_BYTES // 1_000_000} MB: make it smaller")
        header = read_header(data, pretends=is_picture_name(name))
        whole, turned = _examined(header, data)
    except Refusal as refusal:
        raise Unusable(f"the picture {shown(name)} {refusal}", "broken") from None
    if header.size is None or not whole:
        # It looks damaged, which only decoding it can tell for sure.
        try:
            picture = parse_picture(data, called)
        except ImageError as error:
            raise Unusable(f"the picture {error}", "broken") from error
        return picture.sha256, picture.mime, picture.width, picture.height
    width, height = header.size[::-1] if turned else header.size
    return hashlib.sha256(data).hexdigest(), SUPPORTED[header.format], width, height


def _examined(header: Header, data: bytes) -> tuple[bool, bool]:
    """(whether it looks whole, whether EXIF lays it on its side)"""
    if header.format == "PNG":
        return _examined_png(data)
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


def _examined_png(data: bytes) -> tuple[bool, bool]:
    """As above, by the checksum of every chunk."""
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
