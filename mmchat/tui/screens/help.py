"""The help: every action with its key and its slash command, from the active bindings."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from mmchat.tui.actions import ACTIONS, key_label
from mmchat.tui.labels import MUTED

Row = tuple[str, str, str]
"""A key, what it does, its slash command."""


def rows(active: Sequence[ActiveBinding]) -> tuple[list[Row], list[Row]]:
    """The actions and the keys of the focused widget, from the active bindings."""
    keys: dict[str, list[str]] = {}
    about: dict[str, str] = {}
    for one in active:
        if one.binding.id:
            keys.setdefault(one.binding.id, []).append(one.binding.key)
            about[one.binding.id] = one.binding.description
    actions = [
        (
            key_label(",".join(keys.get(action.id, []))),
            action.title,
            f"/{action.id} {action.hint}".strip(),
        )
        for action in ACTIONS
    ]
    known = {action.id for action in ACTIONS}
    here = [
        (key_label(",".join(pressed)), about[name], "")
        for name, pressed in keys.items()
        if name not in known
    ]
    return actions, here


class HelpScreen(ModalScreen[None]):
    """The keys and commands that are available now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss(None)", "Close"),
        Binding("down", "scroll(1)", show=False),
        Binding("up", "scroll(-1)", show=False),
        Binding("pagedown", "scroll(10)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
    ]

    def __init__(self, active: Sequence[ActiveBinding]) -> None:
        super().__init__()
        self._actions, self._here = rows(active)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide tall"):
            yield Static("Keys and commands", classes="title", markup=False)
            with VerticalScroll(can_focus=False):
                yield Static(self._table(self._actions), markup=False)
                if self._here:
                    yield Static("Where you are", classes="title where", markup=False)
                    yield Static(self._table(self._here), markup=False)
                yield Static(
                    "\n[1] in a message marks the place of picture 1. Pictures without a mark "
                    "come before the text.",
                    classes="keys",
                    markup=False,
                )
            yield Static("Esc closes   ↑ ↓ scroll", classes="keys", markup=False)

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    @staticmethod
    def _table(table: Sequence[Row]) -> Content:
        left = max((len(key) for key, _, _ in table), default=0) + 3
        middle = max((len(title) for _, title, _ in table), default=0) + 3
        lines = [
            Content.assemble((key.ljust(left), "$primary"), title.ljust(middle), (command, MUTED))
            for key, title, command in table
        ]
        return Content("\n").join(lines)
