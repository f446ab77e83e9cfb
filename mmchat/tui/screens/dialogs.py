"""Small questions over the conversation: yes or no, a line of text, one of a list."""

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from mmchat.sanitize import clean
from mmchat.tui.formatting import MUTED
from mmchat.tui.widgets.input import LinesInput


class ConfirmScreen(ModalScreen[bool]):
    """Asks before something that cannot be undone; Esc and Enter keep things as they are."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "No"),
        Binding("y", "answer(True)", "Yes"),
        Binding("left,right", "app.focus_next", "Other button", show=False),
    ]

    def __init__(self, question: str, yes: str, no: str = "Keep it") -> None:
        super().__init__()
        self._question, self._yes, self._no = question, yes, no

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(clean(self._question), markup=False)
            with Horizontal(classes="buttons"):
                yield Button(f"{self._no} (n)", id="no", compact=True)
                yield Button(f"{self._yes} (y)", id="yes", compact=True, variant="error")

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class TextScreen(ModalScreen[str | None]):
    """Asks for a line of text; None where it was left with Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: str, value: str, placeholder: str = "") -> None:
        super().__init__()
        self._question, self._value, self._placeholder = question, value, placeholder

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(clean(self._question), markup=False)
            yield Input(clean(self._value, False), placeholder=self._placeholder, compact=True)
            yield Static("Enter saves   Esc cancels", classes="keys", markup=False)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class LinesScreen(ModalScreen[str | None]):
    """Asks for a text of several lines; None where it was left as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: str, value: str, placeholder: str = "") -> None:
        super().__init__()
        self._question, self._value, self._placeholder = question, clean(value), placeholder

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Static(clean(self._question), markup=False)
            yield LinesInput(placeholder=self._placeholder)
            yield Static(
                "Enter saves   Ctrl+J adds a line   Esc cancels",
                classes="keys",
                markup=False,
            )

    def on_mount(self) -> None:
        lines = self.query_one(LinesInput)
        lines.take_text(self._value)
        lines.focus()

    @on(LinesInput.Submitted)
    def _submitted(self, event: LinesInput.Submitted) -> None:
        event.stop()
        self.dismiss(None if event.text == self._value else event.text)


class PickScreen(ModalScreen[str | None]):
    """One of a list: (name, a few words); typing narrows it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("down", "move(1)", "Down", show=False),
        Binding("up", "move(-1)", "Up", show=False),
    ]

    def __init__(
        self,
        title: str,
        items: Sequence[tuple[str, str, str]],
        current: str,
        empty: str,
        keys: str = "Enter selects it until mmchat closes   Esc cancels",
    ) -> None:
        """`items` are (value, label, words about it); `empty` stands there where none is left."""
        super().__init__()
        self._keys = keys
        self._title, self._items, self._current, self._empty = title, items, current, empty

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Static(self._title, classes="title", markup=False)
            yield Input(placeholder="type to narrow the list", compact=True)
            yield OptionList(compact=True, markup=False)
            yield Static("", classes="keys", markup=False)

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self._list("")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._list(event.value)

    def _list(self, wanted: str) -> None:
        wanted = wanted.strip().lower()
        shown = self.query_one(OptionList)
        shown.clear_options()
        kept = [
            (place, item)
            for place, item in enumerate(self._items)
            if wanted in item[1].lower() or wanted in item[2].lower()
        ]
        width = max((len(clean(label, False)) for _, (_, label, _) in kept), default=0)
        for place, (value, label, about) in kept:
            current = value == self._current
            row = Content.assemble(
                ("● " if current else "  ", "$primary"),
                (clean(label, False).ljust(width + 3), "bold" if current else ""),
                (clean(about, False), MUTED),
            )
            shown.add_option(Option(row, id=str(place)))
            if current or shown.highlighted is None:
                shown.highlighted = shown.option_count - 1
        self.query_one(".keys", Static).update(self._keys if kept else self._empty)

    def action_move(self, step: int) -> None:
        shown = self.query_one(OptionList)
        if step > 0:
            shown.action_cursor_down()
        else:
            shown.action_cursor_up()

    @on(Input.Submitted)
    def _taken(self) -> None:
        shown = self.query_one(OptionList)
        if shown.highlighted is not None:
            shown.action_select()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        assert event.option.id is not None  # each row is given its place as id
        self.dismiss(self._items[int(event.option.id)][0])
