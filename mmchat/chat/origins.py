"""How an answer is made: what is asked for, and what the engine reports about it."""

from dataclasses import replace
from typing import Any

import msgspec

from mmchat.client.protocol import Done, Options, Started
from mmchat.history import Origin
from mmchat.settings import Settings


def with_adapter(settings: Settings, adapter: str) -> Settings:
    """The settings with another adapter; "" is none."""
    model = msgspec.structs.replace(settings.model, adapter=adapter)
    return msgspec.structs.replace(settings, model=model)


def sampling_options(settings: Settings) -> Options:
    """The settings of [generation] that control how tokens are sampled, for the engine."""
    generation = settings.generation
    return Options(
        **{
            name: getattr(generation, name)
            for name in generation.__struct_fields__
            if name in Options.__struct_fields__
        }
    )


def requested_origin(settings: Settings) -> Origin:
    """The origin of an answer before the engine has been asked."""
    generation = settings.generation
    parameters: dict[str, Any] = {
        name: getattr(generation, name) for name in generation.__struct_fields__ if name != "system"
    }
    model = settings.model
    return Origin(model=model.name, adapter=model.adapter, parameters=parameters)


def started_origin(origin: Origin, started: Started) -> Origin:
    """The origin with the figures of the prompt, which the engine reports before the first token."""
    parameters = dict(origin.parameters)
    if started.dropped_turns:
        parameters["dropped_turns"] = started.dropped_turns
    if started.context_length:
        parameters["context_length"] = started.context_length
    return replace(
        origin,
        adapter=started.adapter or origin.adapter,
        adapter_hash=started.adapter_hash,
        parameters=parameters,
        prompt_tokens=started.prompt_tokens,
        image_tokens=started.image_tokens,
        cached_tokens=started.cached_tokens,
    )


def finished_origin(origin: Origin, done: Done) -> Origin:
    """The origin with the figures of the whole answer, which the engine reports at its end."""
    return replace(
        origin,
        model=done.model or origin.model,
        adapter=done.adapter,
        adapter_hash=done.adapter_hash,
        quantization=done.quantization,
        device=done.device,
        prompt_tokens=done.prompt_tokens or origin.prompt_tokens,
        image_tokens=done.image_tokens or origin.image_tokens,
        completion_tokens=done.completion_tokens,
        cached_tokens=done.cached_tokens,
        image_ms=done.image_ms,
        prefill_ms=done.prefill_ms,
        decode_ms=done.decode_ms,
        tokens_per_second=done.tokens_per_second,
    )
