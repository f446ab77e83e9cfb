"""The OpenAI chat-completions protocol as the client writes and reads it."""

import base64
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from mmchat.client.protocol import ERROR_CODES, Event, Options
from mmchat.errors import EngineError, MmchatError
from mmchat.settings import named_folder
from mmchat.turns import ImagePart, Turn

REFERENCE = "x-mmchat:sha256:"
MAX_LINE = 16 * 1024 * 1024
"""Characters of one server-sent event; a server that sends more is refused."""
JSON = {"content-type": "application/json"}
_SURROGATES = re.compile("[\ud800-\udfff]")


class _ChunkDelta(Struct):
    content: str | None = None


class _ChunkChoice(Struct):
    delta: _ChunkDelta | None = None
    finish_reason: str | None = None


class Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(Struct):
    """What is read of a streamed chunk; servers send much more."""

    choices: list[_ChunkChoice] = []
    model: str | None = None
    usage: Usage | None = None
    error: Any = None


class EngineChunk(Chunk):
    """A chunk of our own engine."""

    x_mmchat: Event | None = None


_C = TypeVar("_C", bound=Chunk)


def encoded(body: dict[str, Any]) -> bytes:
    """A request's JSON; lone surrogates, which UTF-8 does not have, become U+FFFD."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text).encode()


def checked_name(name: str) -> str:
    """A model's or adapter's name. Raises EngineError if it is not UTF-8, as a file's name may be."""
    if _SURROGATES.search(name):
        shown = _SURROGATES.sub("\ufffd", name)
        raise EngineError(f"The name {shown} is not valid UTF-8: rename the folder.")
    return name


def absolute_name(name: str) -> str:
    """A folder's absolute path, because the engine runs in another folder; any other name as it is.

    Raises EngineError if the name is not valid UTF-8.
    """
    name = checked_name(name)
    if os.sep not in name and not name.startswith((".", "~")):
        return name
    folder = named_folder(name)
    return name if folder is None else str(folder)


def messages(turns: Sequence[Turn[ImagePart]], by_reference: bool) -> list[dict[str, Any]]:
    """OpenAI messages, with pictures by their sha256 or as data URLs.

    Raises EngineError if the bytes for a data URL are missing.
    """
    return [_message(turn, by_reference) for turn in turns]


def _message(turn: Turn[ImagePart], by_reference: bool) -> dict[str, Any]:
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


def options(chosen: Options, everything: bool) -> dict[str, Any]:
    """The request's options.

    everything: False leaves out those that have their default, except the standard ones, because
    some servers refuse names that they do not know.
    """
    named = msgspec.structs.asdict(chosen)
    named["stop"] = list(chosen.stop)
    if everything:
        return named
    always = {"temperature", "max_tokens"}
    default = msgspec.structs.asdict(Options())
    default["stop"] = []
    return {
        name: value for name, value in named.items() if name in always or value != default[name]
    }


def read_chunk(data: str, kind: type[_C]) -> _C:
    """One event's data as a chunk. Raises EngineError if it is something else."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EngineError(
            f"The answer is not the chat-completions protocol ({error}): check engine.url."
        ) from error


class ErrorObject(Struct):
    """The content of an error reply."""

    message: str
    missing: list[str]
    """The sha256 of pictures that have to be uploaded first."""
    code: str = ""

    def raised(self, sentence: str) -> MmchatError:
        """`sentence` as the error that the code stands for; EngineError for an unknown code."""
        return ERROR_CODES.get(self.code, EngineError)(sentence)


def error_object(body: bytes) -> ErrorObject:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ErrorObject(body.decode(errors="replace").strip()[:500], [])
    return parsed_error(parsed)


def parsed_error(parsed: Any) -> ErrorObject:
    """An error reply, or a chunk with an `error`, in the different forms that servers send."""
    inner = parsed.get("error") if isinstance(parsed, dict) else None
    if not isinstance(inner, dict):
        return ErrorObject(error_sentence(parsed), [])
    missing: Any = inner.get("x_mmchat")
    missing = missing.get("missing") if isinstance(missing, dict) else None
    return ErrorObject(
        error_sentence(parsed),
        [str(one) for one in missing] if isinstance(missing, list) else [],
        str(inner.get("code") or ""),
    )


def error_sentence(body: Any) -> str:
    """The sentence in an error body, in the different forms that servers send."""
    if isinstance(body, dict):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return error_sentence(body[name])
    return body.strip()[:500] if isinstance(body, str) else ""


async def server_sent(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The data of each server-sent event, until `[DONE]`; comments and other fields are skipped.

    lines: split at line feeds only, because U+2028 and others are text. Raises EngineError for an
    event that does not end.
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
            whole = "\n".join(data)
            data, size = [], 0
            if whole.strip() == "[DONE]":
                return
            yield whole
    if data and "\n".join(data).strip() != "[DONE]":  # the last empty line is missing
        yield "\n".join(data)


async def split_lines(parts: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines of UTF-8, from pieces that may end within a character."""
    rest = b""
    async for part in parts:
        rest += part
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").removesuffix("\r")
        if len(rest) > MAX_LINE:
            raise EngineError("The server sends a line that does not end: check engine.url.")
    if rest:
        yield rest.decode(errors="replace").removesuffix("\r")


def model_names(body: bytes) -> list[str]:
    """The ids in a reply to `GET /models`; empty if it is something else."""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return []
    listed = parsed.get("data") if isinstance(parsed, dict) else None
    entries = listed if isinstance(listed, list) else []
    return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id")]
