"""The part of the training screen that starts a run: the training data and the name."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import Button, Input, OptionList, RadioButton, RadioSet, Static
from textual.widgets.option_list import Option

from mmchat.display.numbers import format_count, format_duration, format_percent, format_size
from mmchat.display.text import one_line
from mmchat.sanitize import clean
from mmchat.tui.completion import Suggestion, data_paths
from mmchat.tui.labels import MUTED
from mmchat.tui.pasted import as_path
from mmchat.tui.runs import TrainingPlan
from mmchat.tui.widgets.status import TitleLine

LOOKING = "Looking at the training data…"
NO_FOLDER = "Type a folder with pictures, or a file of conversations about them."


class PathInput(Input):
    """One line for a path; Up, Down and Tab are for the suggestions below it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "navigate('tab')", "Use the suggestion", show=False),
        Binding("down", "navigate('down')", "Down", show=False),
        Binding("up", "navigate('up')", "Up", show=False),
    ]

    class Navigated(Message):
        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def action_navigate(self, key: str) -> None:
        self.post_message(self.Navigated(key))


class PathField(Vertical):
    """A path, with suggestions."""

    class Changed(Message):
        """The path was edited."""

    class Left(Message):
        """Tab or Enter without a suggestion to use: on to the next field."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._suggestions: Sequence[Suggestion] = ()
        self._used = ""

    def compose(self) -> ComposeResult:
        yield PathInput(placeholder="~/pictures/birds", compact=True, id="train-path")
        yield OptionList(compact=True, markup=False)

    def on_mount(self) -> None:
        shown = self.query_one(OptionList)
        shown.can_focus = shown.display = False

    @property
    def input(self) -> PathInput:
        return self.query_one(PathInput)

    @property
    def path(self) -> Path | None:
        """The path; None if nothing is typed."""
        typed = self.input.value.strip()
        return as_path(typed) if typed else None

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed())
        if event.value and event.value != self._used:
            self._suggest(event.value)
        else:
            self._show_suggestions(())

    @work(exclusive=True, group="suggest")
    async def _suggest(self, typed: str) -> None:
        found = await asyncio.to_thread(data_paths, typed)  # it may be on a slow disk
        with contextlib.suppress(NoMatches):  # the screen was left meanwhile
            if self.input.value == typed:
                self._show_suggestions(found)

    def _show_suggestions(self, found: Sequence[Suggestion]) -> None:
        self._suggestions = found
        shown = self.query_one(OptionList)
        shown.display = bool(found)
        shown.clear_options()
        shown.add_options(Option(Content(one.label)) for one in found)
        if found:
            shown.highlighted = 0

    @on(PathInput.Navigated)
    def _navigated(self, event: PathInput.Navigated) -> None:
        event.stop()
        shown = self.query_one(OptionList)
        if event.key == "down":
            shown.action_cursor_down()
        elif event.key == "up":
            shown.action_cursor_up()
        elif shown.highlighted is not None and self._suggestions:
            self._use(self._suggestions[shown.highlighted])
        else:
            self.post_message(self.Left())

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._show_suggestions(())
        self.post_message(self.Left())

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.input.focus()
        if event.option in event.option_list.options:  # else the list has changed since
            self._use(self._suggestions[event.option_index])

    def _use(self, one: Suggestion) -> None:
        if not one.insert.endswith("/"):
            self._used = one.insert
        self.input.value = one.insert
        self.input.cursor_position = len(one.insert)


class SetupView(Vertical):
    """The form that starts a run."""

    class SourceChanged(Message):
        """Other training data is chosen."""

    class StartRequested(Message):
        pass

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._proposed = ""
        self.from_history = True

    def compose(self) -> ComposeResult:
        yield TitleLine("Train an adapter", id="setup-title")
        with Horizontal(classes="field"):
            yield Static("learn from", classes="label", markup=False)
            with RadioSet(id="train-source", compact=True):
                yield RadioButton("my rated and corrected answers", value=True)
                yield RadioButton("a folder or a file")
        with Horizontal(classes="field", id="train-where"):
            yield Static("where", classes="label", markup=False)
            yield PathField()
        with Horizontal(classes="field"):
            yield Static("name", classes="label", markup=False)
            yield Input(compact=True, id="train-name", max_length=100)
        yield Static("", id="train-plan", markup=False)
        yield Static("", id="train-error", markup=False)
        with Horizontal(classes="buttons"):
            yield Button("Start (Enter)", id="train-start", compact=True, variant="primary")

    def on_mount(self) -> None:
        self.query_one("#train-where").display = False
        self.show_error("")

    # What is chosen

    @property
    def folder(self) -> Path | None:
        """The training data; None for the person's own history, or if nothing is typed."""
        return None if self.from_history else self.query_one(PathField).path

    @property
    def adapter(self) -> str:
        """The name of the adapter."""
        return self.query_one("#train-name", Input).value.strip()

    def choose(self, path: str) -> None:
        """Choose a path that was typed in the chat."""
        self.from_history = False
        self.query_one("#train-where").display = True
        self.query_one(PathField).input.value = clean(path, keep_newlines=False)
        self.query(RadioButton).last().value = True

    def propose(self, name: str) -> None:
        """Propose a name for the adapter, unless the person has typed one."""
        field = self.query_one("#train-name", Input)
        if field.value in ("", self._proposed):
            self._proposed = field.value = name
            field.select_all()  # typing replaces it, whether the field had the focus already or not

    # What is shown

    def show_model(self, model: str) -> None:
        self.query_one("#setup-title", TitleLine).model = model

    def show_plan(self, plan: TrainingPlan | str) -> None:
        """Show what would be learned, or a sentence in its place."""
        line = self.query_one("#train-plan", Static)
        if isinstance(plan, str):
            line.update(Content.styled(clean(plan), MUTED))
        else:
            line.update(Content("\n").join(Content(part) for part in plan_sentences(plan)))

    def show_error(self, sentence: str) -> None:
        line = self.query_one("#train-error", Static)
        line.update(one_line(sentence, 600))
        line.display = bool(sentence)

    # Messages of the widgets

    @on(RadioSet.Changed)
    def _source(self, event: RadioSet.Changed) -> None:
        event.stop()
        if self.from_history == (event.index == 0):
            return  # it was chosen by a command
        self.from_history = event.index == 0
        self.query_one("#train-where").display = not self.from_history
        if not self.from_history:
            self.query_one(PathField).input.focus()
        self.post_message(self.SourceChanged())

    @on(PathField.Changed)
    def _path(self, event: PathField.Changed) -> None:
        event.stop()
        if not self.from_history:
            self.post_message(self.SourceChanged())

    @on(PathField.Left)
    def _path_left(self, event: PathField.Left) -> None:
        event.stop()
        self.query_one("#train-name").focus()

    @on(Input.Changed, "#train-name")
    def _named(self, event: Input.Changed) -> None:
        event.stop()
        if event.value != self._proposed:
            self.show_error("")

    @on(Input.Submitted, "#train-name")
    @on(Button.Pressed, "#train-start")
    def _start(self, event: Message) -> None:
        event.stop()
        self.post_message(self.StartRequested())


def plan_sentences(plan: TrainingPlan) -> list[str]:
    """A plan in sentences."""
    lines = [f"It will learn from {_examples(plan)}."]
    if plan.form:
        lines[0] = lines[0].rstrip(".") + f" ({one_line(plan.form, 60)})."
    if plan.held_out:
        lines.append(f"{plan.held_out:g} of them are kept back to measure what was learned.")
    if plan.left_out:
        what = (
            "1 cannot be used and is"
            if plan.left_out == 1
            else f"{plan.left_out:,} cannot be used and are"
        )
        lines.append(f"{what} left out.")
    if plan.replay:
        share = format_percent(plan.replay)
        lines.append(f"{share} of the data is what the model knows already, to prevent forgetting.")
    cost = [f"{plan.steps:,} steps"] if plan.steps else []
    if plan.seconds:
        cost.append(f"about {format_duration(plan.seconds)}")
    if plan.memory_bytes:
        cost.append(f"up to {format_size(plan.memory_bytes)} of memory")
    if cost:
        lines.append(f"That takes {', '.join(cost)}.")
    if plan.trainable_parameters:
        lines.append(f"It trains {plan.trainable_parameters:,} parameters.")
    return lines


def _examples(plan: TrainingPlan) -> str:
    parts = [
        _number(plan.corrected, "corrected answer"),
        _number(plan.good, "good answer"),
    ]
    answers = " and ".join(part for part in parts if part) or _number(plan.examples, "example")
    pictures = _number(plan.pictures, "picture")
    return (
        f"{answers} about {pictures}" if answers and pictures else answers or pictures or "nothing"
    )


def _number(count: int | None, unit: str) -> str:
    return format_count(count, unit) if count else ""
