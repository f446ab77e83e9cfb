"""Numbers, times and states as the words that stand on the screen. No widgets here."""

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

from mmchat.history import Conversation, Message, Origin
from mmchat.history.turns import TOO_LONG
from mmchat.sanitize import clean

UNTITLED = "New conversation"
MUTED = "$foreground 60%"
"""The style of what is beside the point."""


def one_line(text: str, limit: int = 200) -> str:
    """Foreign text for a title, a row or a label: clean, one line, cut at `limit`."""
    text = clean(text[: limit * 4], keep_newlines=False)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def title(conversation: Conversation | None) -> str:
    """What a conversation is called."""
    return (one_line(conversation.title) if conversation else "") or UNTITLED


def tag_words(tags: Iterable[str]) -> str:
    """`#birds #kites`."""
    return " ".join(f"#{one_line(tag, 40)}" for tag in tags)


RATINGS = {"good": "▲ good", "bad": "▼ bad"}


def author(message: Message) -> str:
    """Who wrote a message: `you`, `mmchat`, or the person in mmchat's place."""
    if message.role == "user":
        return "you"
    return "mmchat, corrected by you" if message.by_person else "mmchat"


def group(updated: float, now: float) -> str:
    """The heading that a conversation stands under."""
    days = (date.fromtimestamp(now) - date.fromtimestamp(updated)).days
    return "Today" if days <= 0 else "Yesterday" if days == 1 else "Earlier"


def grouped(
    conversations: Iterable[Conversation], now: float
) -> list[tuple[str, list[Conversation]]]:
    """Conversations, newest first, under their headings."""
    groups: list[tuple[str, list[Conversation]]] = []
    for conversation in conversations:
        heading = group(conversation.updated, now)
        if not groups or groups[-1][0] != heading:
            groups.append((heading, []))
        groups[-1][1].append(conversation)
    return groups


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
    """`scenes · birds · 4-bit · cpu`; what is empty is left out."""
    quantization = re.sub(r"^4bit$", "4-bit", quantization)
    parts = (model_name(model), model_name(adapter), quantization, device)
    return " · ".join(part for part in parts if part)


def model_name(name: str) -> str:
    """A model or an adapter in few letters: a folder by its last part."""
    name = one_line(name, 80)
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def worn(origin: Origin | None) -> str:
    """`birds 3fa2c1d`: the adapter of an answer and the beginning of its hash; empty for none."""
    if origin is None or not origin.adapter:
        return ""
    name = one_line(model_name(origin.adapter), 24)
    return f"{name} {origin.adapter_hash[:7]}".strip()


def speed(origin: Origin | None) -> str:
    """`41 tok/s`, or nothing."""
    rate = origin.tokens_per_second if origin else None
    if not rate or rate <= 0:
        return ""
    return f"{rate:.0f} tok/s" if rate >= 10 else f"{rate:.1f} tok/s"


def made(origin: Origin | None, compared: bool = False) -> str:
    """`birds 3fa2c1d · 41 tok/s`: how an answer was made; of one that is compared, by what."""
    if compared:
        return worn(origin) or "no adapter"
    return " · ".join(part for part in (worn(origin), speed(origin)) if part)


def tokens(origin: Origin | None, context: int, *, short: bool = False) -> str:
    """`412 of 8,192 tokens, 98 of them pictures`: what the last answer held in all."""
    if origin is None or origin.prompt_tokens is None:
        return ""
    used = origin.prompt_tokens + (origin.completion_tokens or 0)
    of = f" of {context:,}" if context > 0 else ""
    pictures = origin.image_tokens or 0
    if short:
        return f"{used:,}{f'/{context:,}' if context > 0 else ''} tokens"
    return f"{used:,}{of} tokens" + (f", {pictures:,} of them pictures" if pictures else "")


def bar(fraction: float, width: int) -> tuple[str, str]:
    """A progress bar as its done and its open part, `width` cells together."""
    fraction = min(max(fraction, 0.0), 1.0)
    done = int(fraction * width * 2 + 0.5)
    full, half = divmod(done, 2)
    return "━" * full + "╸" * half, "━" * (width - full - half)


def place(number: int) -> str:
    """A place in the engine's line."""
    return "waiting: next in line" if number <= 1 else f"waiting: place {number} in line"


def is_too_long(answer: Message) -> bool:
    """Whether an answer failed because its question does not fit into the model's context."""
    return answer.origin is not None and TOO_LONG in answer.origin.parameters


def notes(message: Message) -> list[tuple[str, str]]:
    """What is to be said under an answer: (kind, sentence), kind "error" or "note"."""
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
        said.append(("note", dropped_note(dropped)))
    return said


def dropped_note(turns: int) -> str:
    what = "The oldest message" if turns == 1 else f"The {turns} oldest messages"
    return f"{what} no longer fit into the context and {'was' if turns == 1 else 'were'} left out."


def with_log(sentence: str, log_file: str | Path) -> str:
    """An engine's error with the name of its log, where it does not stand there yet."""
    sentence = clean(sentence, keep_newlines=False)
    if not str(log_file) or str(log_file) in sentence:
        return sentence
    return f"{sentence.rstrip('.')}. Its log: {log_file}"


def snippet_parts(snippet: str, marks: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """A search snippet in pieces: (text, is marked)."""
    parts: list[tuple[str, bool]] = []
    at = 0
    for start, end in marks:
        if start > at:
            parts.append((snippet[at:start], False))
        parts.append((snippet[start:end], True))
        at = end
    if at < len(snippet):
        parts.append((snippet[at:], False))
    return [(clean(text, True).replace("\n", " "), marked) for text, marked in parts if text]
