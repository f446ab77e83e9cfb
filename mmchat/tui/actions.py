"""What a person can do: one table of actions.

The command palette, the slash commands, the keys and the help screen are made from it, so an
action can be reached in all of these ways. Each one is an `action_...` method of the chat screen
or of the app.
"""

import re
from dataclasses import dataclass
from typing import Literal

Argument = Literal["", "path", "data", "model", "adapter", "adapters", "text"]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that can be done."""

    id: str
    """The name of the slash command, and with _ for - that of the `action_` method."""
    title: str
    """A few words, for the palette and the help."""
    key: str = ""
    """The keys in Textual's notation, several with commas; empty for none."""
    argument: Argument = ""
    """What may follow the slash command."""
    hint: str = ""
    """How the argument is written, for the list of commands."""
    namespace: Literal["", "app"] = ""
    """Whose `action_` method it is: the chat screen's, or the app's."""

    @property
    def method(self) -> str:
        """The name of the `action_` method, without `action_`."""
        return self.id.replace("-", "_")

    @property
    def target(self) -> str:
        """The action in Textual's notation: `attach` or `app.theme`."""
        return f"{self.namespace}.{self.method}".lstrip(".")


ACTIONS: tuple[Action, ...] = (
    Action("attach", "Attach a picture", "ctrl+o", "path", "PATH"),
    Action("new", "New conversation", "ctrl+n"),
    Action("conversations", "Show or hide the conversations", "ctrl+b"),
    Action("search", "Search all conversations", "ctrl+f", "text", "WORDS"),
    Action("rename", "Rename this conversation", "f2", "text", "TITLE"),
    Action("delete", "Delete this conversation", "f8"),
    Action("stop", "Stop the answer and keep its text", "escape"),
    Action("regenerate", "Answer again", "ctrl+r"),
    Action("previous-answer", "Previous answer", "alt+left"),
    Action("next-answer", "Next answer", "alt+right"),
    Action("good", "This answer is good", "f6,alt+up"),
    Action("bad", "This answer is bad", "f7,alt+down"),
    Action("correct", "Correct this answer", "ctrl+g"),
    Action("tag", "Tag this conversation", "ctrl+l", "text", "NAME"),
    Action("copy", "Copy the last answer", "ctrl+y"),
    Action("model", "Choose the model", "f3", "model", "NAME"),
    Action("adapter", "Choose the adapter", "f4", "adapter", "NAME"),
    Action("compare", "Compare two adapters", "", "adapters", "A B"),
    Action("system", "Set the system prompt", "f5", "text", "TEXT"),
    Action("train", "Train an adapter", "f9", "data", "FOLDER"),
    Action("theme", "Dark or light", "ctrl+t", namespace="app"),
    Action("help", "Keys and commands", "f1"),
    Action("quit", "Quit", "ctrl+q", namespace="app"),
)
BY_ID = {action.id: action for action in ACTIONS}

_NAMES = {
    "ctrl": "Ctrl",
    "alt": "Alt",
    "escape": "Esc",
    "enter": "Enter",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "delete": "Del",
    "backspace": "Backspace",
    "tab": "Tab",
    "space": "Space",
    "shift": "Shift",
}


def key_label(keys: str) -> str:
    """Keys as people write them: `"ctrl+o"` is `"Ctrl+O"`, `"shift+enter,f1"` is `"Shift+Enter, F1"`."""

    def one(key: str) -> str:
        *modifiers, last = key.split("+")
        if (modifiers and len(last) == 1) or re.fullmatch(r"f\d+", last):
            last = last.upper()
        return "+".join(_NAMES.get(part, part) for part in (*modifiers, last))

    return ", ".join(one(key) for key in keys.split(",") if key)
