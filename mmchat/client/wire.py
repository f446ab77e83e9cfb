"""Encodes requests and decodes replies of OpenAI's chat-completions protocol."""

import base64
import json
import os
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from mmchat.client.protocol import ERROR_CODES, Event, Options
from mmchat.errors import EngineError, MmchatError
from mmchat.sanitize import replace_surrogates
from mmchat.settings import named_folder
from mmchat.turns import ImagePart, Turn

REFERENCE = "x-mmchat:sha256:"
MAX_LINE = 16 * 1024 * 1024
"""Characters of one server-sent event; a server that sends more is refused."""
JSON = {"content-type": "application/json"}


class _ChunkDelta(Struct):
    content: str | None = None


class _ChunkChoice(Struct):
    delta: _ChunkDelta | None = None
    finish_reason: str | None = None


class Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(Struct):
    """The used fields of a streamed chunk."""

    choices: list[_ChunkChoice] = []
    model: str | None = None
    usage: Usage | None = None
    error: Any = None


class EngineChunk(Chunk):
    """A chunk of our own engine."""

    x_mmchat: Event | None = None


_C = TypeVar("_C", bound=Chunk)


def encode_json(body: dict[str, Any]) -> bytes:
    """A request as JSON; lone surrogates, which UTF-8 cannot encode, become U+FFFD."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return replace_surrogates(text).encode()


def absolute_name(name: str) -> str:
    """A folder's absolute path, because the engine runs in another folder; other names unchanged.

    Raises EngineError if the name is not valid UTF-8, as a file name may be.
    """
    readable = replace_surrogates(name)
    if readable != name:
        raise EngineError(f"The name {readable} is not valid UTF-8: rename the folder.")
    if os.sep not in name and not name.startswith((".", "~")):
        return name
    folder = named_folder(name)
    return name if folder is None else str(folder)


def message(turn: Turn[ImagePart], *, by_reference: bool) -> dict[str, Any]:
    """A turn as an OpenAI message, with pictures by sha256 or as data URLs.

    Raises EngineError if the bytes for a data URL are missing.
    """
    if all(isinstance(part, str) for part in turn.parts):
        return {"role": turn.role, "content": "".join(map(str, turn.parts))}
    content: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            url = REFERENCE + part.sha256 if by_reference else _data_url(part)
            content.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": turn.role, "content": content}


def _data_url(part: ImagePart) -> str:
    if part.data is None:
        raise EngineError(
            f"The bytes of the picture {part.sha256[:12]} are missing: attach it again."
        )
    return f"data:{part.mime or 'image/png'};base64,{base64.b64encode(part.data).decode('ascii')}"


def request_options(options: Options, include_defaults: bool) -> dict[str, Any]:
    """The sampling parameters of a request.

    Without `include_defaults`, only the standard parameters and those that differ from their
    default are included, because some servers refuse unknown names.
    """
    values = msgspec.structs.asdict(options) | {"stop": list(options.stop)}
    if include_defaults:
        return values
    defaults = msgspec.structs.asdict(Options()) | {"stop": []}
    return {
        name: value
        for name, value in values.items()
        if name in ("temperature", "max_tokens") or value != defaults[name]
    }


def read_chunk(data: str, kind: type[_C]) -> _C:
    """Decodes the data of one event. Raises EngineError if it is not a chunk."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EngineError(
            f"The reply does not follow the chat-completions protocol ({error}): check engine.url."
        ) from error


class ErrorReply(Struct):
    """The content of an error reply."""

    message: str
    missing: list[str]
    """The sha256 of pictures to upload first."""
    code: str = ""

    def exception(self, sentence: str) -> MmchatError:
        """`sentence` as the exception for the code; EngineError for an unknown code."""
        return ERROR_CODES.get(self.code, EngineError)(sentence)


def read_error(body: bytes) -> ErrorReply:
    """Decodes an error reply, whatever its format."""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ErrorReply(body.decode(errors="replace").strip()[:500], [])
    return parse_error(parsed)


def parse_error(parsed: Any) -> ErrorReply:
    """Reads an error reply, or a chunk with an `error`, in the formats of different servers."""
    inner = parsed.get("error") if isinstance(parsed, dict) else None
    if not isinstance(inner, dict):
        return ErrorReply(error_sentence(parsed), [])
    missing: Any = inner.get("x_mmchat")
    missing = missing.get("missing") if isinstance(missing, dict) else None
    return ErrorReply(
        error_sentence(parsed),
        [str(one) for one in missing] if isinstance(missing, list) else [],
        str(inner.get("code") or ""),
    )


def error_sentence(body: Any) -> str:
    """The message in an error body, in the formats of different servers; "" if there is none."""
    if isinstance(body, dict):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return error_sentence(body[name])
    return body.strip()[:500] if isinstance(body, str) else ""


async def sse_data(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yields the data of each server-sent event until `[DONE]`; skips comments and other fields.

    `lines` must be split at line feeds only, because U+2028 and others are text. Raises
    EngineError if an event does not end.
    """
    data: list[str] = []
    size = 0
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
            size += len(line)
            if size > MAX_LINE:
                raise EngineError("The server sends an event that does not end: check engine.url.")
        elif line == "" and data:
            event_data = "\n".join(data)
            data, size = [], 0
            if event_data.strip() == "[DONE]":
                return
            yield event_data
    if data and "\n".join(data).strip() != "[DONE]":  # the last empty line is missing
        yield "\n".join(data)


async def split_lines(parts: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yields the lines of UTF-8 text in pieces that may end inside a character.

    Raises EngineError if a line does not end.
    """
    rest = b""
    async for part in parts:
        rest += part
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").removesuffix("\r")
        if len(rest) > MAX_LINE:
            raise EngineError("The server sends a line that does not end: check engine.url.")
    if rest:
        yield rest.decode(errors="replace").removesuffix("\r")


def model_names(body: bytes) -> list[str]:
    """The ids in a reply to `GET /models`; empty if the reply is invalid."""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return []
    listed = parsed.get("data") if isinstance(parsed, dict) else None
    entries = listed if isinstance(listed, list) else []
    return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id")]
