"""Slash commands, parsed. No widgets here."""

import difflib
import re
from dataclasses import dataclass

from mmchat.tui.actions import ACTIONS, BY_ID, Action

_COMMAND = re.compile(r"/([a-z-]+)(?:\s+(.*))?\Z", re.DOTALL | re.IGNORECASE)
_AS_TEXT = "Begin with a space to send it as text."


@dataclass(frozen=True, slots=True)
class Command:
    """`/attach a.png`: an action and its argument."""

    action: Action
    argument: str


class UnknownCommandError(Exception):
    """A text looks like a command, but is not one; the message is for the person."""


def parse(text: str) -> Command | None:
    """The command in `text`, or None if it is a message.

    Only text that begins with one slash and a word is a command: a path such as
    `/home/me/a.png` is not, nor is `//` or `/ `, nor text that begins with a space.

    Raises UnknownCommandError if there is no such command, or if it takes no argument.
    """
    match = _COMMAND.match(text.rstrip())
    if match is None:
        return None
    word, argument = match[1].lower(), (match[2] or "").strip()
    action = BY_ID.get(word)
    if action is None:
        near = difflib.get_close_matches(word, list(BY_ID), n=1)
        hint = f"Did you mean /{near[0]}?" if near else "Type / to see them all."
        raise UnknownCommandError(f"There is no command /{word}. {hint} {_AS_TEXT}")
    if argument and not action.argument:
        raise UnknownCommandError(f"/{word} takes no argument. {_AS_TEXT}")
    return Command(action, argument)


def matching(prefix: str) -> list[Action]:
    """The actions whose id begins with `prefix`, then those that contain it."""
    prefix = prefix.lower()
    first = [action for action in ACTIONS if action.id.startswith(prefix)]
    return first + [a for a in ACTIONS if prefix in a.id and a not in first]
