"""Turns the messages of a sample into the turns of an example."""

from collections.abc import Iterable, Sequence

from mmchat.data.types import Example, Picture, SampleError, printable
from mmchat.turns import Role, Turn

Part = str | Picture

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "person": "user",
    # The output of a tool is context and is never learned (LLaMA-Factory's observation, OpenAI's tool).
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


def role_of(name: object) -> Role:
    """The role with the name `name` in a data file; raises SampleError if it is unknown."""
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise SampleError(
            f"a message has an unknown role ({printable(name)}): write user or assistant"
        )
    return role


def example_of(
    messages: Sequence[Turn[Picture]], kind: str, place: str, *, only_last: bool = False
) -> Example:
    """The example that the messages of a sample make.

    Messages of one role in a row become one. An answer before the first question is left out, and
    so is everything after the last answer. Raises SampleError if that leaves no usable conversation.
    """
    turns = _merged(messages)
    first = 1 if turns and turns[0].role == "system" else 0
    if any(turn.role == "system" for turn in turns[first:]):
        raise SampleError("a system message is in the middle of it, and it can only come first")
    if turns[first:] and turns[first].role == "assistant":
        del turns[first]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise SampleError("it has no question with an answer")
    for turn in turns:
        if turn.role == "assistant" and not turn.parts:
            raise SampleError("an answer is empty")
        if turn.role == "user" and not turn.parts:
            raise SampleError("a question is empty")
        if turn.role != "user" and turn.images:
            raise SampleError("a picture is in an answer, but only questions can have one")
    return Example(tuple(turns), kind, place, only_last=only_last)


def _merged(messages: Iterable[Turn[Picture]]) -> list[Turn[Picture]]:
    """Turns of alternating roles, stripped of white space, without empty system messages."""
    merged: list[tuple[Role, list[Part]]] = []
    for message in messages:
        parts = _stripped(message.parts)
        if message.role == "system" and not parts:
            continue
        if not merged or merged[-1][0] != message.role:
            merged.append((message.role, parts))
        elif parts:
            before = merged[-1][1]
            if before and isinstance(before[-1], str):
                before.append("\n\n")
            before += parts
    return [Turn(role, tuple(_joined(parts))) for role, parts in merged]


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
        raise SampleError("a text has half a character (a lone surrogate)") from error
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
