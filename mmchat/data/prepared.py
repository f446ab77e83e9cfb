"""mmchat's own prepared folders: pictures as numbers in `images.npy`, dialogs in `samples.jsonl`.

Such a picture has no file. It is handed out as an uncompressed BMP, whose bytes, and so
whose hash, are the same on every machine.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmchat.data.folders import Outcome, outcomes
from mmchat.data.json_files import json_records
from mmchat.data.pictures import Unusable, shown
from mmchat.data.records import Record, placed
from mmchat.data.turns import example_of
from mmchat.data.types import Example, Picture
from mmchat.errors import DataError
from mmchat.images import MAX_SIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

IMAGES, SAMPLES = "images.npy", "samples.jsonl"
_MIME: Final = "image/bmp"


@dataclass(frozen=True, slots=True)
class InArray:
    """Writes a picture of an array as a file's bytes."""

    file: Path
    index: int
    sha256: str

    def __call__(self) -> bytes:
        try:
            images = _mapped(self.file, self.file.stat().st_mtime_ns)
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}).") from error
        if self.index < len(images):
            data = bmp(images[self.index])
            if hashlib.sha256(data).hexdigest() == self.sha256:
                return data
        raise DataError(f"{self.file} changed while it was in use: start again.")


def is_prepared(folder: Path) -> bool:
    """Whether `folder` is one."""
    return (folder / IMAGES).is_file() and (folder / SAMPLES).is_file()


def prepared(folder: Path) -> Iterator[Outcome]:
    """An example for each dialog; raises DataError where the arrays are damaged."""
    shelf = _Shelf(folder / IMAGES)
    _, records = json_records(folder / SAMPLES)
    yield from outcomes(records, lambda record: _examples(record, shelf))


def bmp(pixels: "Images") -> bytes:
    """uint8 (height, width, 3), RGB -> a BMP file of 24 bits a pixel."""
    import numpy as np

    height, width, _ = pixels.shape
    padded = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    padded[:, : 3 * width] = pixels[::-1, :, ::-1].reshape(height, 3 * width)
    body = padded.tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54) + head + body


class _Shelf:
    """The pictures of an array, each made and hashed once."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.images = _load(file)
        self._made: dict[int, Picture] = {}

    def __getitem__(self, index: object) -> Picture:
        count = len(self.images)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise Unusable(f"there is no picture {shown(index)} among the {count}", "missing")
        if index not in self._made:
            pixels = self.images[index]
            digest = hashlib.sha256(bmp(pixels)).hexdigest()
            source = InArray(self.file, index, digest)
            height, width, _ = pixels.shape
            self._made[index] = Picture(
                digest, _MIME, width, height, f"picture {index}", source=source
            )
        return self._made[index]


@lru_cache(maxsize=4)
def _mapped(file: Path, changed: int) -> "Images":
    return _load(file)


def _load(file: Path) -> "Images":
    import numpy as np

    try:
        array: Images = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header that lies fails in many ways
        raise DataError(f"{shown(file)} is damaged ({shown(error)}): make it again.") from error
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise DataError(f"{shown(file)} holds no pictures of uint8 (count, height, width, 3).")
    if not (1 <= shape[1] <= MAX_SIDE and 1 <= shape[2] <= MAX_SIDE):
        raise DataError(f"{shown(file)} holds pictures of {shape[2]} × {shape[1]} pixels.")
    return array


def _examples(record: Record, shelf: _Shelf) -> list[Example]:
    value: Any = record.value
    images = value.get("images") if isinstance(value, dict) else None
    dialogs = value.get("dialogs") if isinstance(value, dict) else None
    if not isinstance(images, list) or not isinstance(dialogs, list) or not dialogs:
        raise Unusable("this is no sample of images and dialogs")
    pictures = [shelf[index] for index in images]
    return [_example(dialog, pictures, record.place) for dialog in dialogs]


def _example(dialog: Any, pictures: list[Picture], place: str) -> Example:
    written = dialog.get("messages") if isinstance(dialog, dict) else None
    if not isinstance(written, list) or not all(isinstance(one, dict) for one in written):
        raise Unusable("a dialog has no list of messages")
    kind = dialog.get("type")
    chat = [{"role": one.get("role"), "content": one.get("content")} for one in written]
    messages = placed(chat, pictures, _none, marks=False)
    return example_of(messages, kind if isinstance(kind, str) else "", place)


def _none(reference: object) -> Picture:
    raise Unusable(f"a part of a message names the picture {shown(reference)} by itself")
