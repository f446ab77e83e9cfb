"""Where a message is written: the input, attached pictures, suggestions, errors."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, HorizontalScroll, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from mmchat.display.text import one_line
from mmchat.errors import ImageError
from mmchat.images import PICTURE_SUFFIXES, Picture, read_picture
from mmchat.sanitize import clean
from mmchat.tui.completion import Choices, Suggestion, suggest
from mmchat.tui.labels import MUTED
from mmchat.tui.widgets.input import ChatInput, NavigationKey
from mmchat.tui.widgets.picture import Thumbnail

_SUFFIXES = tuple(sorted(PICTURE_SUFFIXES))


class Chip(Horizontal, can_focus=True, can_focus_children=False):
    """An attached picture: a thumbnail, its number, its name, and a way to remove it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete,backspace,x", "remove", "Remove the picture", id="chip.remove"),
        Binding("left", "app.focus_previous", "Previous picture", show=False),
        Binding("right", "app.focus_next", "Next picture", show=False),
        Binding("down,enter", "leave", "Back to the text", id="chip.leave"),
    ]

    class Removed(Message):
        def __init__(self, chip: "Chip") -> None:
            super().__init__()
            self.chip = chip

    class Left(Message):
        """Down or Enter was pressed: back to the input."""

    class Cross(Static):
        def on_click(self, event: events.Click) -> None:
            event.stop()
            if isinstance(self.parent, Horizontal) and self.parent.parent is not None:
                chip = next(node for node in self.ancestors if isinstance(node, Chip))
                chip.action_remove()

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self.picture = picture

    def compose(self) -> ComposeResult:
        picture = self.picture
        yield Thumbnail(
            picture.sha256, picture.width, picture.height, lambda: self.picture, columns=8, rows=3
        )
        with Vertical(classes="about"):
            with Horizontal(classes="top"):
                yield Static("", markup=False, classes="name")
                yield Chip.Cross("✕", markup=False, classes="cross")
            yield Static(f"{picture.width}×{picture.height}", markup=False, classes="size")
            yield Static("Del removes", markup=False, classes="how")

    def set_number(self, number: int) -> None:
        """Show the number by which the text refers to the picture."""
        name = one_line(self.picture.name, 22)
        self.query_one(".name", Static).update(f"[{number}] {name}")

    def action_remove(self) -> None:
        self.post_message(self.Removed(self))

    def action_leave(self) -> None:
        self.post_message(self.Left())


class Composer(Vertical):
    """A message before it is sent; the screen gets it as `ChatInput.Submitted`."""

    class AttachRequested(Message):
        """A picture was chosen from the suggestions."""

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

    def __init__(self, choices: Choices, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._choices = choices
        self._suggestions: list[Suggestion] = []
        self._suggested_for = ""
        """The text that the suggestions are for."""
        self._waiting_key: tuple[NavigationKey, str] | None = None
        """A key that was pressed before the suggestions for its text came, and that text."""
        self._closed_for = ""
        """The text for which the person closed the suggestions."""
        self._error_for = ""
        """The text that the error is about; another text removes the error."""

    def compose(self) -> ComposeResult:
        yield OptionList(id="suggestions", compact=True, markup=False)
        yield Static("", id="error", markup=False)
        yield Static("", id="remarks", markup=False)
        yield HorizontalScroll(id="chips", can_focus=False)
        with Horizontal(id="line"):
            yield Static("❯", id="prompt", markup=False)
            yield ChatInput(id="input")
            yield Static("@ attach   / commands", id="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one("#suggestions").can_focus = False
        for part in ("#suggestions", "#error", "#remarks", "#chips"):
            self.query_one(part).display = False

    @property
    def input(self) -> ChatInput:
        return self.query_one(ChatInput)

    # Pictures

    @property
    def pictures(self) -> list[Picture]:
        """The attached pictures, in order."""
        return [chip.picture for chip in self.query(Chip)]

    async def attach(self, files: Sequence[Path]) -> bool:
        """Read and attach picture files; False, with an error next to the input, if one fails."""
        errors: list[str] = []
        for file in files:
            try:
                picture = await asyncio.to_thread(read_picture, file)
            except ImageError as error:
                errors.append(str(error))
            else:
                await self.add_picture(picture)
        if errors:
            self.show_error("  ".join(errors))
        return not errors

    async def add_picture(self, picture: Picture) -> None:
        await self.query_one("#chips").mount(Chip(picture))
        self._update_chips()
        self.show_error("")

    async def remove_pictures(self) -> None:
        await self.query_one("#chips").remove_children()
        self._update_chips()

    @on(Chip.Removed)
    async def _removed(self, event: Chip.Removed) -> None:
        event.stop()
        await event.chip.remove()
        self._update_chips()
        left = list(self.query(Chip))
        (left[-1] if left else self.input).focus()

    @on(Chip.Left)
    def _left(self, event: Chip.Left) -> None:
        event.stop()
        self.input.focus()

    def _update_chips(self) -> None:
        """Number the pictures, and show what was noticed when they were read."""
        chips = list(self.query(Chip))
        self.query_one("#chips").display = bool(chips)
        remarks = [clean(chip.picture.remark, False) for chip in chips if chip.picture.remark]
        line = self.query_one("#remarks", Static)
        line.update("\n".join(dict.fromkeys(remarks)))
        line.display = bool(remarks)
        for number, chip in enumerate(chips, 1):
            chip.set_number(number)

    # Errors

    def show_error(self, sentence: str) -> None:
        """Show a sentence next to the input; empty removes it."""
        line = self.query_one("#error", Static)
        line.update(clean(sentence, keep_newlines=False))
        line.display = bool(sentence)
        self._error_for = self.input.text

    def restore(self, text: str, error: str = "") -> None:
        """Put back a message or command that failed, before what was typed since then.

        `error`, or the error that is shown already, stays until the text is edited.
        """
        text += self.input.text
        self._closed_for = self._error_for = text
        self.input.set_text(text)
        if error:
            self.show_error(error)

    # Suggestions

    @on(ChatInput.Changed)
    def _changed(self, event: ChatInput.Changed) -> None:
        self.query_one("#hint").display = not self.input.text
        if self.input.text and self.input.text != self._error_for:
            self.show_error("")
        if self.input.text != self._closed_for:
            self._closed_for = ""
        self._update_suggestions()

    @on(ChatInput.SelectionChanged)
    def _update_suggestions(self) -> None:
        text = self.input.text
        if self._waiting_key is not None and text != self._waiting_key[1]:
            self._waiting_key = None  # more was typed since: the key was not meant for that
        if self._closed_for or not (text.startswith("/") or "@" in text):
            self._show_suggestions([])
            return
        self._suggest(text, self.input.cursor)

    @work(exclusive=True, group="suggest")
    async def _suggest(self, text: str, cursor: int) -> None:
        # In a thread, because a folder may be on a slow disk.
        found = await asyncio.to_thread(
            suggest, text, cursor, suffixes=_SUFFIXES, choices=self._choices
        )
        if self.input.text == text and not self._closed_for:
            self._show_suggestions(found)

    def _show_suggestions(self, found: Sequence[Suggestion]) -> None:
        self._suggested_for = self.input.text
        shown = self.query_one("#suggestions", OptionList)
        self._suggestions = list(found)
        # A complete command needs no list with itself as the only line.
        if len(found) == 1 and found[0].insert.rstrip() == self.input.text:
            self._suggestions = []
        shown.display = self.input.suggesting = bool(self._suggestions)
        shown.clear_options()
        width = max((len(one.label) for one in self._suggestions), default=0)
        shown.add_options(
            Option(Content(one.label.ljust(width + 3)) + Content.styled(one.detail, MUTED))
            for one in self._suggestions
        )
        if self._suggestions:
            shown.highlighted = 0
        waiting, self._waiting_key = self._waiting_key, None
        if waiting is not None and self._suggestions:
            self.navigate(*waiting)
        elif waiting is not None and waiting[0] == "enter":
            self.input.submit()

    def close_suggestions(self) -> bool:
        """Hide the suggestions until the text changes; False if none are shown."""
        if not self._suggestions:
            return False
        self._closed_for = self.input.text
        self._waiting_key = None
        self._show_suggestions([])
        return True

    def navigate(self, key: NavigationKey, text: str) -> None:
        """Handle a key of the input, pressed on `text`, for the suggestions or the chips."""
        shown = self.query_one("#suggestions", OptionList)
        if key == "chips":
            chips = list(self.query(Chip))
            if chips:
                chips[-1].focus()
        elif key == "up":
            shown.action_cursor_up()
        elif key == "down":
            shown.action_cursor_down()
        elif text != self.input.text:
            return  # more was typed since
        elif self._suggested_for != text:
            # The suggestions are still those for an earlier text: the key waits for the new ones.
            self._waiting_key = (key, text)
        elif shown.highlighted is not None and shown.highlighted < len(self._suggestions):
            self._accept(self._suggestions[shown.highlighted], send=key == "enter")

    @on(OptionList.OptionSelected, "#suggestions")
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.input.focus()
        if event.option in event.option_list.options:  # else the list has changed since then
            self._accept(self._suggestions[event.option_index], send=True)

    def _accept(self, one: Suggestion, send: bool) -> None:
        text = self.input.text
        changed = text[: one.start] + one.insert + text[one.end :]
        if one.attach is not None:
            if changed.strip().lower() == "/attach":
                changed = ""
            self.input.set_text(changed)
            self.post_message(self.AttachRequested(one.attach))
            return
        # Enter on a complete command runs it, even if an argument could follow.
        complete = one.insert.rstrip() == text
        self.input.set_text(text if send and complete else changed)
        if send and (one.submit or complete):
            self.input.submit()
