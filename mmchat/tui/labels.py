"""What only the app shows: headings, an answer's speed and tokens, search snippets. No widgets here."""

from collections.abc import Iterable, Sequence
from datetime import date

from mmchat.display.messages import model_name
from mmchat.display.text import one_line
from mmchat.history import Conversation, Origin
from mmchat.sanitize import clean

MUTED = "$foreground 60%"
"""The style of less important text."""


def group(updated: float, now: float) -> str:
    """The heading of a conversation in the list."""
    days = (date.fromtimestamp(now) - date.fromtimestamp(updated)).days
    return "Today" if days <= 0 else "Yesterday" if days == 1 else "Earlier"


def grouped(
    conversations: Iterable[Conversation], now: float
) -> list[tuple[str, list[Conversation]]]:
    """Conversations, newest first, grouped under their headings."""
    groups: list[tuple[str, list[Conversation]]] = []
    for conversation in conversations:
        heading = group(conversation.updated, now)
        if not groups or groups[-1][0] != heading:
            groups.append((heading, []))
        groups[-1][1].append(conversation)
    return groups


def adapter_label(origin: Origin | None) -> str:
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


def origin_summary(origin: Origin | None, compared: bool = False) -> str:
    """`birds 3fa2c1d · 41 tok/s`; if the answer is compared with another, only the adapter."""
    if compared:
        return adapter_label(origin) or "no adapter"
    return " · ".join(part for part in (adapter_label(origin), speed(origin)) if part)


def tokens(origin: Origin | None, context: int, *, short: bool = False) -> str:
    """`412 of 8,192 tokens, 98 of them pictures`: the prompt and the answer together."""
    if origin is None or origin.prompt_tokens is None:
        return ""
    used = origin.prompt_tokens + (origin.completion_tokens or 0)
    of = f" of {context:,}" if context > 0 else ""
    pictures = origin.image_tokens or 0
    if short:
        return f"{used:,}{f'/{context:,}' if context > 0 else ''} tokens"
    return f"{used:,}{of} tokens" + (f", {pictures:,} of them pictures" if pictures else "")


def queue_position(number: int) -> str:
    """A position in the engine's queue."""
    return "waiting: next in line" if number <= 1 else f"waiting: place {number} in line"


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
