"""The types that the engine and its clients exchange.

Everything here is frozen and free of torch. The engine makes events, the client passes them on, the app and
the command line match on their class.

The events of one answer come in this order, where `*` means any number:

    Waiting* Loading* Started Delta* Done
"""

from typing import Literal

from msgspec import Struct

from mmchat.errors import (
    AdapterError,
    EngineError,
    ImageError,
    MmchatError,
    ModelError,
    ModelNotFoundError,
    TooLongError,
)
from mmchat.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled"]
State = Literal["empty", "loading", "ready", "failed"]


class EndingError(EngineError):
    """The engine is stopping and did not accept the request; another engine may accept it."""

    def __init__(
        self, message: str = "The engine is stopping; the next message starts it again."
    ) -> None:
        super().__init__(message)


ERROR_CODES: dict[str, type[MmchatError]] = {
    "context_length_exceeded": TooLongError,
    "model_not_found": ModelNotFoundError,
    "model_error": ModelError,
    "adapter_error": AdapterError,
    "invalid_image": ImageError,
    "engine_ending": EndingError,
    "engine_error": EngineError,
}
"""The `code` of an error reply (OpenAI's if it has one) and the error that the client raises."""


class Options(SamplingParams, frozen=True):
    """How an answer is sampled, and what ends it.

    Raises SamplingError if a parameter is out of its range.
    """

    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""


class Waiting(Struct, frozen=True, tag=True):
    """Another request is being answered first."""

    place: int
    """1 is the next one."""


class Loading(Struct, frozen=True, tag=True):
    """The model is being loaded for this request."""

    model: str
    stage: str
    fraction: float
    """From 0 to 1."""


class Started(Struct, frozen=True, tag=True):
    """The prompt is built; tokens will follow."""

    prompt_tokens: int
    """Tokens of the whole prompt, including those of the pictures."""
    image_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were reused, because the last conversation began with them."""
    dropped_turns: int
    """How many of the oldest turns were left out, because the conversation exceeds the context."""
    context_length: int
    adapter: str = ""
    adapter_hash: str = ""
    """Of the adapter that answers. `Done` has it too, but there is none if the answer is stopped early."""


class Delta(Struct, frozen=True, tag=True):
    """The next piece of the answer: whole characters, at least one."""

    text: str


class Done(Struct, frozen=True, tag=True):
    """The answer is complete. The figures of `Started` are repeated."""

    finish_reason: FinishReason
    completion_tokens: int = 0
    image_ms: float = 0.0
    """Milliseconds for the pictures: decoding and vision encoder."""
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    tokens_per_second: float = 0.0
    model: str = ""
    adapter: str = ""
    adapter_hash: str = ""
    quantization: str = ""
    device: str = ""
    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    dropped_turns: int = 0
    context_length: int = 0


Event = Waiting | Loading | Started | Delta | Done


class BackendStatus(Struct, frozen=True):
    """What a backend has loaded; `model` is empty if nothing is."""

    model: str = ""
    adapter: str = ""
    device: str = ""
    quantization: str = ""
    compute_dtype: str = ""
    context_length: int = 0
    vision: bool = False
    memory_bytes: int = 0
    """Bytes of the weights on their device."""
    weights_hash: str = ""
    """Of the base as it was loaded, without the adapter."""
    adapter_hash: str = ""


class EngineStatus(Struct, frozen=True):
    """The state of the engine, as its clients see it."""

    version: str
    pid: int
    state: State = "empty"
    model: str = ""
    adapter: str = ""
    device: str = ""
    quantization: str = ""
    compute_dtype: str = ""
    memory_bytes: int = 0
    """Bytes of the whole process: its resident memory and its memory on a GPU."""
    idle_s: float = 0.0
    """Seconds since the last request ended; 0 while one is being answered."""
    fraction: float = 0.0
    """How much of the current load is done, 0 to 1."""
    stage: str = ""
    error: str = ""
    """Why the last load failed, as a sentence."""
    context_length: int = 0
    vision: bool = False
    weights_hash: str = ""
    """Of the base as the engine loaded it; the files may have been replaced since."""
    adapter_hash: str = ""
    waiting: int = 0
    """Requests in the queue behind the one that is being answered."""
    log_file: str = ""
    url: str = ""
    """The address for other clients (`mmchat engine serve --port`); empty if there is none."""
