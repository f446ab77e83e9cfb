"""Where a message is made: chips of attached pictures, the input, suggestions, complaints."""

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
from mmchat.images import PICTURE_SUFFIXES, Picture
from mmchat.sanitize import clean
from mmchat.tui.completion import Choices, Suggestion, suggest
from mmchat.tui.formatting import MUTED
from mmchat.tui.widgets.input import ChatInput
from mmchat.tui.widgets.picture import Thumbnail

_SUFFIXES = tuple(sorted(PICTURE_SUFFIXES))


class Chip(Horizontal, can_focus=True, can_focus_children=False):
    """An attached picture: a small view of it, its number, its name, and a way to remove it."""

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
        """Down or Enter: back to the input."""

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

    def number(self, number: int) -> None:
        """Its number is the mark by which the text names it."""
        name = one_line(self.picture.name, 22)
        self.query_one(".name", Static).update(f"[{number}] {name}")

    def action_remove(self) -> None:
        self.post_message(self.Removed(self))

    def action_leave(self) -> None:
        self.post_message(self.Left())


class Composer(Vertical):
    """Holds a message while it is made; what is sent goes to the screen as ChatInput.Submitted."""

    class AttachWanted(Message):
        """A picture was chosen from the suggestions."""

        def __init__(self, path: Path) -> None:
            super().__init__()
            self.path = path

    def __init__(self, choices: Choices, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._choices = choices
        self._suggestions: list[Suggestion] = []
        self._offered_for = ""
        self._wanted = ("", "")
        """The key that waits for a list, and the text whose list that is."""
        self._closed_for = ""
        self._complained_for = ""

    def compose(self) -> ComposeResult:
        yield OptionList(id="suggestions", compact=True, markup=False)
        yield Static("", id="complaint", markup=False)
        yield HorizontalScroll(id="chips", can_focus=False)
        with Horizontal(id="line"):
            yield Static("❯", id="prompt", markup=False)
            yield ChatInput(id="input")
            yield Static("@ attach   / commands", id="hint", markup=False)

    def on_mount(self) -> None:
        self.query_one("#suggestions").display = False
        self.query_one("#suggestions").can_focus = False
        self.query_one("#complaint").display = False
        self.query_one("#chips").display = False

    @property
    def input(self) -> ChatInput:
        return self.query_one(ChatInput)

    # Pictures

    @property
    def pictures(self) -> list[Picture]:
        """What is attached, in order."""
        return [chip.picture for chip in self.query(Chip)]

    async def add_picture(self, picture: Picture) -> None:
        await self.query_one("#chips").mount(Chip(picture))
        self._number()
        self.complain("")

    async def take(self) -> list[Picture]:
        """The attached pictures, which are no longer attached then."""
        pictures = self.pictures
        await self.query_one("#chips").remove_children()
        self._number()
        return pictures

    @on(Chip.Removed)
    async def _removed(self, event: Chip.Removed) -> None:
        event.stop()
        await event.chip.remove()
        self._number()
        left = list(self.query(Chip))
        (left[-1] if left else self.input).focus()

    @on(Chip.Left)
    def _left(self, event: Chip.Left) -> None:
        event.stop()
        self.input.focus()

    def _number(self) -> None:
        chips = list(self.query(Chip))
        self.query_one("#chips").display = bool(chips)
        for number, chip in enumerate(chips, 1):
            chip.number(number)

    # Complaints

    def complain(self, sentence: str) -> None:
        """A sentence next to the input; empty takes it away."""
        line = self.query_one("#complaint", Static)
        line.update(clean(sentence, keep_newlines=False))
        line.display = bool(sentence)
        self._complained_for = self.input.text

    def put_back(self, text: str, sentence: str = "") -> None:
        """A message or command that failed, to be mended; what was typed since follows it.

        `sentence`, or the complaint that is there, stays until it is touched.
        """
        text += self.input.text
        self._closed_for = self._complained_for = text
        self.input.take_text(text)
        if sentence:
            self.complain(sentence)

    # Suggestions

    @on(ChatInput.Changed)
    def _changed(self, event: ChatInput.Changed) -> None:
        self.query_one("#hint").display = not self.input.text
        if self.input.text and self.input.text != self._complained_for:
            self.complain("")
        if self.input.text != self._closed_for:
            self._closed_for = ""
        self._look()

    @on(ChatInput.SelectionChanged)
    def _look(self) -> None:
        text = self.input.text
        if text != self._wanted[1]:  # more was typed since: the key was not meant for that
            self._wanted = ("", "")
        if self._closed_for or not (text.startswith("/") or "@" in text):
            self._offer([])
            return
        self._suggest(text, self.input.cursor)

    @work(exclusive=True, group="suggest")
    async def _suggest(self, text: str, cursor: int) -> None:
        import asyncio

        # A folder may lie on a slow disk.
        found = await asyncio.to_thread(
            suggest, text, cursor, suffixes=_SUFFIXES, choices=self._choices
        )
        if self.input.text == text and not self._closed_for:
            self._offer(found)

    def _offer(self, found: Sequence[Suggestion]) -> None:
        self._offered_for = self.input.text
        shown = self.query_one("#suggestions", OptionList)
        self._suggestions = list(found)
        # A command that stands there whole needs no list of one line that says so.
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
        (wanted, text), self._wanted = self._wanted, ("", "")
        if wanted and self._suggestions:
            self.steer(wanted, text)
        elif wanted == "enter":
            self.input.submit()

    def close_suggestions(self) -> bool:
        """Esc: away with them until the text changes; False where none are shown."""
        if not self._suggestions:
            return False
        self._closed_for = self.input.text
        self._wanted = ("", "")
        self._offer([])
        return True

    def steer(self, where: str, text: str) -> None:
        """A key of the input, pressed on `text`, that is meant for the suggestions or the chips."""
        shown = self.query_one("#suggestions", OptionList)
        if where == "chips":
            chips = list(self.query(Chip))
            if chips:
                chips[-1].focus()
        elif where == "up":
            shown.action_cursor_up()
        elif where == "down":
            shown.action_cursor_down()
        elif text != self.input.text:
            return  # typed on since
        elif self._offered_for != text:
            # The list is still that of an earlier text: the key waits for the one that it means.
            self._wanted = (where, text)
        elif shown.highlighted is not None and shown.highlighted < len(self._suggestions):
            self._accept(self._suggestions[shown.highlighted], send=where == "enter")

    @on(OptionList.OptionSelected, "#suggestions")
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.input.focus()
        if event.option in event.option_list.options:  # else the list has changed since
            self._accept(self._suggestions[event.option_index], send=True)

    def _accept(self, one: Suggestion, send: bool) -> None:
        text = self.input.text
        changed = text[: one.start] + one.insert + text[one.end :]
        if one.attach is not None:
            if changed.strip().lower() == "/attach":
                changed = ""
            self.input.take_text(changed)
            self.post_message(self.AttachWanted(one.attach))
            return
        # Enter on a command that stands there whole runs it, also one that could take a word more.
        whole = one.insert.rstrip() == text
        self.input.take_text(text if send and whole else changed)
        if send and (one.submit or whole):
            self.input.submit()
