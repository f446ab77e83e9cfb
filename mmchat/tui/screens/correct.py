"""The dialog in which a person writes what an answer should have been."""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from mmchat.errors import HistoryError
from mmchat.history import Message
from mmchat.sanitize import clean
from mmchat.tui.screens.dialogs import ConfirmScreen
from mmchat.tui.widgets.input import LinesInput

Save = Callable[[str], Awaitable[Message]]
"""Saves the text; raises HistoryError."""

_HINT = "Ctrl+G opens your $EDITOR"


class EditInput(LinesInput):
    """Enter begins a line: a text is not a message to be sent."""

    def action_submit(self) -> None:
        self.action_newline()


class CorrectScreen(ModalScreen[Message | None]):
    """Starts with the text of the answer. The result is the correction, None if there is none.

    It closes when the text is saved: what a person wrote is not lost to a full disk or a locked
    file.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("ctrl+g", "edit", "Your editor", priority=True),
        Binding("escape", "cancel", "Cancel", priority=True),
    ]

    def __init__(self, text: str, save: Save, can_suspend: Callable[[], bool]) -> None:
        """can_suspend: whether the app may pause now while an editor uses the terminal."""
        super().__init__()
        self._text, self._save, self._can_suspend = text, save, can_suspend
        self._before = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Static("What should the answer have been?", markup=False)
            yield EditInput()
            yield Static("", classes="error", markup=False)
            with Horizontal(classes="buttons"):
                yield Static(_HINT, classes="hint", markup=False)
                yield Button("Cancel (Esc)", id="cancel", compact=True)
                yield Button("Save (Ctrl+S)", id="save", compact=True, variant="primary")

    def on_mount(self) -> None:
        self.box.set_text(self._text)
        self._before = self.box.text
        self.box.focus()
        self._show_error("")

    @property
    def box(self) -> EditInput:
        return self.query_one(EditInput)

    def _show_error(self, sentence: str) -> None:
        line = self.query_one(".error", Static)
        line.update(clean(sentence))
        line.display = bool(sentence)

    @on(EditInput.Changed)
    def _changed(self) -> None:
        self._show_error("")

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "save":
            self.action_save()
        else:
            self.action_cancel()

    def action_save(self) -> None:
        if self.box.text == self._before:
            self.dismiss(None)
        else:
            self._save_text(self.box.text)

    @work(group="save")
    async def _save_text(self, text: str) -> None:
        # Disabled meanwhile: nothing can be typed that would be lost, nor the text saved twice.
        self._set_saving(True)
        try:
            correction = await self._save(text)
        except HistoryError as error:
            self._set_saving(False)
            self.box.focus()
            self._show_error(str(error))
        else:
            self.dismiss(correction)

    def _set_saving(self, saving: bool) -> None:
        self.box.disabled = self.query_one("#save").disabled = saving
        self.query_one(".hint", Static).update("Saving…" if saving else _HINT)

    def action_cancel(self) -> None:
        if self.box.disabled:
            return
        if self.box.text == self._before:
            self.dismiss(None)
        else:
            self._ask_to_discard()

    @work(exclusive=True, group="ask")
    async def _ask_to_discard(self) -> None:
        question = "Discard what you have written?"
        if await self.app.push_screen_wait(ConfirmScreen(question, "Discard", "Keep writing")):
            self.dismiss(None)

    def action_edit(self) -> None:
        """Open the person's own editor, which uses the terminal until it ends."""
        command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if self.box.disabled:
            return
        if not command:
            self._show_error("No editor is configured: set EDITOR, for example to nano.")
        elif not self._can_suspend():
            self._show_error(
                "An answer is still being written: open the editor when it is finished."
            )
        else:
            with self.app.suspend():
                text, error = _edit(command, self.box.text)
            if error:
                self._show_error(error)
            else:
                self.box.set_text(text)
            self.box.focus()


def _edit(command: str, text: str) -> tuple[str, str]:
    """Edit `text` with `command`: the new text, and an error if it failed."""
    with tempfile.TemporaryDirectory(prefix="mmchat-") as folder:
        file = Path(folder) / "answer.md"
        try:
            file.write_text(text, encoding="utf-8")
            code = subprocess.run([*shlex.split(command), str(file)], check=False).returncode
            if code:
                return "", f"The editor {command} ended with status {code}: the text is unchanged."
            return file.read_text(encoding="utf-8").removesuffix("\n"), ""
        except (OSError, ValueError) as error:  # no such program, no closing quote, not UTF-8
            return "", f"The editor {command} cannot be used ({error}): set EDITOR to another."
