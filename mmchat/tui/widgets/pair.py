"""Two answers to the same question: side by side if there is room, else below each other."""

from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.widgets import Static

from mmchat.tui.widgets.message import MessageView

KEYS = "Ctrl+↑ Ctrl+↓ choose one, Enter continues with it, Esc closes the other"


class Pair(Vertical):
    """Two answers in the place of one, while they are compared."""

    def __init__(self, first: MessageView, second: MessageView) -> None:
        super().__init__()
        self._views = (first, second)

    def compose(self) -> ComposeResult:
        with Container(classes="two"):
            yield from self._views
        yield Static(KEYS, markup=False, classes="keys")
