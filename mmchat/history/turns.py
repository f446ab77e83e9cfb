"""A branch as the turns that a model is asked with and trained on: one rule for both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmchat.history.types import Message, StoredImage
from mmchat.marks import place_pictures

TOO_LONG = "too_long"
"""A key in the parameters of an answer whose question was too long for the model."""


@dataclass(frozen=True, slots=True)
class Said:
    """One turn: texts and pictures, in reading order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | StoredImage, ...]


def as_asked(branch: Sequence[Message], system: str) -> list[Said]:
    """The turns of a conversation, with the pictures at their marks.

    Empty answers (failed, stopped at once) are left out, and user messages that follow each other
    become one turn, because chat templates need alternating roles. A message that was too long
    for the model is left out, too: with it, every later one would be too long.
    """
    made: list[Said] = []
    if system.strip():
        made.append(Said("system", (system,)))
    too_long = {one.parent_id for one in branch if one.origin and TOO_LONG in one.origin.parameters}
    for message in branch:
        if message.id in too_long:
            continue
        if message.role == "assistant":
            if message.text.strip():
                made.append(Said("assistant", (message.text,)))
            continue
        parts = place_pictures(message.text, message.images)
        if made and made[-1].role == "user":
            made[-1] = Said("user", (*made[-1].parts, "\n\n", *parts))
        else:
            made.append(Said("user", parts))
    return made
