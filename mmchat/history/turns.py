"""A branch of a conversation as the turns that a model is asked with and trained on: one rule for both."""

from collections.abc import Sequence

from mmchat.history.types import Message, StoredImage
from mmchat.turns import Turn, place_pictures

TOO_LONG = "too_long"
"""A key in the parameters of an answer whose question was too long for the model."""


def branch_turns(branch: Sequence[Message], system: str) -> list[Turn[StoredImage]]:
    """The turns of `branch` after the system prompt, with the pictures at their marks.

    Empty answers (failed, or stopped at once) are left out. User messages that follow each other become
    one turn, because chat templates need alternating roles. A message that was too long for the model is
    left out as well: with it, every later one would be too long.
    """
    turns: list[Turn[StoredImage]] = []
    if system.strip():
        turns.append(Turn("system", (system,)))
    too_long = {one.parent_id for one in branch if one.origin and TOO_LONG in one.origin.parameters}
    for message in branch:
        if message.id in too_long:
            continue
        if message.role == "assistant":
            if message.text.strip():
                turns.append(Turn("assistant", (message.text,)))
            continue
        parts = place_pictures(message.text, message.images)
        if turns and turns[-1].role == "user":
            turns[-1] = Turn("user", (*turns[-1].parts, "\n\n", *parts))
        else:
            turns.append(Turn("user", parts))
    return turns
