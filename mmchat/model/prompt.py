"""A conversation as the model's first inputs: tokens, pixels, and what had to be left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmchat.errors import ModelError, TooLongError
from mmchat.model.encoding import ChatTurn, Encoded, encode_chat
from mmchat.model.hf_vlm import token_kinds
from mmchat.model.pictures import Cancelled, Seen, decoded_bytes, picture_inputs

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

__all__ = [
    "Cancelled",
    "ChatTurn",
    "Encoded",
    "ImageSpan",
    "PreparedPrompt",
    "build_prompt",
    "encode_chat",
]


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


def _never() -> bool:
    return False


def build_prompt(
    loaded: "LoadedModel",
    turns: Sequence[ChatTurn],
    max_new_tokens: int,
    cancelled: Callable[[], bool] = _never,
) -> PreparedPrompt:
    """Prepares `turns`, which end with the user's, for an answer of up to `max_new_tokens`.

    Where the conversation exceeds the context, whole oldest exchanges are left
    out: never the system prompt, the last turn, or a part of a picture. Room is
    kept for the answer, at most a quarter of the context.

    Raises ModelError where a picture is shown to a model that reads text only
    and as `encode_chat` does, TooLongError where the last turn and the system prompt
    alone are too long, ImageError where a picture cannot be decoded, Cancelled
    before the next picture is decoded once `cancelled` says so.
    """
    if not loaded.vision and _pictures(turns):
        raise ModelError(
            f"{loaded.name} reads text only: choose a model that sees pictures, such as scenes "
            "(mmchat models list shows more), or take the picture out."
        )
    room = loaded.context_length - min(max_new_tokens, loaded.context_length // 4)
    cuts = _cuts(turns)
    first = cuts[0]
    seen: Seen = {}
    best: PreparedPrompt | None = None
    fits, exceeds = 0, len(cuts) + 1  # how many of the last exchanges do
    tried = _first_try(loaded, turns, cuts)
    while exceeds - fits > 1:
        kept = [*turns[:first], *turns[cuts[-tried] :]]
        pictures = _pictures(kept)
        marks, inputs = picture_inputs(loaded, pictures, seen, cancelled)
        encoded = _encoded(loaded, kept, marks)
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
    # The last exchange was tried last, so the marks of its pictures come at the end.
    last = turns[cuts[-1] :]
    alone = _encoded(loaded, last, marks[len(marks) - len(_pictures(last)) :])
    raise _too_long(loaded.name, encoded, alone, room)


def _encoded(
    loaded: "LoadedModel", turns: Sequence[ChatTurn], marks: Sequence[Sequence[int] | str]
) -> Encoded:
    return encode_chat(
        loaded.tokenizer,
        turns,
        image_tokens=marks,
        add_generation_prompt=True,
        picture_mark=getattr(loaded.processor, "image_token", None),
    )


def _pictures(turns: Sequence[ChatTurn]) -> list[Any]:
    return [part for turn in turns for part in turn.parts if not isinstance(part, str)]


def _too_long(name: str, whole: Encoded, alone: Encoded, room: int) -> TooLongError:
    """Says what is to be shortened: the last message `alone`, or the system prompt before it."""
    message = len(alone.input_ids)
    if message <= room:
        return TooLongError(
            f"The system prompt takes {len(whole.input_ids) - message:,} tokens and the last message "
            f"{message:,}, and {name} has room for {room:,}: shorten the system prompt."
        )
    of_pictures = sum(length for _, length in alone.images)
    return TooLongError(
        f"The last message takes {message:,} tokens"
        + (f", {of_pictures:,} of them its pictures" if of_pictures else "")
        + f", and {name} has room for {room:,}: shorten it"
        + (" or show fewer pictures." if of_pictures else ".")
    )


def _cuts(turns: Sequence[ChatTurn]) -> list[int]:
    """Where each exchange begins: the first turn after the system's, then every turn of the user."""
    first = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return [first, *(i for i in range(first + 1, len(turns)) if turns[i].role == "user")]


_AT_FIRST = 16
"""Exchanges that are tried before any is left out: most conversations are shorter."""
_HELD_AT_FIRST = 256 * 1024 * 1024
"""Bytes of decoded pictures among them, for a stock model: its processor takes all of them whole."""


def _first_try(loaded: "LoadedModel", turns: Sequence[ChatTurn], cuts: Sequence[int]) -> int:
    """How many of the last exchanges are tried first, at least one."""
    most = min(len(cuts), _AT_FIRST)
    if loaded.kind != "hf_vlm":
        return most
    held = 0
    for number in range(1, most + 1):
        end = cuts[1 - number] if number > 1 else len(turns)
        held += sum(decoded_bytes(part.data) for part in _pictures(turns[cuts[-number] : end]))
        if held > _HELD_AT_FIRST:
            return max(number - 1, 1)
    return most


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
            ids, torch.tensor(image_token_ids(loaded.processor), device=loaded.device)
        )
        image_tokens = int(of_pictures.sum())
        kinds = token_kinds(loaded.processor)
        if kinds is not None:
            model_inputs[kinds] = of_pictures.long()
    return PreparedPrompt(ids, model_inputs, spans, image_tokens, dropped, keys)


def image_token_ids(processor: Any) -> list[int]:
    """The ids whose embeddings are replaced by a picture's features."""
    ids: list[int] = list(getattr(processor, "image_token_ids", None) or [])
    return ids or [int(processor.image_token_id)]
