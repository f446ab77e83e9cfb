"""The input: several lines; Enter sends; keys for the suggestions above it are passed on."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from mmchat.images import PICTURE_SUFFIXES
from mmchat.sanitize import clean
from mmchat.tui.pasted import paths

NavigationKey = Literal["up", "down", "enter", "tab", "chips"]
"""A key of the input for what is around it; "chips" moves to the attached pictures."""


class LinesInput(TextArea):
    """A text area that grows with its text: Enter submits it, Shift+Enter begins a line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", id="input.send"),
        Binding("shift+enter,ctrl+j,alt+enter", "newline", "New line", id="input.newline"),
    ]

    class Submitted(Message):
        """Enter was pressed on `text`."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, **arguments: Any) -> None:
        super().__init__(soft_wrap=True, compact=True, highlight_cursor_line=False, **arguments)

    def set_text(self, text: str) -> None:
        """Replace the text, cleaned, with the cursor at its end."""
        self.text = clean(text)
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        self.submit()

    def submit(self) -> None:
        """Post the text and empty the input: what is typed from now on belongs to the next text."""
        text = self.text
        self.set_text("")
        self.post_message(self.Submitted(text))

    def action_newline(self) -> None:
        self.insert("\n")
        self.scroll_cursor_visible()

    async def _on_key(self, event: events.Key) -> None:
        # Here, not in a binding: bindings are checked when the key has bubbled up to the app, and
        # what was typed after Enter meanwhile would be sent too. Textual's own handler, which is
        # called next, would insert a line break.
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.action_submit()
        elif event.key == "tab":
            event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert_paste(event.text)

    def insert_paste(self, text: str) -> None:
        """Insert pasted text, cleaned."""
        self.replace(clean(text), *self.selection)
        self.scroll_cursor_visible()


class ChatInput(LinesInput):
    """Where a message is written; posts what is done in it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "tab", "Use the suggestion", id="input.take", show=False),
        Binding("up", "up", "Up", show=False),
        Binding("left", "left", "Left", show=False),
        Binding("right", "right", "Right", show=False),
        Binding("down", "down", "Down", show=False),
        Binding("pageup", "scroll(-1)", "Scroll up", show=False),
        Binding("pagedown", "scroll(1)", "Scroll down", show=False),
        Binding("ctrl+home", "scroll(-9)", "To the beginning", show=False),
        Binding("ctrl+end", "scroll(9)", "To the end", show=False),
        Binding("backspace", "backspace", "Delete left", show=False),
    ]

    class PicturesPasted(Message):
        """The paths of pictures were pasted, or files were dropped."""

        def __init__(self, paths: list[Path]) -> None:
            super().__init__()
            self.paths = paths

    class Navigated(Message):
        """A key for what is around the input, pressed when `text` was in it."""

        def __init__(self, key: NavigationKey, text: str) -> None:
            super().__init__()
            self.key = key
            self.text = text

    class Scrolled(Message):
        """A key that scrolls the conversation; `pages` beyond ±1 is to its end or beginning."""

        def __init__(self, pages: int) -> None:
            super().__init__()
            self.pages = pages

    suggesting = False
    """Set by the composer while it shows suggestions: up, down, Enter and Tab are for them."""
    choosing = False
    """Set while the examples are shown: in an empty input, the arrow keys and Enter are for them."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(placeholder="Ask about a picture", **arguments)

    @property
    def cursor(self) -> int:
        """The cursor as an offset into `text`."""
        row, column = self.cursor_location
        return sum(len(line) + 1 for line in self.document.lines[:row]) + column

    def _navigate(self, key: NavigationKey) -> None:
        self.post_message(self.Navigated(key, self.text))

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "tab":  # here for the same reason as Enter
            event.stop()
            event.prevent_default()
            self.action_tab()

    def action_submit(self) -> None:
        if self.suggesting or (self.choosing and not self.text):
            self._navigate("enter")
        else:
            self.submit()

    def action_tab(self) -> None:
        if self.suggesting:
            self._navigate("tab")
        else:
            self.screen.focus_next()

    def action_up(self) -> None:
        if self.suggesting or (self.choosing and not self.text):
            self._navigate("up")
        elif self.cursor_at_first_line:
            self._navigate("chips")
        else:
            self.action_cursor_up()

    def action_down(self) -> None:
        if self.suggesting or (self.choosing and not self.text):
            self._navigate("down")
        else:
            self.action_cursor_down()

    def action_left(self) -> None:
        if self.choosing and not self.text:
            self._navigate("up")
        else:
            self.action_cursor_left()

    def action_right(self) -> None:
        if self.choosing and not self.text:
            self._navigate("down")
        else:
            self.action_cursor_right()

    def action_backspace(self) -> None:
        if self.text:
            self.action_delete_left()
        else:
            self._navigate("chips")

    def action_scroll(self, pages: int) -> None:
        self.post_message(self.Scrolled(pages))

    def insert_paste(self, text: str) -> None:
        """Attach pictures whose paths were pasted; insert any other text, cleaned."""
        found = paths(text, PICTURE_SUFFIXES)
        if found:
            self.post_message(self.PicturesPasted(found))
        else:
            super().insert_paste(text)
