"""mmchat's own prepared folders: pixels in `images.npy`, dialogs in `samples.jsonl`.

These pictures have no files. Each is read as an uncompressed BMP, whose bytes (and so its
hash) are the same on every machine.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmchat.data.json_files import json_records
from mmchat.data.placeholders import place_pictures
from mmchat.data.records import Record, SampleResult, convert_records
from mmchat.data.turns import example_of
from mmchat.data.types import Example, Picture, SampleError, printable
from mmchat.errors import DataError
from mmchat.images import MAX_SIDE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

IMAGES, SAMPLES = "images.npy", "samples.jsonl"
_MIME: Final = "image/bmp"


@dataclass(frozen=True, slots=True)
class ArrayPictureSource:
    """Encodes a picture from its pixels in an array file."""

    file: Path
    index: int
    sha256: str

    def __call__(self) -> bytes:
        try:
            images = _mapped(self.file, self.file.stat().st_mtime_ns)
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}).") from error
        if self.index < len(images):
            data = encode_bmp(images[self.index])
            if hashlib.sha256(data).hexdigest() == self.sha256:
                return data
        raise DataError(f"{self.file} changed while it was in use: start again.")


def is_prepared(folder: Path) -> bool:
    """Whether `folder` is a prepared folder."""
    return (folder / IMAGES).is_file() and (folder / SAMPLES).is_file()


def prepared_samples(folder: Path) -> Iterator[SampleResult]:
    """Yields one example per dialog. Raises DataError if the arrays are damaged."""
    pictures = _ArrayPictures(folder / IMAGES)
    _, records = json_records(folder / SAMPLES)
    yield from convert_records(records, lambda record: _examples(record, pictures))


def encode_bmp(pixels: "Images") -> bytes:
    """Encodes uint8 RGB pixels (height, width, 3) as a BMP with 24 bits per pixel."""
    import numpy as np

    height, width, _ = pixels.shape
    padded = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    padded[:, : 3 * width] = pixels[::-1, :, ::-1].reshape(height, 3 * width)
    body = padded.tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54) + head + body


class _ArrayPictures:
    """The pictures of an array file, each encoded and hashed once."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.images = _load(file)
        self._pictures: dict[int, Picture] = {}

    def __getitem__(self, index: object) -> Picture:
        count = len(self.images)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise SampleError(
                f"there is no picture {printable(index)} among the {count}", "missing"
            )
        if index not in self._pictures:
            pixels = self.images[index]
            digest = hashlib.sha256(encode_bmp(pixels)).hexdigest()
            source = ArrayPictureSource(self.file, index, digest)
            height, width, _ = pixels.shape
            self._pictures[index] = Picture(
                digest, _MIME, width, height, f"picture {index}", source=source
            )
        return self._pictures[index]


@lru_cache(maxsize=4)
def _mapped(file: Path, mtime_ns: int) -> "Images":
    return _load(file)


def _load(file: Path) -> "Images":
    import numpy as np

    try:
        array: Images = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header fails in many ways
        raise DataError(
            f"{printable(file)} is damaged ({printable(error)}): create it again."
        ) from error
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise DataError(
            f"{printable(file)} does not hold pictures as uint8 (count, height, width, 3)."
        )
    if not (1 <= shape[1] <= MAX_SIDE and 1 <= shape[2] <= MAX_SIDE):
        raise DataError(f"{printable(file)} holds pictures of {shape[2]} × {shape[1]} pixels.")
    return array


def _examples(record: Record, array: _ArrayPictures) -> list[Example]:
    value: Any = record.value
    images = value.get("images") if isinstance(value, dict) else None
    dialogs = value.get("dialogs") if isinstance(value, dict) else None
    if not isinstance(images, list) or not isinstance(dialogs, list) or not dialogs:
        raise SampleError("it has no list of images and of dialogs")
    pictures = [array[index] for index in images]
    return [_example(dialog, pictures, record.place) for dialog in dialogs]


def _example(dialog: Any, pictures: list[Picture], place: str) -> Example:
    raw = dialog.get("messages") if isinstance(dialog, dict) else None
    if not isinstance(raw, list) or not all(isinstance(one, dict) for one in raw):
        raise SampleError("a dialog has no list of messages")
    kind = dialog.get("type")
    chat = [{"role": one.get("role"), "content": one.get("content")} for one in raw]
    messages = place_pictures(chat, pictures, _no_reference, marks=False)
    return example_of(messages, kind if isinstance(kind, str) else "", place)


def _no_reference(reference: object) -> Picture:
    raise SampleError(f"a part of a message refers to the picture {printable(reference)}")
