"""Encodes responses as OpenAI's chat-completions JSON and server-sent events.

What the protocol has no field for is in the field `x_mmchat` of an ordinary chunk with an empty
delta, which other clients ignore.
"""

import time
import uuid
from typing import Any

import msgspec
from starlette.responses import Response

from mmchat.client.protocol import ERROR_CODES, Delta, Done, EndingError, Event
from mmchat.engine.request_fields import RequestError
from mmchat.errors import (
    AdapterError,
    EngineError,
    ImageError,
    MmchatError,
    ModelError,
    ModelNotFoundError,
    TooLongError,
)

END = b"data: [DONE]\n\n"

_CODES = {kind: code for code, kind in ERROR_CODES.items()}
_STATUS: dict[type[MmchatError], int] = {
    ModelNotFoundError: 404,
    TooLongError: 400,
    ImageError: 400,
    EndingError: 503,
    EngineError: 500,
    # The request is valid, but the model or the adapter cannot answer it.
    ModelError: 422,
    AdapterError: 422,
}
_PARAMS: dict[type[MmchatError], str] = {
    ModelNotFoundError: "model",
    TooLongError: "messages",
    ImageError: "messages",
    AdapterError: "x_mmchat.adapter",
}


def sse(data: Any) -> bytes:
    """One server-sent event; msgspec's JSON has no line breaks."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def status_code(error: MmchatError) -> int:
    return error.status if isinstance(error, RequestError) else _STATUS[_error_class(error)]


def error_body(error: MmchatError) -> dict[str, Any]:
    """OpenAI's error object."""
    body: dict[str, Any] = {
        "message": str(error),
        "type": "server_error" if status_code(error) >= 500 else "invalid_request_error",
    }
    if isinstance(error, RequestError):
        body |= {"param": error.param, "code": error.code}
        if error.missing:
            body["x_mmchat"] = {"missing": error.missing}
    else:
        kind = _error_class(error)
        body |= {"param": _PARAMS.get(kind), "code": _CODES[kind]}
    return {"error": body}


def json_response(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def error_response(error: MmchatError) -> Response:
    response = json_response(error_body(error), status_code(error))
    if response.status_code in (401, 403, 413):  # the rest of the request is not read
        response.headers["connection"] = "close"
    return response


def _error_class(error: MmchatError) -> type[MmchatError]:
    """The class of `error`, or its base class, that has a code."""
    return next((kind for kind in type(error).__mro__ if kind in _CODES), EngineError)


class Completion:
    """Encodes one answer, as chunks or as one response."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._text: list[str] = []
        self._done: Done | None = None

    def first_chunk(self) -> bytes:
        return sse(self._chunk({"role": "assistant", "content": ""}))

    def chunk(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            return sse(self._chunk({"content": event.text}))
        if isinstance(event, Done):
            self._model = event.model or self._model
            return sse(self._chunk({}, _finish_reason(event), event))
        return sse(self._chunk({}, None, event))

    def usage_chunk(self, done: Done) -> bytes:
        """The chunk for `stream_options.include_usage`."""
        return sse({**self._chunk({}), "choices": [], "usage": _usage(done)})

    def add(self, event: Event) -> None:
        """Collects an event for `response`."""
        if isinstance(event, Delta):
            self._text.append(event.text)
        elif isinstance(event, Done):
            self._done = event
            self._model = event.model or self._model

    def response(self) -> dict[str, Any]:
        """The response to a request without `stream`."""
        done = self._done or Done("cancelled")
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "".join(self._text)},
                    "finish_reason": _finish_reason(done),
                }
            ],
            "usage": _usage(done),
            "x_mmchat": done,
        }

    def _chunk(
        self, delta: dict[str, str], finish_reason: str | None = None, event: Event | None = None
    ) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        }
        if event is not None:
            chunk["x_mmchat"] = event
        return chunk


def _finish_reason(done: Done) -> str:
    return "length" if done.finish_reason == "length" else "stop"


def _usage(done: Done) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }
