"""Events as OpenAI chat-completions JSON and server-sent events.

What that protocol has no word for travels in one more field, `x_mmchat`, of an
ordinary chunk whose delta is empty: stock clients pass over it.
"""

import time
import uuid
from typing import Any

import msgspec

from mmchat.client.protocol import Delta, Done, Event
from mmchat.engine.requests import RequestError
from mmchat.engine.worker import EndingError
from mmchat.errors import EngineError, MmchatError, TooLongError

END = b"data: [DONE]\n\n"


def sse(data: Any) -> bytes:
    """One server-sent event; JSON of msgspec holds no line break."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def error_body(error: MmchatError) -> dict[str, Any]:
    """OpenAI's error object."""
    body: dict[str, Any] = {"message": str(error), "type": "invalid_request_error", "param": None}
    if isinstance(error, RequestError):
        body["code"] = error.code
        if error.missing:
            body["x_mmchat"] = {"missing": error.missing}
    else:
        body["type"] = "server_error" if isinstance(error, EngineError) else "model_error"
        too_long = isinstance(error, TooLongError)
        body["code"] = TooLongError.CODE if too_long else type(error).__name__
    return {"error": body}


def status_code(error: MmchatError) -> int:
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, EndingError):
        return 503
    return 500 if isinstance(error, EngineError) else 422


class Completion:
    """One answer on its way out, as chunks or as a whole."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._text: list[str] = []
        self._done: Done | None = None

    def opening(self) -> bytes:
        return sse(self._chunk({"role": "assistant", "content": ""}))

    def chunk(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            return sse(self._chunk({"content": event.text}))
        if isinstance(event, Done):
            self._model = event.model or self._model
            return sse(self._chunk({}, _finish(event), event))
        return sse(self._chunk({}, None, event))

    def usage(self, done: Done) -> bytes:
        return sse({**self._chunk({}), "choices": [], "usage": _usage(done)})

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._text.append(event.text)
        elif isinstance(event, Done):
            self._done = event
            self._model = event.model or self._model

    def whole(self) -> dict[str, Any]:
        """The answer that was added up, for a request without `stream`."""
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
                    "finish_reason": _finish(done),
                }
            ],
            "usage": _usage(done),
            "x_mmchat": done,
        }

    def _chunk(
        self, delta: dict[str, str], finish: str | None = None, event: Event | None = None
    ) -> dict[str, Any]:
        chunk: dict[str, Any] = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        if event is not None:
            chunk["x_mmchat"] = event
        return chunk


def _finish(done: Done) -> str:
    return "length" if done.finish_reason == "length" else "stop"


def _usage(done: Done) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }
