"""Conversations, messages, models and pictures as short texts for people."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from mmchat.display.text import one_line
from mmchat.history import Conversation, Message
from mmchat.history.turns import TOO_LONG
from mmchat.sanitize import clean

UNTITLED = "New conversation"
RATINGS = {"good": "▲ good", "bad": "▼ bad"}


def title(conversation: Conversation | None) -> str:
    """The title of a conversation, as it is shown."""
    return (one_line(conversation.title) if conversation else "") or UNTITLED


def tag_words(tags: Iterable[str]) -> str:
    """`#birds #kites`."""
    return " ".join(f"#{one_line(tag, 40)}" for tag in tags)


def author(message: Message) -> str:
    """Who wrote a message: `you`, `mmchat`, or the person who corrected mmchat."""
    if message.role == "user":
        return "you"
    return "mmchat, corrected by you" if message.by_person else "mmchat"


def clock(moment: float, now: float) -> str:
    """`14:02` today, `3 Nov 14:02` this year, else with the year."""
    when, today = datetime.fromtimestamp(moment), datetime.fromtimestamp(now)
    if when.date() == today.date():
        return f"{when:%H:%M}"
    if when.date() == today.date() - timedelta(days=1):
        return f"yesterday {when:%H:%M}"
    day = f"{when.day} {when:%b}"
    return f"{day} {when:%H:%M}" if when.year == today.year else f"{day} {when.year}"


def picture_label(name: str, width: int, height: int) -> str:
    """`barn.jpg · 3024×4032`."""
    return f"{one_line(name, 60) or 'picture'} · {width}×{height}"


def model_label(model: str, adapter: str, quantization: str, device: str) -> str:
    """`scenes · birds · 4-bit · cpu`; empty parts are left out."""
    quantization = re.sub(r"^4bit$", "4-bit", quantization)
    parts = (model_name(model), model_name(adapter), quantization, device)
    return " · ".join(part for part in parts if part)


def model_name(name: str) -> str:
    """The short name of a model or an adapter: of a path, the last part."""
    name = one_line(name, 80)
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def is_too_long(answer: Message) -> bool:
    """Whether an answer failed because its question does not fit into the model's context."""
    return answer.origin is not None and TOO_LONG in answer.origin.parameters


def notes(message: Message) -> list[tuple[str, str]]:
    """The notes under an answer: (kind, sentence), kind "error" or "note"."""
    parameters = message.origin.parameters if message.origin else {}
    said: list[tuple[str, str]] = []
    if message.state == "failed":
        said.append(("error", clean(message.error) or "The answer failed."))
    elif message.state == "interrupted":
        said.append(("error", "Interrupted: mmchat ended while this was being written."))
    elif message.state == "stopped":
        said.append(("note", "Stopped." if message.text else "Stopped before the first word."))
    elif message.state == "length":
        limit = parameters.get("max_tokens")
        made = message.origin.completion_tokens if message.origin else None
        if made is not None and isinstance(limit, int) and made < limit:
            said.append(
                ("note", f"Cut at {made:,} tokens: the context is full; begin a new conversation.")
            )
        else:
            at = f" at {limit:,} tokens" if isinstance(limit, int) else ""
            said.append(("note", f"Cut{at}: raise generation.max_tokens, or ask to go on."))
    dropped = parameters.get("dropped_turns")
    if isinstance(dropped, int) and dropped > 0:
        what = "The oldest message" if dropped == 1 else f"The {dropped} oldest messages"
        were = "was" if dropped == 1 else "were"
        said.append(("note", f"{what} no longer fit into the context and {were} left out."))
    return said


def with_log(sentence: str, log_file: str | Path) -> str:
    """An error of the engine with the name of its log, unless the sentence has it already."""
    sentence = clean(sentence, keep_newlines=False)
    if not str(log_file) or str(log_file) in sentence:
        return sentence
    return f"{sentence.rstrip('.')}. Its log: {log_file}"
