"""A conversation as the model's first inputs: tokens, pixels, and what had to be left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmchat.errors import ModelError, TooLongError
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

    Raises ModelError where a picture is shown to a model that reads text only
    and as `encode_chat` does, TooLongError where the last turn alone is too long,
    ImageError where a picture cannot be decoded.
    """
    if not loaded.vision and any(
        not isinstance(part, str) for turn in turns for part in turn.parts
    ):
        raise ModelError(
            f"{loaded.name} reads text only: choose a model that sees pictures, such as scenes "
            "(mmchat models list shows more), or take the picture out."
        )
    room = loaded.context_length - min(max_new_tokens, loaded.context_length // 4)
    cuts = _cuts(turns)
    first = cuts[0]
    seen: _Seen = {}
    best: PreparedPrompt | None = None
    fits, exceeds = 0, len(cuts) + 1  # how many of the last exchanges do
    tried = min(len(cuts), _AT_FIRST)
    while exceeds - fits > 1:
        kept = [*turns[:first], *turns[cuts[-tried] :]]
        pictures = [part for turn in kept for part in turn.parts if not isinstance(part, str)]
        marks, inputs = _pictures(loaded, pictures, seen)
        encoded = encode_chat(
            loaded.tokenizer,
            kept,
            image_tokens=marks,
            add_generation_prompt=True,
            picture_mark=getattr(loaded.processor, "image_token", None),
        )
        if len(encoded.input_ids) <= room:
            fits = tried
            best = _prepared(loaded, encoded, pictures, inputs, len(turns) - len(kept))
        else:
            exceeds = tried
        # Doubled until it exceeds, then halved between: the oldest of a long conversation are
        # never read, and neither are their pictures.
        tried = min(2 * tried, len(cuts)) if exceeds > len(cuts) else (fits + exceeds) // 2
    if best is not None:
        return best
    of_pictures = sum(length for _, length in encoded.images)
    raise TooLongError(
        f"The last message takes {len(encoded.input_ids):,} tokens"
        + (f", {of_pictures:,} of them its pictures" if of_pictures else "")
        + f", and {loaded.name} has room for {room:,}: shorten it"
        + (" or show fewer pictures." if of_pictures else ".")
    )


def _cuts(turns: Sequence[ChatTurn]) -> list[int]:
    """Where each exchange begins: the first turn after the system's, then every turn of the user."""
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return [first, *(i for i in range(first + 1, len(turns)) if turns[i].role == "user")]


_AT_FIRST = 16
"""Exchanges that are tried before any is left out: most conversations are shorter."""
_Seen = dict[str, tuple[Any, int]]
"""By sha256: pixels for the model and the number of its tokens, or the picture itself."""


def _pictures(
    loaded: "LoadedModel", pictures: Sequence[Any], seen: _Seen
) -> tuple[Sequence[Sequence[int] | str], dict[str, Tensor]]:
    """(the tokens of each picture, the model's picture inputs)"""
    from mmchat.images import decode

    if not pictures:
        return [], {}
    processor = loaded.processor
    for part in pictures:
        if part.sha256 in seen:
            continue
        if part.data is None:
            raise ValueError(f"picture {part.sha256} comes without its bytes")
        image = decode(part.data)
        if loaded.kind == "stock":
            seen[part.sha256] = image, 0
        else:  # a picture of many megapixels is not kept for its small square
            pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
            seen[part.sha256] = pixels, processor.image_tokens(image.width, image.height)
    shown = [seen[part.sha256] for part in pictures]
    if loaded.kind == "stock":
        return process_pictures(processor, [image for image, _ in shown])
    tokens = [[processor.image_token_id] * count for _, count in shown]
    return tokens, {"pixel_values": torch.cat([pixels for pixels, _ in shown])}


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
