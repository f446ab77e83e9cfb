"""Checks a picture's bytes, and decodes it only if it looks damaged."""

import hashlib
import os
import re
import zlib
from dataclasses import dataclass
from typing import Final

from mmchat.data.sample_errors import SampleError, printable
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

_EXIF_WITHIN: Final = 262_144  # bytes from the start of a JPEG in which its EXIF block begins
_ALL_SUFFIXES: Final = PICTURE_SUFFIXES | UNSUPPORTED_SUFFIXES


@dataclass(frozen=True, slots=True)
class CheckedPicture:
    """The properties of a valid picture; width and height after EXIF orientation."""

    sha256: str
    mime: str
    width: int
    height: int


def has_picture_suffix(name: str) -> bool:
    """Whether a file name has the suffix of a picture format, supported or not."""
    return os.path.splitext(name)[1].lower() in _ALL_SUFFIXES  # noqa: PTH122 - of 100,000 names


def last_part(name: str) -> str:
    """The file name in a path, printable and at most 120 characters long."""
    last = printable(re.split(r"[/\\]", name)[-1])
    return last if len(last) <= 120 else "…" + last[-119:]


def check_picture(data: bytes, name: str) -> CheckedPicture:
    """Checks a picture. Raises SampleError if it is damaged or its format is not supported."""
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
            picture = parse_picture(data, last_part(name) or "picture")
        except ImageError as error:
            raise SampleError(f"the picture {error}", "broken") from error
        return CheckedPicture(picture.sha256, picture.mime, picture.width, picture.height)
    width, height = header.size[::-1] if turned else header.size
    digest = hashlib.sha256(data).hexdigest()
    return CheckedPicture(digest, SUPPORTED[header.format], width, height)


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
