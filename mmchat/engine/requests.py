"""From untrusted JSON to turns, options and a choice of model, or one clear sentence."""

import asyncio
import re
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct
from starlette.requests import Request

from mmchat.client.protocol import ImagePart, Options, Role, Turn
from mmchat.client.wire import REFERENCE
from mmchat.engine.image_store import PictureStore
from mmchat.engine.worker import Choice
from mmchat.errors import ImageError, MmchatError
from mmchat.images import parse_data_url

MAX_BODY = 128 * 1024 * 1024
"""Bytes of a request; a picture is uploaded once, so that only stock clients come near."""
MAX_STOPS = 16
SHA256 = re.compile(r"[0-9a-f]{64}")

_T = TypeVar("_T")


class RequestError(MmchatError):
    """The request cannot be answered as it is."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str = "invalid_request",
        missing: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.missing = missing


class _ImageUrl(Struct, forbid_unknown_fields=True):
    url: str
    detail: str = "auto"


class _TextPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class _ImageUrlPart(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: _ImageUrl


class _Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart | _ImageUrlPart] | None
    name: str | None = None


class _StreamOptions(Struct):
    include_usage: bool | None = False


class _ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text"]


class _Extra(Struct, forbid_unknown_fields=True):
    adapter: str | None = None
    quantization: Literal["auto", "4bit", "bf16", "fp32"] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None


class ChatRequest(Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/chat/completions`: what is honoured, and what may be sent in vain.

    An option that would change the answer and is not honoured is refused, never ignored.
    """

    messages: list[_Message]
    model: str | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    x_mmchat: _Extra | None = None
    # Sent by stock clients; accepted where they ask for nothing.
    n: Literal[1] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    response_format: _ResponseFormat | None = None
    logit_bias: dict[str, float] | None = None
    tools: Any = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class LoadRequest(Struct, forbid_unknown_fields=True):
    """The body of `POST /x_mmchat/load`; what is left out stays as it is."""

    model: str | None = None
    adapter: str | None = None
    quantization: Literal["auto", "4bit", "bf16", "fp32"] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None


class AdapterRequest(Struct, forbid_unknown_fields=True):
    """The body of `POST /x_mmchat/adapter`."""

    adapter: str


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The whole body; RequestError as soon as it exceeds `limit`."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RequestError(
                f"The request is larger than {limit // 2**20} MB: send smaller pictures.",
                413,
                "too_large",
            )
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, kind: type[_T]) -> _T:
    """The body as `kind`; RequestError names the field that is wrong."""
    body = await read_body(request)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"The request cannot be used: {_lowered(str(error))}.") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"The request is not valid JSON: {_lowered(str(error))}.") from error


def _lowered(text: str) -> str:
    return (text[:1].lower() + text[1:]).rstrip(".").replace("`", "'")


def choice_of(asked: ChatRequest) -> Choice:
    extra = asked.x_mmchat or _Extra()
    return Choice(asked.model or None, extra.adapter, extra.quantization, extra.device)


def options_of(asked: ChatRequest, defaults: Options) -> Options:
    """The options with what is left out taken from `defaults`; RequestError where out of range."""
    if asked.tools is not None:
        raise RequestError("tools is not supported: leave it out.")
    if asked.logit_bias:
        raise RequestError("logit_bias is not supported: leave it out.")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(asked, name):
            raise RequestError(f"{name} is not supported: leave it out, or use repetition_penalty.")
    if asked.logprobs:
        raise RequestError("logprobs is not supported: leave it out.")
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stop) > MAX_STOPS or "" in stop:
        raise RequestError(f"stop has to be at most {MAX_STOPS} strings, none of them empty.")
    max_tokens = asked.max_completion_tokens
    given = {
        "temperature": asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "max_tokens": asked.max_tokens if max_tokens is None else max_tokens,
        "seed": asked.seed,
    }
    options = msgspec.structs.replace(
        defaults, stop=stop, **{name: value for name, value in given.items() if value is not None}
    )
    _require(0 <= options.temperature <= 100, "temperature", "from 0 to 100")
    _require(options.top_k >= 0, "top_k", "0 (all tokens) or more")
    _require(0 < options.top_p <= 1, "top_p", "above 0 and at most 1")
    _require(0 <= options.min_p < 1, "min_p", "from 0 to below 1")
    _require(0 < options.repetition_penalty <= 100, "repetition_penalty", "above 0, at most 100")
    _require(1 <= options.max_tokens < 2**31, "max_tokens", "1 or more")
    _require(
        options.seed is None or -(2**63) <= options.seed < 2**63, "seed", "an integer of 64 bits"
    )
    return options


def _require(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise RequestError(f"{name} has to be {wanted}.")


async def turns_of(asked: ChatRequest, pictures: PictureStore) -> tuple[Turn, ...]:
    """The conversation with every picture's bytes; RequestError where something lacks."""
    if not asked.messages:
        raise RequestError("messages is empty: send at least one message of the user.")
    if asked.messages[-1].role != "user":
        raise RequestError("The last message has to be the user's.")
    missing: dict[str, None] = {}
    turns = []
    for message in asked.messages:
        role: Role = "system" if message.role == "developer" else message.role
        content = message.content
        if content is None:
            if role != "assistant":  # whose message was nothing but a call of a tool
                raise RequestError(f"The content of {role}'s message has to be text or parts.")
            content = ""
        parts: list[str | ImagePart] = []
        for part in [_TextPart(content)] if isinstance(content, str) else content:
            if isinstance(part, _TextPart):
                parts.append(part.text)
                continue
            if role != "user":
                raise RequestError(f"A picture may stand in the user's messages, not in {role}'s.")
            picture = await _picture(part.image_url.url, pictures)
            if isinstance(picture, ImagePart):
                parts.append(picture)
            else:
                missing[picture] = None
        turns.append(Turn(role, tuple(parts)))
    if missing:
        raise RequestError(
            f"The engine does not have {len(missing)} of the pictures: upload them to "
            "/x_mmchat/images/SHA256 and send the request again.",
            404,
            "image_not_found",
            tuple(missing),
        )
    return tuple(turns)


async def _picture(url: str, pictures: PictureStore) -> ImagePart | str:
    """The picture a URL stands for, or the sha256 of one that has to be uploaded first."""
    if url.startswith(REFERENCE):
        sha256 = url.removeprefix(REFERENCE)
        if not SHA256.fullmatch(sha256):
            raise RequestError(f"{REFERENCE} has to be followed by 64 hexadecimal digits.")
        return pictures.get(sha256) or sha256
    if not url[:5].lower() == "data:":
        raise RequestError(
            "image_url has to be a data URL (data:image/png;base64,…): the engine fetches nothing "
            "from the network and reads no files."
        )
    try:
        picture = await asyncio.to_thread(parse_data_url, url)
    except ImageError as error:
        raise RequestError(str(error), code="invalid_image") from error
    return ImagePart(picture.sha256, picture.mime, picture.data)
