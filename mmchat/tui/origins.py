"""How an answer is made, as the history keeps it and as the engine is told. No widgets here."""

from typing import Any

import msgspec

from mmchat.client.protocol import Done, Options, Started
from mmchat.history import Origin
from mmchat.settings import Settings


def with_adapter(settings: Settings, adapter: str) -> Settings:
    """The settings with another adapter; "" is none."""
    model = msgspec.structs.replace(settings.model, adapter=adapter)
    return msgspec.structs.replace(settings, model=model)


def wanted(settings: Settings) -> Origin:
    """What an answer is asked with, before anything of it is known."""
    generation = settings.generation
    parameters: dict[str, Any] = {
        name: getattr(generation, name) for name in generation.__struct_fields__ if name != "system"
    }
    model = settings.model
    return Origin(model=model.name, adapter=model.adapter, parameters=parameters)


def options(settings: Settings) -> Options:
    """The same for the engine."""
    generation = settings.generation
    return Options(
        **{
            name: getattr(generation, name)
            for name in generation.__struct_fields__
            if name in Options.__struct_fields__
        }
    )


def with_prompt(origin: Origin, started: Started) -> Origin:
    """With what the engine says when it begins to write."""
    parameters = dict(origin.parameters)
    if started.dropped_turns:
        parameters["dropped_turns"] = started.dropped_turns
    if started.context_length:
        parameters["context_length"] = started.context_length
    return Origin(
        model=origin.model,
        adapter=started.adapter or origin.adapter,
        adapter_hash=started.adapter_hash,
        parameters=parameters,
        prompt_tokens=started.prompt_tokens,
        image_tokens=started.image_tokens,
        cached_tokens=started.cached_tokens,
    )


def with_figures(origin: Origin, done: Done) -> Origin:
    """With what it says at the end."""
    return Origin(
        model=done.model or origin.model,
        adapter=done.adapter,
        adapter_hash=done.adapter_hash,
        quantization=done.quantization,
        device=done.device,
        parameters=origin.parameters,
        prompt_tokens=done.prompt_tokens or origin.prompt_tokens,
        image_tokens=done.image_tokens or origin.image_tokens,
        completion_tokens=done.completion_tokens,
        cached_tokens=done.cached_tokens,
        image_ms=done.image_ms,
        prefill_ms=done.prefill_ms,
        decode_ms=done.decode_ms,
        tokens_per_second=done.tokens_per_second,
    )
