"""Opens pictures from outside safely, decodes them once as a check, and keeps their original bytes."""

import base64
import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmchat.errors import ImageError
from mmchat.images.headers import SUPPORTED, Header, UnreadablePicture, read_header
from mmchat.images.unsupported import UNSUPPORTED_SUFFIXES
from mmchat.sanitize import clean

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES: Final = 100_000_000
MAX_SIDE: Final = 4096  # pixels: larger pictures are reduced to this

PICTURE_SUFFIXES: Final[frozenset[str]] = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".mpo"}
    | {".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
)

_PROBE_SIDE: Final = 64
_BLANK_CHECK_SIDE: Final = 1024  # pixels: a thin line on a page is lost in the probe
_NEARLY_WHITE: Final = 240
_NEARLY_BLACK: Final = 24
_NAME_LENGTH: Final = 120


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was decoded once as a check, with its original bytes.

    `sha256` is the hex digest of `data` and the picture's identity. `width` and `height`
    are the original's pixels after rotation. `name` is safe to show.
    """

    data: bytes = field(repr=False)
    sha256: str
    mime: str
    width: int
    height: int
    name: str
    remark: str = ""
    """One sentence if the whole picture is nearly white or black; "" otherwise."""

    def rgb(self, max_side: int | None = None) -> "Image":
        """The upright RGB picture, its longer side at most `max_side` (and `MAX_SIDE`) pixels.

        It is never enlarged. A JPEG is decoded at a half, a quarter or an eighth of its
        size if `max_side` allows it. Raises `ImageError`.
        """
        return decode(self.data, self.name, max_side)


def read_picture(path: str | Path) -> Picture:
    """The picture at `path` (`~` is expanded); raises `ImageError`.

    Only regular files (or links to them) of at most `MAX_BYTES` are read. Nothing blocks,
    and no device is opened.
    """
    shown = _clean(str(path))
    try:
        where = Path(path).expanduser()
        data = _read(where)
    except RuntimeError as error:
        raise ImageError(f"{shown} names a home folder that does not exist") from error
    except ValueError as error:
        raise ImageError(f"{shown} cannot be the name of a file") from error
    except OSError as error:
        raise ImageError(f"{shown} {_why(error)}") from error
    except UnreadablePicture as refusal:
        raise ImageError(f"{shown} {refusal}") from None
    return parse_picture(data, where.name)


def parse_picture(data: bytes, name: str = "picture") -> Picture:
    """A picture from its bytes, decoded once as a check; raises `ImageError`."""
    shown = _display_name(name)
    probe, (width, height), mime = _decode(data, shown, _PROBE_SIDE)
    remark = ""
    if _blank_colour(probe):
        whole, _, _ = _decode(data, shown, _BLANK_CHECK_SIDE)
        remark = _blank_remark(shown, _blank_colour(whole), read_header(data))
    return Picture(data, hashlib.sha256(data).hexdigest(), mime, width, height, shown, remark)


def decode(data: bytes, name: str = "picture", max_side: int | None = None) -> "Image":
    """The upright RGB pixels of `data`, as `Picture.rgb` gives them; raises `ImageError`."""
    image, _, _ = _decode(data, _display_name(name), max_side)
    return image


def parse_data_url(url: str) -> Picture:
    """The picture in a `data:image/…;base64,…` URL; the type that it states is not trusted.

    Raises `ImageError`, also for any other URL: nothing is ever fetched.
    """
    head, comma, body = url.partition(",")
    if not comma or not re.fullmatch(r"data:[^;]*(;[^;]*)*;base64", head, re.IGNORECASE):
        raise ImageError(
            "A picture's URL must begin data:image/png;base64, (or another type): send the bytes"
        )
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"picture {_too_big()}")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise ImageError("The picture's data URL is not valid base64: encode it again") from error
    return parse_picture(data)


def _decode(data: bytes, shown: str, max_side: int | None) -> tuple["Image", tuple[int, int], str]:
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side is {max_side}, and must be at least 1")
    try:
        if len(data) > MAX_BYTES:
            raise UnreadablePicture(_too_big())
        suffix = Path(shown).suffix.lower()
        header = read_header(
            data, named_as_picture=suffix in PICTURE_SUFFIXES | UNSUPPORTED_SUFFIXES
        )
        from mmchat.images import _pillow

        image, size = _pillow.decode(data, header, min(max_side or MAX_SIDE, MAX_SIDE))
    except UnreadablePicture as refusal:
        raise ImageError(f"{shown} {refusal}") from refusal.__cause__
    return image, size, SUPPORTED[header.format]


def _blank_colour(image: "Image") -> str:
    """ "white" or "black" if every pixel of an RGB image is nearly that; "" otherwise."""
    lows, highs = zip(*image.getextrema(), strict=True)
    if min(lows) >= _NEARLY_WHITE:
        return "white"
    return "black" if max(highs) <= _NEARLY_BLACK else ""


def _blank_remark(shown: str, colour: str, header: Header) -> str:
    """A sentence about a picture that is nearly all `colour`; "" if `colour` is ""."""
    if not colour:
        return ""
    remark = f"{shown} is nearly {colour} all over, so there may be nothing to see."
    if colour == "white" and header.format not in ("JPEG", "BMP"):
        return f"{remark} Any transparent parts become white, and only the first frame is read."
    if colour == "black" and header.depth == 16:
        return f"{remark} Its 16-bit values are scaled from their full range of 0 to 65,535."
    return remark


def _read(path: Path) -> bytes:
    # Opening alone can do harm (a FIFO waits, a tape rewinds), so the type is checked before.
    # It is checked again on the open file, because another file may have taken the name.
    _check_regular(path.stat().st_mode)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with os.fdopen(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        _check_regular(state.st_mode)
        if state.st_size > MAX_BYTES:
            raise UnreadablePicture(_too_big())
        data = file.read(MAX_BYTES + 1)  # files may grow, and those in /proc report 0 bytes
    if len(data) > MAX_BYTES:
        raise UnreadablePicture(_too_big())
    return data


def _check_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise UnreadablePicture("is a folder: name a picture in it")
    if stat.S_ISFIFO(mode):
        raise UnreadablePicture("is a pipe, not a file: save the picture to a file first")
    if stat.S_ISSOCK(mode):
        raise UnreadablePicture("is a socket, not a file: save the picture to a file first")
    raise UnreadablePicture("is a device, not a file: name a picture's file")


def _too_big() -> str:
    return f"is over {MAX_BYTES // 1_000_000} MB: make it smaller"


def _why(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "does not exist: check the path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "cannot be read without permission: change its permissions"
    if error.errno == errno.ENOTDIR:
        return "does not exist, because a part of its path is a file: check the path"
    if error.errno == errno.ELOOP:
        return "is a link that leads to itself: name the picture's own file"
    if error.errno == errno.ENAMETOOLONG:
        return "has a name that is too long for this disk: check the path"
    return f"cannot be read ({error.strerror or 'unknown reason'})"


def _clean(text: str) -> str:
    shown = clean(text, keep_newlines=False)
    return shown if len(shown) <= 2 * _NAME_LENGTH else "…" + shown[-2 * _NAME_LENGTH :]


def _display_name(name: str) -> str:
    last = clean(re.split(r"[/\\]", name)[-1], keep_newlines=False)
    if len(last) > _NAME_LENGTH:  # keep the extension, which says what the file is
        last = last[: _NAME_LENGTH - 20] + "…" + last[-19:]
    return last or "picture"
