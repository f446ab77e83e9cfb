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
"""Keeps the text; raises HistoryError."""


class EditInput(LinesInput):
    """A text of its own, not a message: Enter begins a line."""

    def action_submit(self) -> None:
        self.action_newline()


class CorrectScreen(ModalScreen[Message | None]):
    """Starts from the answer; gives what was kept, None where it was left as it was.

    It closes only when the text is kept: what a person wrote is not lost to a
    full disk or a locked file.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", priority=True),
        Binding("ctrl+g", "edit", "Your editor", priority=True),
        Binding("escape", "cancel", "Cancel", priority=True),
    ]

    def __init__(self, text: str, save: Save, may_wait: Callable[[], bool]) -> None:
        """`may_wait`: whether the app may stand still while an editor has the terminal."""
        super().__init__()
        self._text, self._save, self._may_wait = text, save, may_wait
        self._before = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Static("What should the answer have been?", markup=False)
            yield EditInput()
            yield Static("", id="correct-problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Static("Ctrl+G opens your $EDITOR", classes="hint", markup=False)
                yield Button("Cancel (Esc)", id="cancel", compact=True)
                yield Button("Save (Ctrl+S)", id="save", compact=True, variant="primary")

    def on_mount(self) -> None:
        self.box.take_text(self._text)
        self._before = self.box.text
        self.box.focus()
        self._tell("")

    @property
    def box(self) -> EditInput:
        return self.query_one(EditInput)

    def _tell(self, sentence: str) -> None:
        line = self.query_one("#correct-problem", Static)
        line.update(clean(sentence))
        line.display = bool(sentence)

    @on(EditInput.Changed)
    def _changed(self) -> None:
        self._tell("")

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
            self._keep(self.box.text)

    @work(group="keep")
    async def _keep(self, text: str) -> None:
        # Locked while it is kept: neither a second save nor words that would be lost.
        self.box.disabled = self.query_one("#save").disabled = True
        try:
            kept = await self._save(text)
        except HistoryError as error:
            self.box.disabled = self.query_one("#save").disabled = False
            self.box.focus()
            self._tell(str(error))
        else:
            self.dismiss(kept)

    def action_cancel(self) -> None:
        if self.box.disabled:
            return
        if self.box.text == self._before:
            self.dismiss(None)
        else:
            self._ask_to_drop()

    @work(exclusive=True, group="ask")
    async def _ask_to_drop(self) -> None:
        question = "Discard what you have written?"
        if await self.app.push_screen_wait(ConfirmScreen(question, "Discard", "Keep writing")):
            self.dismiss(None)

    def action_edit(self) -> None:
        """The person's own editor, which has the terminal until it ends."""
        command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if self.box.disabled:
            return
        if not command:
            self._tell("No editor is configured: set EDITOR, for example to nano.")
        elif not self._may_wait():
            self._tell("An answer is still being written: open the editor when it is finished.")
        else:
            with self.app.suspend():
                text, problem = _edited(command, self.box.text)
            if problem:
                self._tell(problem)
            else:
                self.box.take_text(text)
            self.box.focus()


def _edited(command: str, text: str) -> tuple[str, str]:
    """What `command` made of `text`, and what went wrong."""
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
