"""A conversation's pictures as a model takes them, each decoded only as often as needed."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from cachetools import LRUCache
from torch import Tensor

from mmchat.errors import ImageError
from mmchat.images import MAX_SIDE, decode
from mmchat.images.headers import UnreadablePicture, read_header
from mmchat.prompt.chat_encoding import Placeholders

MAX_ENLARGED_PIXELS = 32_000_000
"""The most pixels that an image processor may enlarge a picture to; each takes about 10 bytes."""
# What a Hugging Face processor returns about its own text, which is not used here.
_TEXT_OUTPUTS = {"input_ids", "attention_mask", "text_replacement_offsets"}
_TOKEN_TYPE_INPUTS = {"mm_token_type_ids", "token_type_ids"}


class PromptPicture(Protocol):
    """A picture in a turn: `mmchat.turns.ImagePart` or `mmchat.data.types.Picture`."""

    @property
    def sha256(self) -> str: ...
    @property
    def data(self) -> bytes | None:
        """The original bytes of the picture."""


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """A picture for the visual-prefix model: pixel_values (1, 3, side, side) and its number of tokens."""

    pixel_values: Tensor
    tokens: int


class PixelCache:
    """Pictures prepared for one model, up to `limit` bytes; the least recently used is dropped first.

    Decoding a photograph takes a second, and the small square made of it takes little memory.
    """

    def __init__(self, limit: int = 64 * 1024 * 1024) -> None:
        self._pictures: LRUCache[str, PreparedPicture] = LRUCache(
            limit, getsizeof=lambda picture: picture.pixel_values.nbytes
        )

    def get(self, sha256: str) -> PreparedPicture | None:
        """The picture, or None; it counts as used now."""
        picture: PreparedPicture | None = self._pictures.get(sha256)
        return picture

    def put(self, sha256: str, picture: PreparedPicture) -> None:
        """Keeps a picture, unless it is larger than the whole cache."""
        with suppress(ValueError):
            self._pictures[sha256] = picture


class PictureModel(Protocol):
    """What preparing pictures needs to know of a model; its weights are not among it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def processor(self) -> Any: ...
    @property
    def pixels(self) -> PixelCache: ...


class Cancelled(Exception):  # noqa: N818 - not an error
    """Nobody is waiting for the answer any more."""


def picture_inputs(
    model: PictureModel,
    pictures: Sequence[PromptPicture],
    decoded: dict[str, Any],
    cancelled: Callable[[], bool],
) -> tuple[Sequence[Placeholders], dict[str, Tensor]]:
    """Returns the placeholders of each picture, and the model's picture inputs.

    `decoded` has by sha256 what earlier calls for the same answer have read, and is added to: each picture
    as a `PreparedPicture`, or decoded for a Hugging Face VLM. Raises ImageError if a picture cannot be
    decoded or the model's image processor cannot take its shape, and Cancelled before the next picture once
    `cancelled` returns True.
    """
    if not pictures:
        return [], {}
    for picture in pictures:
        if picture.sha256 not in decoded:
            decoded[picture.sha256] = _decode(model, picture, cancelled)
    read = [decoded[picture.sha256] for picture in pictures]
    if model.kind == "hf_vlm":
        if cancelled():
            raise Cancelled
        return _process(model, pictures, read)
    placeholders = [[model.processor.image_token_id] * picture.tokens for picture in read]
    return placeholders, {"pixel_values": torch.cat([picture.pixel_values for picture in read])}


def check_shape(model: PictureModel, picture: PromptPicture, width: int, height: int) -> None:
    """Raises ImageError if the model's image processor would enlarge the picture past the limit."""
    wide, high = enlarged_size(model.processor.image_processor, width, height)
    if wide * high > MAX_ENLARGED_PIXELS:
        raise _shape_error(model, picture, f"it would be enlarged to {wide:,} × {high:,} pixels")


def enlarged_size(image_processor: Any, width: int, height: int) -> tuple[int, int]:
    """(width, height) to which a processor resizes a picture if it fixes the length of the shorter side.

    Such a processor (CLIP's) bounds neither side, so a narrow picture becomes enormous before it is
    cropped. All other processors bound what they make: for those (0, 0).
    """
    size = getattr(image_processor, "size", None) or {}
    edge = size.get("shortest_edge")
    # With a longest edge the size is bounded; with pinpoints (LLaVA-NeXT) a grid bounds it.
    bounded = size.get("longest_edge") or getattr(image_processor, "image_grid_pinpoints", None)
    if not edge or bounded or not getattr(image_processor, "do_resize", True):
        return 0, 0
    scale = edge / min(width, height)
    return round(width * scale), round(height * scale)


def image_token_ids(processor: Any) -> list[int]:
    """The ids of the tokens whose embeddings are replaced by a picture's features."""
    ids: list[int] = list(getattr(processor, "image_token_ids", None) or [])
    return ids or [int(processor.image_token_id)]


def token_type_input(processor: Any) -> str | None:
    """The name of the model input that is 1 for picture tokens and 0 for all others, if there is one."""
    return next((name for name in processor.model_input_names if name in _TOKEN_TYPE_INPUTS), None)


def decoded_bytes(data: bytes | None) -> int:
    """The bytes that a picture takes when it is decoded, by its header; 0 if the header has no size."""
    size = _header_size(data)
    if size is None:
        return 0
    scale = min(1.0, MAX_SIDE / max(*size, 1))
    return int(3 * size[0] * size[1] * scale**2)


def _decode(model: PictureModel, picture: PromptPicture, cancelled: Callable[[], bool]) -> Any:
    cached = model.pixels.get(picture.sha256)
    if cached is not None:
        return cached
    data = picture.data
    if data is None:
        raise ValueError(f"the bytes of picture {picture.sha256} are missing")
    if cancelled():
        raise Cancelled
    image = decode(data)
    check_shape(model, picture, image.width, image.height)
    if model.kind == "hf_vlm":
        return image
    processor = model.processor
    pixel_values = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    prepared = PreparedPicture(pixel_values, processor.image_tokens(image.width, image.height))
    model.pixels.put(picture.sha256, prepared)
    return prepared


def _process(
    model: PictureModel, pictures: Sequence[PromptPicture], images: Sequence[Any]
) -> tuple[Sequence[str], dict[str, Tensor]]:
    """As `process_pictures`; raises ImageError for a picture whose shape the processor refuses."""
    try:
        return process_pictures(model.processor, images)
    except Exception:
        # Each processor has its own exceptions for shapes that it refuses. If an ordinary picture fails
        # too, the shape is not the reason, and the exception stays as it is.
        if _processor_error(model, images[0].resize((64, 64))) is not None:
            raise
        for picture, image in zip(pictures, images, strict=True):
            error = _processor_error(model, image)
            if error is not None:
                raise _shape_error(model, picture, str(error) or type(error).__name__) from error
        raise


def process_pictures(processor: Any, images: Sequence[Any]) -> tuple[list[str], dict[str, Tensor]]:
    """Returns the text that stands for each picture of a conversation, and the model's inputs.

    The Hugging Face processor decides both: it gets a text that consists only of its image tokens, and
    reports what it replaced them with.
    """
    output = processor(
        images=[list(images)],
        text=[processor.image_token * len(images)],
        return_tensors="pt",
        add_special_tokens=False,
        return_text_replacement_offsets=True,
    )
    texts = [entry["replacement"] for entry in output["text_replacement_offsets"][0]]
    inputs = {
        name: value
        for name, value in output.items()
        if name not in _TEXT_OUTPUTS | _TOKEN_TYPE_INPUTS and isinstance(value, Tensor)
    }
    return texts, inputs


def _processor_error(model: PictureModel, image: Any) -> Exception | None:
    try:
        process_pictures(model.processor, [image])
    except Exception as error:  # as above
        return error
    return None


def _shape_error(model: PictureModel, picture: PromptPicture, reason: str) -> ImageError:
    # Pictures of data know their upright size; for those of a request the header has it.
    width, height = getattr(picture, "width", 0), getattr(picture, "height", 0)
    if not width:
        width, height = _header_size(picture.data) or (0, 0)
    shape = f" ({width:,} × {height:,} pixels)" if width else ""
    called = f"picture {name}" if (name := getattr(picture, "name", "")) else "picture"
    return ImageError(
        f"the {called}{shape} has a shape that {model.name} cannot take ({' '.join(reason.split())}): "
        "crop it, or choose another model"
    )


def _header_size(data: bytes | None) -> tuple[int, int] | None:
    """(width, height) in the file's header, before any rotation; None if it has none."""
    try:
        return read_header(data or b"").size
    except UnreadablePicture:
        return None
