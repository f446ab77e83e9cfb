"""The input: several lines, Enter sends, the list of suggestions is steered from here."""

from typing import Any, ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from mmchat.images import PICTURE_SUFFIXES
from mmchat.sanitize import clean
from mmchat.tui.pasted import paths


class LinesInput(TextArea):
    """A text area that grows with its text: Enter hands it over, Shift+Enter begins a line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", id="input.send"),
        Binding("shift+enter,ctrl+j,alt+enter", "newline", "New line", id="input.newline"),
    ]

    class Submitted(Message):
        """Enter: `text` is handed over."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, **arguments: Any) -> None:
        super().__init__(soft_wrap=True, compact=True, highlight_cursor_line=False, **arguments)

    def take_text(self, text: str) -> None:
        """Replace the text, with the cursor at its end."""
        self.text = clean(text)
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        self.submit()

    def submit(self) -> None:
        """Hand the text over: what is typed from now on belongs to the next one."""
        text = self.text
        self.take_text("")
        self.post_message(self.Submitted(text))

    def action_newline(self) -> None:
        self.insert("\n")
        self.scroll_cursor_visible()

    async def _on_key(self, event: events.Key) -> None:
        # At once: the bindings are asked when the key has come up to the app, and what was typed
        # behind Enter meanwhile would be sent too. Not by Textual's own handler, which is called
        # next and would insert a line break.
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.action_submit()
        elif event.key == "tab":
            event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.take_paste(event.text)

    def take_paste(self, text: str) -> None:
        """Pasted text, cleaned."""
        self.replace(clean(text), *self.selection)
        self.scroll_cursor_visible()


class ChatInput(LinesInput):
    """Where a message is written; posts what is done in it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "tab", "Take the suggestion", id="input.take", show=False),
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
        """Paths were pasted or dropped; `words` as pictures to attach."""

        def __init__(self, found: list[Any]) -> None:
            super().__init__()
            self.paths = found

    class Steered(Message):
        """A key for what stands around the input: up, down, take, chips; `text` stood there then."""

        def __init__(self, where: str, text: str) -> None:
            super().__init__()
            self.where = where
            self.text = text

    class Scrolled(Message):
        """Page keys, while the text has one line: scroll the conversation."""

        def __init__(self, pages: int) -> None:
            super().__init__()
            self.pages = pages

    suggesting = False
    """Set by the composer while suggestions are shown: up, down, Enter and Tab are theirs."""
    choosing = False
    """Set by the screen while the examples are shown: an empty input steers them."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(placeholder="Ask about a picture", **arguments)

    @property
    def cursor(self) -> int:
        """The cursor as an offset into `text`."""
        row, column = self.cursor_location
        return sum(len(line) + 1 for line in self.document.lines[:row]) + column

    def _steer(self, where: str) -> None:
        self.post_message(self.Steered(where, self.text))

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "tab":  # at once, as Enter
            event.stop()
            event.prevent_default()
            self.action_tab()

    def action_submit(self) -> None:
        if self.suggesting or (self.choosing and not self.text):
            self._steer("enter")
        else:
            self.submit()

    def action_tab(self) -> None:
        if self.suggesting:
            self._steer("tab")
        else:
            self.screen.focus_next()

    def action_up(self) -> None:
        if self.suggesting or (self.choosing and not self.text):
            self._steer("up")
        elif self.cursor_at_first_line:
            self._steer("chips")
        else:
            self.action_cursor_up()

    def action_down(self) -> None:
        if self.suggesting or (self.choosing and not self.text):
            self._steer("down")
        else:
            self.action_cursor_down()

    def action_left(self) -> None:
        if self.choosing and not self.text:
            self._steer("up")
        else:
            self.action_cursor_left()

    def action_right(self) -> None:
        if self.choosing and not self.text:
            self._steer("down")
        else:
            self.action_cursor_right()

    def action_backspace(self) -> None:
        if self.text:
            self.action_delete_left()
        else:
            self._steer("chips")

    def action_scroll(self, pages: int) -> None:
        self.post_message(self.Scrolled(pages))

    def take_paste(self, text: str) -> None:
        """Paths of pictures are attached, anything else is inserted, cleaned."""
        found = paths(text, PICTURE_SUFFIXES)
        if found:
            self.post_message(self.PicturesPasted(found))
        else:
            super().take_paste(text)
