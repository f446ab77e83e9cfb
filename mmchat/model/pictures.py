"""A conversation's pictures as a model takes them, each decoded no more often than needed."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmchat.errors import ImageError
from mmchat.model.hf_vlm import enlarged_size, process_pictures

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

Ready = tuple[Tensor, int]
"""The pixels (1, 3, side, side) of a picture and the number of its tokens."""
Seen = dict[str, Any]
"""By sha256: a `Ready`, or for a stock model the decoded picture."""

MAX_ENLARGED_PIXELS = 32_000_000
"""The most pixels that an image processor may enlarge a picture to; each takes about 10 bytes."""


class Cancelled(Exception):  # noqa: N818 - not an error
    """Nobody is waiting for the answer any more."""


class PixelCache:
    """Pictures that are ready for one model, up to `limit` bytes, the least recently used dropped.

    Decoding a photograph takes a second, while the small square made of it takes little memory.
    """

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        self._limit = limit
        self._bytes = 0
        self._ready: OrderedDict[str, Ready] = OrderedDict()

    def get(self, sha256: str) -> Ready | None:
        if sha256 in self._ready:
            self._ready.move_to_end(sha256)
        return self._ready.get(sha256)

    def put(self, sha256: str, ready: Ready) -> None:
        """Adds a picture that is not in the cache yet."""
        self._ready[sha256] = ready
        self._bytes += ready[0].nbytes
        while self._bytes > self._limit:
            _, (pixels, _) = self._ready.popitem(last=False)
            self._bytes -= pixels.nbytes


def picture_inputs(
    loaded: "LoadedModel", pictures: Sequence[Any], seen: Seen, cancelled: Callable[[], bool]
) -> tuple[Sequence[Sequence[int] | str], dict[str, Tensor]]:
    """Returns the tokens of each picture, and the model's picture inputs.

    `seen` holds what earlier calls for the same answer have read, and is added to. Raises
    ImageError if a picture cannot be decoded or the model's image processor cannot take its
    shape, and Cancelled before the next picture once `cancelled` says so.
    """
    if not pictures:
        return [], {}
    for part in pictures:
        if part.sha256 not in seen:
            seen[part.sha256] = _read(loaded, part, cancelled)
    read = [seen[part.sha256] for part in pictures]
    if loaded.kind == "hf_vlm":
        _raise_if(cancelled)
        return _process(loaded, pictures, read)
    tokens = [[loaded.processor.image_token_id] * count for _, count in read]
    return tokens, {"pixel_values": torch.cat([pixels for pixels, _ in read])}


def check_shape(loaded: Any, picture: Any, width: int, height: int) -> None:
    """Raises ImageError if `loaded`'s image processor would enlarge the picture past the limit."""
    wide, high = enlarged_size(loaded.processor.image_processor, width, height)
    if wide * high > MAX_ENLARGED_PIXELS:
        raise _shape_error(loaded, picture, f"it would be enlarged to {wide:,} × {high:,} pixels")


def decoded_bytes(data: bytes | None) -> int:
    """The bytes of a decoded picture, by its header; 0 if the header does not tell."""
    from mmchat.images import MAX_SIDE

    size = _header_size(data)
    if size is None:
        return 0
    scale = min(1.0, MAX_SIDE / max(*size, 1))
    return int(3 * size[0] * size[1] * scale**2)


def _read(loaded: "LoadedModel", part: Any, cancelled: Callable[[], bool]) -> Any:
    from mmchat.images import decode

    kept = loaded.pixels.get(part.sha256)
    if kept is not None:
        return kept
    if part.data is None:
        raise ValueError(f"picture {part.sha256} comes without its bytes")
    _raise_if(cancelled)
    image = decode(part.data)
    check_shape(loaded, part, image.width, image.height)
    if loaded.kind == "hf_vlm":
        return image
    processor = loaded.processor
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    ready = pixels, processor.image_tokens(image.width, image.height)
    loaded.pixels.put(part.sha256, ready)
    return ready


def _process(
    loaded: "LoadedModel", pictures: Sequence[Any], images: Sequence[Any]
) -> tuple[Sequence[str], dict[str, Tensor]]:
    """As `process_pictures`; raises ImageError for a picture whose shape the processor refuses."""
    try:
        return process_pictures(loaded.processor, images)
    except Exception:
        # Each processor refuses shapes with exceptions of its own. What fails with an ordinary
        # picture too is not about the shape, and stays what it is.
        if _processor_error(loaded, images[0].resize((64, 64))) is not None:
            raise
        for picture, image in zip(pictures, images, strict=True):
            error = _processor_error(loaded, image)
            if error is not None:
                raise _shape_error(loaded, picture, str(error) or type(error).__name__) from error
        raise


def _processor_error(loaded: "LoadedModel", image: Any) -> Exception | None:
    try:
        process_pictures(loaded.processor, [image])
    except Exception as error:  # as above
        return error
    return None


def _shape_error(loaded: Any, picture: Any, reason: str) -> ImageError:
    # Pictures of data know their upright size; of those in a request the header tells.
    width, height = getattr(picture, "width", 0), getattr(picture, "height", 0)
    if not width:
        width, height = _header_size(picture.data) or (0, 0)
    shape = f" ({width:,} × {height:,} pixels)" if width else ""
    called = f"picture {name}" if (name := getattr(picture, "name", "")) else "picture"
    return ImageError(
        f"the {called}{shape} has a shape that {loaded.name} cannot take ({' '.join(reason.split())}): "
        "crop it, or choose another model"
    )


def _header_size(data: bytes | None) -> tuple[int, int] | None:
    """(width, height) as the file states it, before any rotation; None if it does not tell."""
    from mmchat.images.headers import UnreadablePicture, read_header

    try:
        return read_header(data or b"").size
    except UnreadablePicture:
        return None


def _raise_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled
