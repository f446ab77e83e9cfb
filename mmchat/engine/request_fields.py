"""Which fields of a chat request are ignored, and which are refused.

Clients send many fields that this engine does not support, and send back messages of other servers. A field
that requests nothing is ignored. A field that would change the answer is refused, because a silent
difference is worse than an error.
"""

import json
from typing import Any

from mmchat.errors import MmchatError

_NO_EFFECT = frozenset(
    {
        "cache_prompt",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields that never change an answer of this engine."""

_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "modalities": (["text"],),
    "n": (1,),
    "reasoning_effort": ("none", "minimal", "medium", "auto", "default"),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields with the values that describe what this engine does anyway. Null is always accepted."""

_HINTS = {
    "frequency_penalty": " or use repetition_penalty",
    "presence_penalty": " or use repetition_penalty",
}
_UNSUPPORTED = frozenset(
    {
        *_HINTS,
        "audio",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)

_ASSISTANT_EXTRAS = frozenset(
    {
        "annotations",
        "finish_reason",
        "id",
        "model",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "refusal",
        "thinking",
        "thinking_blocks",
    }
)
"""Fields that servers add to an answer and clients send back; the text of the answer is in `content`."""


class RequestError(MmchatError):
    """The request cannot be answered. `param` is the field, `code` OpenAI's name for the error."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        missing: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.missing = missing
        """The sha256 of pictures that have to be uploaded first."""


def used_fields(body: Any, known: frozenset[str]) -> Any:
    """The request without the fields that have no effect; `known` are the fields that have one.

    Values of the wrong type are left to the typed check that follows.

    Raises:
        RequestError: a field would change the answer and is not supported.
    """
    if not isinstance(body, dict):
        return body
    used = {}
    for name, value in body.items():
        if name in known:
            used[name] = value
        elif not _has_no_effect(name, value):
            raise _refused(name, value)
    messages = used.get("messages")
    if isinstance(messages, list):
        used["messages"] = [
            _used_message(message, f"messages[{place}]") for place, message in enumerate(messages)
        ]
    return used


def _has_no_effect(name: str, value: Any) -> bool:
    if name in _ACCEPTED:
        return value is None or value in _ACCEPTED[name]
    return name in _NO_EFFECT or _is_nothing(value)


def _is_nothing(value: Any) -> bool:
    return not value or value in ("auto", "none", "default")


def _refused(name: str, value: Any) -> RequestError:
    if name in _ACCEPTED:
        shown = json.dumps(value)[:80]
        usual = "".join(f", or send {json.dumps(accepted)}" for accepted in _ACCEPTED[name][:1])
        return RequestError(
            f"{name} {shown} is not supported: leave it out{usual}.",
            code="unsupported_value",
            param=name,
        )
    if name in _UNSUPPORTED:
        return RequestError(
            f"{name} is not supported: leave it out{_HINTS.get(name, '')}.",
            code="unsupported_parameter",
            param=name,
        )
    return _unknown(name)


def _unknown(field: str) -> RequestError:
    return RequestError(
        f"The field '{field}' is unknown: leave it out.", code="unknown_parameter", param=field
    )


def _used_message(message: Any, path: str) -> Any:
    """{role, content} of one message."""
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    calls = [name for name in ("tool_calls", "function_call") if not _is_nothing(message.get(name))]
    if role in ("tool", "function") or calls:
        raise RequestError(
            f"{path} is part of a tool call: this engine has no tools, so leave out tool calls and "
            "their results.",
            code="unsupported_value",
            param=".".join([path, *calls[:1]]),
        )
    used = {}
    for name, value in message.items():
        if name in ("role", "content"):
            used[name] = value
        elif name in ("name", "cache_control") or _is_nothing(value):
            continue
        elif not (role == "assistant" and name in _ASSISTANT_EXTRAS):
            raise _unknown(f"{path}.{name}")
    if role == "assistant" and not used.get("content"):
        used["content"] = message.get("refusal") or ""
    content = used.get("content")
    if isinstance(content, list):
        used["content"] = [
            _used_part(part, f"{path}.content[{place}]") for place, part in enumerate(content)
        ]
    return used


def _used_part(part: Any, path: str) -> Any:
    """{type, text} or {type, image_url: {url}} of one part of a content."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if part.get("type") not in ("text", "image_url"):
        return part
    used = {}
    for name, value in part.items():
        if name in ("type", part["type"]):
            used[name] = value
        elif name not in ("cache_control", "annotations") and not _is_nothing(value):
            raise _unknown(f"{path}.{name}")
    image = used.get("image_url")
    if isinstance(image, str):  # some servers accept this form, and it has only one meaning
        used["image_url"] = {"url": image}
    elif isinstance(image, dict):
        for name, value in image.items():
            if name not in ("url", "detail") and not _is_nothing(value):
                raise _unknown(f"{path}.image_url.{name}")
        used["image_url"] = {name: image[name] for name in image if name == "url"}
    return used
