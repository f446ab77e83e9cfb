"""A conversation as the model's first inputs: tokens, pixels, and what had to be left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmchat.errors import ModelError
from mmchat.model.encoding import ChatTurn, Encoded, encode_chat
from mmchat.model.stock import process_pictures, token_kinds

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

__all__ = ["ChatTurn", "Encoded", "ImageSpan", "PreparedPrompt", "build_prompt", "encode_chat"]


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The tokens of one picture in `input_ids`."""

    start: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """What the first forward of an answer takes.

    input_ids: (1, tokens) int64. model_inputs: its further arguments, pixels in
    the compute dtype (`pixel_values` and what the architecture wants beside it).
    image_tokens: how many embeddings the pictures become. dropped_turns: how
    many of the oldest turns did not fit. keys: for each token its id, and the
    picture it stands for: two prompts agree as far as their keys do.
    """

    input_ids: Tensor
    model_inputs: dict[str, Tensor]
    images: list[ImageSpan]
    image_tokens: int
    dropped_turns: int
    keys: list[tuple[int, str | None]]


def build_prompt(
    loaded: "LoadedModel", turns: Sequence[ChatTurn], max_new_tokens: int
) -> PreparedPrompt:
    """Prepares `turns`, which end with the user's, for an answer of up to `max_new_tokens`.

    Where the conversation exceeds the context, whole oldest exchanges are left
    out: never the system prompt, the last turn, or a part of a picture. Room is
    kept for the answer, at most a quarter of the context.

    Raises ModelError where a picture is shown to a model that reads text only,
    where the last turn alone is too long, and as `encode_chat` does; ImageError
    where a picture cannot be decoded.
    """
    if not loaded.vision and any(
        not isinstance(part, str) for turn in turns for part in turn.parts
    ):
        raise ModelError(
            f"{loaded.name} reads text only: choose a model that sees pictures, such as scenes "
            "(mmchat models list shows more), or take the picture out."
        )
    room = loaded.context_length - min(max_new_tokens, loaded.context_length // 4)
    kept = list(turns)
    decoded: dict[str, Any] = {}
    while True:
        pictures = [part for turn in kept for part in turn.parts if not isinstance(part, str)]
        marks, inputs = _pictures(loaded, pictures, decoded)
        encoded = encode_chat(
            loaded.tokenizer,
            kept,
            image_tokens=marks,
            add_generation_prompt=True,
            picture_mark=getattr(loaded.processor, "image_token", None),
        )
        if len(encoded.input_ids) <= room:
            return _prepared(loaded, encoded, pictures, inputs, len(turns) - len(kept))
        shorter = _without_oldest(kept)
        if shorter is None:
            of_pictures = sum(length for _, length in encoded.images)
            raise ModelError(
                f"The last message takes {len(encoded.input_ids):,} tokens"
                + (f", {of_pictures:,} of them its pictures" if of_pictures else "")
                + f", and {loaded.name} has room for {room:,}: shorten it"
                + (" or show fewer pictures." if of_pictures else ".")
            )
        kept = shorter


def _without_oldest(turns: list[ChatTurn]) -> list[ChatTurn] | None:
    """`turns` without the oldest user's turn and what answers it; None where only the last is left."""
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    after = next((i for i in range(first + 1, len(turns)) if turns[i].role == "user"), None)
    return None if after is None else turns[:first] + turns[after:]


def _pictures(
    loaded: "LoadedModel", pictures: Sequence[Any], decoded: dict[str, Any]
) -> tuple[Sequence[Sequence[int] | str], dict[str, Tensor]]:
    """(the tokens of each picture, the model's picture inputs)"""
    from mmchat.images import decode

    if not pictures:
        return [], {}
    for part in pictures:
        if part.sha256 not in decoded:
            if part.data is None:
                raise ValueError(f"picture {part.sha256} comes without its bytes")
            decoded[part.sha256] = decode(part.data)
    images = [decoded[part.sha256] for part in pictures]
    if loaded.kind == "stock":
        return process_pictures(loaded.processor, images)
    processor = loaded.processor
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    tokens = [
        [processor.image_token_id] * processor.image_tokens(image.width, image.height)
        for image in images
    ]
    return tokens, {"pixel_values": pixels}


def _prepared(
    loaded: "LoadedModel",
    encoded: Encoded,
    pictures: Sequence[Any],
    inputs: dict[str, Tensor],
    dropped: int,
) -> PreparedPrompt:
    keys: list[tuple[int, str | None]] = [(token, None) for token in encoded.input_ids]
    spans: list[ImageSpan] = []
    for (start, length), part in zip(encoded.images, pictures, strict=True):
        spans.append(ImageSpan(start, length, part.sha256))
        for at in range(start, start + length):
            keys[at] = (keys[at][0], part.sha256)
    ids = torch.tensor([encoded.input_ids], dtype=torch.long, device=loaded.device)
    model_inputs = {
        name: value.to(loaded.device, loaded.compute_dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    image_tokens = 0
    if pictures:
        of_pictures = torch.isin(
            ids, torch.tensor(_image_token_ids(loaded.processor), device=loaded.device)
        )
        image_tokens = int(of_pictures.sum())
        kinds = token_kinds(loaded.processor)
        if kinds is not None:
            model_inputs[kinds] = of_pictures.long()
    return PreparedPrompt(ids, model_inputs, spans, image_tokens, dropped, keys)


def _image_token_ids(processor: Any) -> list[int]:
    """The ids whose embeddings are replaced by a picture's features."""
    ids: list[int] = list(getattr(processor, "image_token_ids", None) or [])
    return ids or [int(processor.image_token_id)]
