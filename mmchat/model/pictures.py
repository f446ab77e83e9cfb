"""A conversation's pictures as a model takes them, none of them decoded more often than needed."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmchat.model.stock import process_pictures

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

Ready = tuple[Tensor, int]
"""The pixels (1, 3, side, side) of a picture and the number of its tokens."""
Seen = dict[str, Any]
"""By sha256: what is `Ready`, or for a stock model the picture itself."""


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Nobody waits for the answer any more."""


class PixelCache:
    """Pictures that are ready for one model, up to `limit` bytes; the longest unused goes first.

    Decoding a photograph takes a second, and its small square takes little room.
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
        """Keeps a picture that is not there yet."""
        self._ready[sha256] = ready
        self._bytes += ready[0].nbytes
        while self._bytes > self._limit:
            _, (pixels, _) = self._ready.popitem(last=False)
            self._bytes -= pixels.nbytes


def picture_inputs(
    loaded: "LoadedModel", pictures: Sequence[Any], seen: Seen, cancelled: Callable[[], bool]
) -> tuple[Sequence[Sequence[int] | str], dict[str, Tensor]]:
    """(the tokens of each picture, the model's picture inputs)

    `seen` is what earlier calls for the same answer have read, and is added to.
    Raises ImageError where a picture cannot be decoded, Cancelled before the next one is.
    """
    if not pictures:
        return [], {}
    for part in pictures:
        if part.sha256 not in seen:
            seen[part.sha256] = _read(loaded, part, cancelled)
    shown = [seen[part.sha256] for part in pictures]
    if loaded.kind == "stock":
        _go_on(cancelled)
        return process_pictures(loaded.processor, shown)
    tokens = [[loaded.processor.image_token_id] * count for _, count in shown]
    return tokens, {"pixel_values": torch.cat([pixels for pixels, _ in shown])}


def decoded_bytes(data: bytes | None) -> int:
    """What a picture takes while it is decoded, by its header; 0 where that cannot be told."""
    from mmchat.images import MAX_SIDE
    from mmchat.images.headers import Refusal, read_header

    try:
        size = read_header(data or b"").size
    except Refusal:
        return 0  # told when it is decoded
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
    _go_on(cancelled)
    image = decode(part.data)
    if loaded.kind == "stock":
        return image
    processor = loaded.processor
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    ready = pixels, processor.image_tokens(image.width, image.height)
    loaded.pixels.put(part.sha256, ready)
    return ready


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled
