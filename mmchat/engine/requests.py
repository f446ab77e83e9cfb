"""From untrusted JSON to turns, options and a choice of model, or an error of one clear sentence."""

import asyncio
import codecs
import hashlib
import json
import re
from typing import Any, Literal, TypeVar

import msgspec
from cachetools import LRUCache
from msgspec import Struct
from starlette.requests import Request

from mmchat.client.protocol import Options
from mmchat.client.wire import REFERENCE, encode_json
from mmchat.engine.request_fields import RequestError, used_fields
from mmchat.engine.worker import ModelChoice
from mmchat.errors import ImageError
from mmchat.images import parse_data_url
from mmchat.sampling_params import LIMITS, SamplingError, SamplingParams
from mmchat.turns import ImagePart, Role, Turn

MAX_BODY = 128 * 1024 * 1024
"""The most bytes of a request. Only clients that send pictures as data URLs come near it."""
MAX_STORED = 512 * 1024 * 1024
"""The most bytes of all uploaded pictures; the least recently used is dropped first."""
MAX_STOPS = 16
SHA256 = re.compile(r"[0-9a-f]{64}")

_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")

_T = TypeVar("_T")


class _ImageUrl(Struct, forbid_unknown_fields=True):
    url: str


class _TextPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class _ImageUrlPart(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: _ImageUrl


class _ChatMessage(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart | _ImageUrlPart] | None


class _StreamOptions(Struct):
    include_usage: bool | None = False


class _Extra(Struct, forbid_unknown_fields=True):
    adapter: str | None = None
    quantization: Literal["auto", "4bit", "bf16", "fp32"] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None


class ChatRequest(Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/chat/completions`: the fields that have an effect."""

    messages: list[_ChatMessage]
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
    """What OpenAI's protocol has no field for. A client that sends it also reads `x_mmchat` in the reply."""

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class LoadRequest(Struct, forbid_unknown_fields=True):
    """The body of `POST /x_mmchat/load`; a missing field keeps its value."""

    model: str | None = None
    adapter: str | None = None
    quantization: Literal["auto", "4bit", "bf16", "fp32"] | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None


class AdapterRequest(Struct, forbid_unknown_fields=True):
    """The body of `POST /x_mmchat/adapter`."""

    adapter: str


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The whole body.

    Raises:
        RequestError: the body exceeds `limit` bytes; the rest of it is not read.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RequestError(
                f"The request is larger than {limit // 2**20} MB: send smaller pictures.",
                413,
                "request_too_large",
            )
        parts.append(part)
    return b"".join(parts)


async def read_chat(request: Request) -> ChatRequest:
    """The body of a chat request.

    Raises:
        RequestError: a field is wrong; the message names it.
    """
    body = _decoded(await read_body(request))
    return _typed(used_fields(body, frozenset(ChatRequest.__struct_fields__)), ChatRequest)


async def read_json(request: Request, kind: type[_T]) -> _T:
    """The body as `kind`; raises as `read_chat` does."""
    return _typed(_decoded(await read_body(request)), kind)


def _decoded(body: bytes) -> Any:
    """The JSON of a body, with or without a byte order mark; a lone surrogate becomes U+FFFD."""
    body = body.removeprefix(codecs.BOM_UTF8)
    if not body.strip():
        raise RequestError("The request is empty, so it is not valid JSON.", code="invalid_json")
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
    try:  # msgspec refuses lone surrogates, which Python accepts
        return msgspec.json.decode(encode_json(json.loads(body)))
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RequestError(
            f"The request is not valid JSON: {_lowered(reason)}.", code="invalid_json"
        ) from error


def _typed(body: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        sentence = str(error)
        field = _FIELD.search(sentence)
        missing = re.search("missing required field `(.*?)`", sentence)
        param = field[1] if field else ""
        if missing:
            param = f"{param}.{missing[1]}".lstrip(".")
        raise RequestError(
            f"The request cannot be used: {_lowered(sentence)}.",
            code="missing_required_parameter" if missing else "invalid_type",
            param=param or None,
        ) from error


def _lowered(text: str) -> str:
    return (text[:1].lower() + text[1:]).rstrip(".").replace("`", "'")


def model_choice(request: ChatRequest) -> ModelChoice:
    extra = request.x_mmchat or _Extra()
    return ModelChoice(request.model or None, extra.adapter, extra.quantization, extra.device)


def options_of(request: ChatRequest, defaults: Options) -> Options:
    """The options of a request; missing ones are taken from `defaults`.

    Raises:
        RequestError: an option is out of its range.
    """
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > MAX_STOPS or "" in stop:
        raise RequestError(
            f"stop must be at most {MAX_STOPS} strings, none of them empty.", param="stop"
        )
    given = {name: getattr(request, name) for name in SamplingParams.__struct_fields__}
    if request.max_completion_tokens is not None:
        given["max_tokens"] = request.max_completion_tokens
    if given["max_tokens"] == -1:  # llama.cpp, LM Studio and others: until the context is full
        given["max_tokens"] = int(LIMITS["max_tokens"].high)
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return msgspec.structs.replace(defaults, stop=stop, **given)
    except SamplingError as error:
        raise RequestError(str(error), param=error.parameter) from error


class ImageStore:
    """The original bytes of uploaded pictures, so that later requests need not send them again."""

    def __init__(self) -> None:
        self._images: LRUCache[str, ImagePart] = LRUCache(
            MAX_STORED, getsizeof=lambda image: len(image.data or b"")
        )

    def put(self, sha256: str, data: bytes, mime: str = "") -> bool:
        """Stores a picture; False if `sha256` is not the hash of `data`."""
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        self._images[sha256] = ImagePart(sha256, mime, data)
        return True

    def get(self, sha256: str) -> ImagePart | None:
        """The picture, or None; marks it as used."""
        image: ImagePart | None = self._images.get(sha256)
        return image


async def turns_of(request: ChatRequest, images: ImageStore) -> tuple[Turn[ImagePart], ...]:
    """The conversation of a request, with the bytes of every picture.

    Raises:
        RequestError: something is missing or wrong.
    """
    if not request.messages:
        raise RequestError("messages is empty: send at least one message.", param="messages")
    if request.messages[-1].role != "user":
        raise RequestError(
            "The last message must be the user's: this engine does not continue other messages.",
            param="messages",
        )
    missing: dict[str, None] = {}
    turns = []
    for place, message in enumerate(request.messages):
        role: Role = "system" if message.role == "developer" else message.role
        path = f"messages[{place}].content"
        if message.content is None or message.content == []:
            raise RequestError(
                f"{path} is empty, but must be a text or a list of parts.", param=path
            )
        parts: list[str | ImagePart] = []
        content = message.content
        for part in [_TextPart(content)] if isinstance(content, str) else content:
            if isinstance(part, _TextPart):
                parts.append(part.text)
                continue
            if role != "user":
                raise RequestError(
                    f"{path} has a picture, but only user messages can have pictures, not {role} messages.",
                    param=path,
                )
            picture = await _picture(part.image_url.url, images, path)
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
            "messages",
            tuple(missing),
        )
    return tuple(turns)


async def _picture(url: str, images: ImageStore, path: str) -> ImagePart | str:
    """The picture of a URL, or its sha256 if it has to be uploaded first."""
    if url.startswith(REFERENCE):
        sha256 = url.removeprefix(REFERENCE)
        if not SHA256.fullmatch(sha256):
            raise RequestError(
                f"{REFERENCE} must be followed by 64 hexadecimal digits.", param=path
            )
        return images.get(sha256) or sha256
    if url[:5].lower() != "data:":
        raise RequestError(
            "image_url must be a data URL (data:image/png;base64,…): the engine fetches nothing "
            "from the network and reads no files.",
            code="invalid_image_url",
            param=path,
        )
    try:
        picture = await asyncio.to_thread(parse_data_url, url)
    except ImageError as error:
        raise RequestError(str(error), code="invalid_image", param=path) from error
    return ImagePart(picture.sha256, picture.mime, picture.data)
