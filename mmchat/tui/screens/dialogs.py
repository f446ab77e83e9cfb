"""Small dialogs over the conversation: yes or no, a text, one of a list."""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from mmchat.errors import HistoryError
from mmchat.sanitize import clean
from mmchat.tui.labels import MUTED
from mmchat.tui.widgets.input import LinesInput

Save = Callable[[str], Awaitable[object]]
"""Saves a text; raises HistoryError."""


class ConfirmScreen(ModalScreen[bool]):
    """Asks before something that cannot be undone. Esc, and Enter at first, change nothing."""

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


class EditScreen(ModalScreen[None]):
    """Base of the dialogs that edit a text.

    They close when the text is saved: what a person wrote is not lost to a full disk, a locked
    file or a mistake in the text. The reason is shown, and the text can be edited again.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel")]
    KEYS = "Enter saves   Esc cancels"

    def __init__(self, question: str, value: str, save: Save, placeholder: str = "") -> None:
        super().__init__()
        self._question, self._save, self._placeholder = question, save, placeholder
        self._value = clean(value)
        self._error_for = ""
        """The text that could not be saved."""

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(clean(self._question), markup=False)
            yield self._make_field()
            yield Static("", classes="error", markup=False)
            yield Static(self.KEYS, classes="keys", markup=False)

    def on_mount(self) -> None:
        self._show_error("")

    def _make_field(self) -> Input | LinesInput:
        """The widget that the text is edited in."""
        raise NotImplementedError

    def _set_text(self, text: str) -> None:
        """Put a text into that widget."""
        raise NotImplementedError

    def _submit(self, text: str) -> None:
        if text == self._value:
            self.dismiss(None)
        else:
            self._save_text(text)

    @work(group="save")
    async def _save_text(self, text: str) -> None:
        # Disabled meanwhile: nothing can be typed that would be lost, nor the text saved twice.
        field = self.query_one(".field")
        self._set_text(text)
        field.disabled = True
        keys = self.query_one(".keys", Static)
        keys.update("Saving…")  # a locked history file takes a while
        try:
            await self._save(text)
        except HistoryError as error:
            self._error_for = text
            self._show_error(str(error))
            keys.update(self.KEYS)
            field.disabled = False
            field.focus()
        else:
            self.dismiss(None)

    def _text_changed(self, text: str) -> None:
        if text != self._error_for:
            self._show_error("")

    def _show_error(self, sentence: str) -> None:
        line = self.query_one(".error", Static)
        line.update(clean(sentence))
        line.display = bool(sentence)

    def action_cancel(self) -> None:
        if not self.query_one(".field").disabled:
            self.dismiss(None)


class TextScreen(EditScreen):
    """Edits a line of text; what is typed first replaces it."""

    def _make_field(self) -> Input:
        self._value = clean(self._value, keep_newlines=False)
        return Input(self._value, placeholder=self._placeholder, compact=True, classes="field")

    def _set_text(self, text: str) -> None:
        field = self.query_one(Input)
        field.value = text
        field.select_on_focus = False  # the next key edits the text, and does not replace it

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._text_changed(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._submit(event.value)


class WordsScreen(TextScreen):
    """Edits a line of words; what is typed first is another word, after those that are there."""

    def _make_field(self) -> Input:
        field = super()._make_field()
        if self._value:
            self._value += " "
        field.value = self._value
        field.cursor_position = len(self._value)
        field.select_on_focus = False
        return field


class LinesScreen(EditScreen):
    """Edits a text of several lines."""

    KEYS = "Enter saves   Ctrl+J adds a line   Esc cancels"

    def _make_field(self) -> LinesInput:
        return LinesInput(placeholder=self._placeholder, classes="field")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(".dialog").add_class("wide")
        self._set_text(self._value)
        self.query_one(LinesInput).focus()

    def _set_text(self, text: str) -> None:
        self.query_one(LinesInput).set_text(text)

    @on(LinesInput.Changed)
    def _changed(self, event: LinesInput.Changed) -> None:
        self._text_changed(event.text_area.text)

    @on(LinesInput.Submitted)
    def _submitted(self, event: LinesInput.Submitted) -> None:
        event.stop()
        self._submit(event.text)


class PickScreen(ModalScreen[str | None]):
    """Chooses one of a list; typing narrows the list. The result is None after Esc."""

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
        """
        items: value, label and description of each; the value is the result.
        empty: shown if the list is empty.
        """
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
        self._update("")

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._update(event.value)

    def _update(self, wanted: str) -> None:
        wanted = wanted.strip().lower()
        shown = self.query_one(OptionList)
        shown.clear_options()
        matches = [
            (place, item)
            for place, item in enumerate(self._items)
            if wanted in item[1].lower() or wanted in item[2].lower()
        ]
        width = max((len(clean(label, False)) for _, (_, label, _) in matches), default=0)
        for place, (value, label, about) in matches:
            current = value == self._current
            row = Content.assemble(
                ("● " if current else "  ", "$primary"),
                (clean(label, False).ljust(width + 3), "bold" if current else ""),
                (clean(about, False), MUTED),
            )
            shown.add_option(Option(row, id=str(place)))
            if current or shown.highlighted is None:
                shown.highlighted = shown.option_count - 1
        self.query_one(".keys", Static).update(self._keys if matches else self._empty)

    def action_move(self, step: int) -> None:
        shown = self.query_one(OptionList)
        if step > 0:
            shown.action_cursor_down()
        else:
            shown.action_cursor_up()

    @on(Input.Submitted)
    def _entered(self) -> None:
        shown = self.query_one(OptionList)
        if shown.highlighted is not None:
            shown.action_select()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        assert event.option.id is not None  # each row has its place as id
        self.dismiss(self._items[int(event.option.id)][0])
