"""Pictures from outside: opened without harm, validated whole, their bytes kept."""

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
from mmchat.images.headers import SUPPORTED, Refusal, read_header
from mmchat.sanitize import clean

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES: Final = 100_000_000
MAX_SIDE: Final = 4096  # pixels: what is decoded is reduced to this, however large the file

PICTURE_SUFFIXES: Final[frozenset[str]] = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif"}
    | {".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
)

_PROBE_SIDE: Final = 64
_NAME_LENGTH: Final = 120


@dataclass(frozen=True, slots=True)
class Picture:
    """A validated picture with its original bytes.

    `sha256` is the hex digest of `data` and its identity; `width` and `height`
    are the original's pixels after rotation; `name` is safe to show.
    """

    data: bytes = field(repr=False)
    sha256: str
    mime: str
    width: int
    height: int
    name: str

    def rgb(self, max_side: int | None = None) -> "Image":
        """The upright RGB picture, its longer side at most `max_side` (and `MAX_SIDE`) pixels.

        Never enlarged. A JPEG is decoded at a half, a quarter or an eighth where
        `max_side` allows. Raises `ImageError`.
        """
        return decode(self.data, self.name, max_side)


def read_picture(path: str | Path) -> Picture:
    """The picture at `path` (`~` is expanded); raises `ImageError`.

    Only regular files are read, through links too, and at most `MAX_BYTES`;
    nothing blocks and no device is touched.
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
    except Refusal as refusal:
        raise ImageError(f"{shown} {refusal}") from None
    return parse_picture(data, where.name)


def parse_picture(data: bytes, name: str = "picture") -> Picture:
    """A picture from its bytes, decoded once to be sure; raises `ImageError`."""
    shown = _display_name(name)
    _, (width, height), mime = _decode(data, shown, _PROBE_SIDE)
    return Picture(data, hashlib.sha256(data).hexdigest(), mime, width, height, shown)


def decode(data: bytes, name: str = "picture", max_side: int | None = None) -> "Image":
    """Upright RGB pixels of `data`, as `Picture.rgb` gives them; raises `ImageError`."""
    image, _, _ = _decode(data, _display_name(name), max_side)
    return image


def parse_data_url(url: str) -> Picture:
    """The picture in a `data:image/…;base64,…` URL; what it says of its type is not trusted.

    Raises `ImageError`; any other URL is refused, nothing is ever fetched.
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
            raise Refusal(_too_big())
        header = read_header(data, pretends=Path(shown).suffix.lower() in PICTURE_SUFFIXES)
        from mmchat.images import _pillow

        image, size = _pillow.decode(data, header, min(max_side or MAX_SIDE, MAX_SIDE))
    except Refusal as refusal:
        raise ImageError(f"{shown} {refusal}") from refusal.__cause__
    return image, size, SUPPORTED[header.format]


def _read(path: Path) -> bytes:
    # Opening alone can harm (a FIFO waits, a tape rewinds), so the kind is asked before;
    # it is asked again of what was opened, for the name may have been given to another.
    _check_regular(path.stat().st_mode)
    flags = os.O_RDONLY
    for extra in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, extra, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        _check_regular(state.st_mode)
        if state.st_size > MAX_BYTES:
            raise Refusal(_too_big())
        data = file.read(MAX_BYTES + 1)  # a file may grow, and those in /proc say 0
    if len(data) > MAX_BYTES:
        raise Refusal(_too_big())
    return data


def _check_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise Refusal("is a folder: name a picture in it")
    if stat.S_ISFIFO(mode):
        raise Refusal("is a pipe, not a file: save the picture to a file first")
    if stat.S_ISSOCK(mode):
        raise Refusal("is a socket, not a file: save the picture to a file first")
    raise Refusal("is a device, not a file: name a picture's file")


def _too_big() -> str:
    return f"is over {MAX_BYTES // 1_000_000} MB: make it smaller"


def _why(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "does not exist: check the path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "may not be read by you: change its permissions"
    if error.errno == errno.ENOTDIR:
        return "does not exist, a part of its path is a file: check the path"
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
    if len(last) > _NAME_LENGTH:  # the ending is what tells people what it is
        last = last[: _NAME_LENGTH - 20] + "…" + last[-19:]
    return last or "picture"
