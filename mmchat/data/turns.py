"""Turns the messages of a sample into the turns of an example."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmchat.data.sample_errors import SampleError, printable
from mmchat.data.types import Example, Picture, Role, Turn

Part = str | Picture

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "person": "user",
    # What a tool returned is read but never learned (LLaMA-Factory's observation, OpenAI's tool).
    "observation": "user",
    "tool": "user",
    "function": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
}


@dataclass(slots=True)
class Message:
    """One message, with its pictures in their places."""

    role: Role
    parts: list[Part] = field(default_factory=list)

    @property
    def has_picture(self) -> bool:
        return any(isinstance(part, Picture) for part in self.parts)


def role_of(name: object) -> Role:
    """The role that data calls `name`; raises SampleError."""
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise SampleError(
            f"a message has an unknown role ({printable(name)}): write user or assistant"
        )
    return role


def example_of(
    messages: Sequence[Message], kind: str, place: str, *, only_last: bool = False
) -> Example:
    """The example that `messages` make.

    Messages of one role in a row become one. An answer before the first question is left
    out, and so is what follows the last answer. Raises SampleError if that leaves no sound
    conversation.
    """
    turns = _merged(messages)
    first = 1 if turns and turns[0].role == "system" else 0
    if any(message.role == "system" for message in turns[first:]):
        raise SampleError("a system message stands in the middle of it")
    if turns[first:] and turns[first].role == "assistant":
        del turns[first]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise SampleError("it has no question with an answer")
    for message in turns:
        if message.role == "assistant" and not message.parts:
            raise SampleError("an answer is empty")
        if message.role == "user" and not message.parts:
            raise SampleError("a question is empty")
        if message.role != "user" and message.has_picture:
            raise SampleError("a picture stands in an answer, and only questions can show one")
    made = tuple(Turn(message.role, tuple(message.parts)) for message in turns)
    return Example(made, kind, place, only_last=only_last)


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Messages of alternating roles, stripped of white space, without empty system messages."""
    found: list[Message] = []
    for message in messages:
        parts = _stripped(message.parts)
        if message.role == "system" and not parts:
            continue
        if not found or found[-1].role != message.role:
            found.append(Message(message.role, parts))
        elif parts:
            before = found[-1].parts
            if before and isinstance(before[-1], str):
                before.append("\n\n")
            before += parts
    for message in found:
        message.parts = _joined(message.parts)
    return found


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring texts as one, without empty ones; raises SampleError for invalid Unicode."""
    found: list[Part] = []
    text: list[str] = []
    for part in [*parts, None]:
        if isinstance(part, str):
            text.append(part)
            continue
        if whole := "".join(text):
            found.append(_checked(whole))
        text.clear()
        if part is not None:
            found.append(part)
    return found


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError("a text holds half a character (a lone surrogate)") from error
    return text


def _stripped(parts: Sequence[Part]) -> list[Part]:
    """The parts without white space at both ends."""
    if len(parts) == 1 and isinstance(parts[0], str):  # most messages
        text = parts[0].strip()
        return [text] if text else []
    found = _joined(parts)
    if found and isinstance(found[0], str):
        found[0] = found[0].lstrip()
    if found and isinstance(found[-1], str):
        found[-1] = found[-1].rstrip()
    return [part for part in found if part != ""]
