"""A conversation as the model's first inputs: tokens and pixels, without the turns that do not fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmchat.errors import ModelError, TooLongError
from mmchat.prompt.chat_encoding import EncodedChat, Placeholders, encode_chat
from mmchat.prompt.pixel_values import (
    PictureModel,
    PromptPicture,
    decoded_bytes,
    image_token_ids,
    picture_inputs,
    token_type_input,
)
from mmchat.turns import Turn

_FIRST_TRY = 16
"""Exchanges that are tried before any is left out: most conversations are shorter."""
_FIRST_TRY_BYTES = 256 * 1024 * 1024
"""Bytes of decoded pictures among them for a Hugging Face VLM, whose processor takes all of them at once."""


class PromptModel(PictureModel, Protocol):
    """What a prompt needs to know of a model: `mmchat.model.loaded_model.LoadedModel` has it."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def vision(self) -> bool: ...
    @property
    def context_length(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def compute_dtype(self) -> torch.dtype: ...


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The tokens of one picture in `input_ids`."""

    start: int
    length: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """The inputs of the first forward of an answer.

    input_ids: (1, tokens) int64. model_inputs: its further arguments, pixels in the compute dtype
    (`pixel_values` and what else the architecture needs). image_tokens: how many embeddings the pictures
    become. dropped_turns: how many of the oldest turns did not fit. keys: for each token its id, and the
    sha256 of the picture that it stands for; two prompts are equal as far as their keys are.
    """

    input_ids: Tensor
    model_inputs: dict[str, Tensor]
    images: list[ImageSpan]
    image_tokens: int
    dropped_turns: int
    keys: list[tuple[int, str | None]]


def build_prompt(
    model: PromptModel,
    turns: Sequence[Turn[PromptPicture]],
    max_new_tokens: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> PreparedPrompt:
    """Prepares `turns`, which end with the user's, for an answer of up to `max_new_tokens`.

    If the conversation exceeds the context, whole exchanges are left out, the oldest first: never the
    system prompt, the last turn, or a part of a picture. Room is kept for the answer, at most a quarter
    of the context.

    Raises ModelError if there is a picture and the model reads text only, and as `encode_chat` does;
    TooLongError if the last turn and the system prompt alone are too long; ImageError if a picture cannot
    be decoded; Cancelled before the next picture is decoded once `cancelled` returns True.
    """
    if not model.vision and _pictures(turns):
        raise ModelError(
            f"{model.name} reads text only: choose a model that sees pictures, such as scenes "
            "(mmchat models list shows more), or take the picture out."
        )
    room = model.context_length - min(max_new_tokens, model.context_length // 4)
    cuts = _exchange_starts(turns)
    first = cuts[0]
    decoded: dict[str, Any] = {}
    best: PreparedPrompt | None = None
    fits, exceeds = 0, len(cuts) + 1  # numbers of last exchanges that fit, and that do not
    tried = _first_try(model, turns, cuts)
    while exceeds - fits > 1:
        kept = [*turns[:first], *turns[cuts[-tried] :]]
        pictures = _pictures(kept)
        placeholders, inputs = picture_inputs(model, pictures, decoded, cancelled)
        encoded = _encode(model, kept, placeholders)
        if len(encoded.input_ids) <= room:
            fits = tried
            best = _prepare(model, encoded, pictures, inputs, len(turns) - len(kept))
        else:
            exceeds = tried
        # Doubled until it exceeds, then bisected: the oldest exchanges of a long conversation are never
        # encoded, and their pictures never decoded.
        tried = min(2 * tried, len(cuts)) if exceeds > len(cuts) else (fits + exceeds) // 2
    if best is not None:
        return best
    # The last exchange was tried last, so the placeholders of its pictures come at the end.
    last = turns[cuts[-1] :]
    alone = _encode(model, last, placeholders[len(placeholders) - len(_pictures(last)) :])
    raise _too_long(model.name, encoded, alone, room)


def _encode(
    model: PromptModel, turns: Sequence[Turn[PromptPicture]], placeholders: Sequence[Placeholders]
) -> EncodedChat:
    return encode_chat(
        model.tokenizer,
        turns,
        placeholders=placeholders,
        add_generation_prompt=True,
        image_token=getattr(model.processor, "image_token", None),
    )


def _pictures(turns: Sequence[Turn[PromptPicture]]) -> list[PromptPicture]:
    return [picture for turn in turns for picture in turn.images]


def _too_long(name: str, whole: EncodedChat, alone: EncodedChat, room: int) -> TooLongError:
    """Says what has to be shortened: the last message `alone`, or the system prompt before it."""
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


def _exchange_starts(turns: Sequence[Turn[PromptPicture]]) -> list[int]:
    """Where each exchange begins: the first turn after the system's, then every turn of the user."""
    first = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return [first, *(at for at in range(first + 1, len(turns)) if turns[at].role == "user")]


def _first_try(
    model: PromptModel, turns: Sequence[Turn[PromptPicture]], cuts: Sequence[int]
) -> int:
    """How many of the last exchanges are tried first, at least one."""
    most = min(len(cuts), _FIRST_TRY)
    if model.kind != "hf_vlm":
        return most
    size = 0
    for number in range(1, most + 1):
        end = cuts[1 - number] if number > 1 else len(turns)
        exchange = turns[cuts[-number] : end]
        size += sum(decoded_bytes(picture.data) for picture in _pictures(exchange))
        if size > _FIRST_TRY_BYTES:
            return max(number - 1, 1)
    return most


def _prepare(
    model: PromptModel,
    encoded: EncodedChat,
    pictures: Sequence[PromptPicture],
    inputs: dict[str, Tensor],
    dropped: int,
) -> PreparedPrompt:
    keys: list[tuple[int, str | None]] = [(token, None) for token in encoded.input_ids]
    spans: list[ImageSpan] = []
    for (start, length), picture in zip(encoded.images, pictures, strict=True):
        spans.append(ImageSpan(start, length, picture.sha256))
        for at in range(start, start + length):
            keys[at] = (keys[at][0], picture.sha256)
    ids = torch.tensor([encoded.input_ids], dtype=torch.long, device=model.device)
    model_inputs = {
        name: value.to(model.device, model.compute_dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    image_tokens = 0
    if pictures:
        of_pictures = torch.isin(
            ids, torch.tensor(image_token_ids(model.processor), device=model.device)
        )
        image_tokens = int(of_pictures.sum())
        token_types = token_type_input(model.processor)
        if token_types is not None:
            model_inputs[token_types] = of_pictures.long()
    return PreparedPrompt(ids, model_inputs, spans, image_tokens, dropped, keys)
