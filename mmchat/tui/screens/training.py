"""The training screen: starts a run, shows its progress, pauses or stops it, selects its adapter.

Training is a process of its own, which goes on when this screen or the app is closed. The screen
reads the files of the run twice a second, in a thread.
"""

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Footer, Input

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.display.messages import model_label
from mmchat.display.text import one_line
from mmchat.errors import MmchatError
from mmchat.training.run_folder import KEEP, PAUSE
from mmchat.training.status_format import heading, percent
from mmchat.tui.messages import RunChanged, RunViewed
from mmchat.tui.runs import (
    Runs,
    RunSnapshot,
    RunWatcher,
    TrainingPlan,
    free_name,
    plan_training,
    source_arguments,
)
from mmchat.tui.screens.dialogs import ConfirmScreen, PickScreen
from mmchat.tui.widgets.training import RunView
from mmchat.tui.widgets.training_setup import LOOKING, NO_FOLDER, SetupView

POLL_SECONDS = 0.5
"""Between looks at the run."""
TYPING_SECONDS = 0.4
"""Without a key, until the path that was typed is looked at."""
HISTORY_NAME = "mine"
"""The name that is proposed for an adapter that learns from the history."""


class TrainingScreen(ModalScreen[None]):
    """Everything about training, shown in place of the chat."""

    CSS_PATH = "../styles/training.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "Pause"),
        Binding("r", "resume", "Resume"),
        Binding("s", "keep", "Stop and keep"),
        Binding("enter", "use", "Use it", key_display="Enter"),
        Binding("u", "undo", "Undo"),
        Binding("ctrl+n", "new", "Another", key_display="Ctrl+N"),
        Binding("ctrl+l", "runs", "Runs", key_display="Ctrl+L"),
        Binding("ctrl+t", "app.theme", "Dark or light", show=False),
        Binding("escape", "leave", "Back", key_display="Esc"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-slim"), (60, "-narrow"), (100, "-wide")]  # noqa: RUF012 (Textual's own)
    VERTICAL_BREAKPOINTS = [(0, "-low"), (15, "-high")]  # noqa: RUF012

    def __init__(self, answers: AnswerQueue, runs: Runs, path: str = "") -> None:
        """path: the training data, as typed in the chat; without it, the newest run is shown."""
        super().__init__()
        self._answers, self._runs, self._path = answers, runs, path
        self._watcher: RunWatcher | None = None
        self._run: RunSnapshot | None = None
        """The run that is shown."""
        self._requested = ""
        """What the run was asked to do and has not done yet, in words."""
        self._plan: TrainingPlan | None = None
        self._typing: Timer | None = None
        self._changed = asyncio.Event()
        self._left = False

    @property
    def _open(self) -> bool:
        """Whether the screen is still there, which may have changed while a thread was awaited."""
        return not self._left and self.app.is_running and self.is_attached

    def compose(self) -> ComposeResult:
        with Vertical(id="training"):
            yield SetupView(id="setup")
            yield RunView(id="run")
        yield Footer(compact=True, show_command_palette=False)

    async def on_mount(self) -> None:
        self.setup.display = self.query_one(RunView).display = False
        first = None if self._path else await asyncio.to_thread(self._runs.first)
        if not self._open:
            return
        if first is not None:
            self._show_run(first)
        else:
            self._show_setup()
        self._poll()

    # Which of the two is shown

    @property
    def setup(self) -> SetupView:
        return self.query_one(SetupView)

    def _show_setup(self) -> None:
        self._leave_run()
        self.query_one(RunView).display = False
        self.setup.display = True
        wanted = self._answers.settings.model
        self.setup.show_model(model_label(wanted.name, "", "", ""))
        if self._path:
            self.setup.choose(self._path)
            self._path = ""
        self.query_one("#train-name", Input).focus()
        self.setup.show_plan(LOOKING)
        self._make_plan()
        self.refresh_bindings()

    def _show_run(self, run: RunSnapshot) -> None:
        self._leave_run()
        self.setup.display = False
        self.query_one(RunView).display = True
        self.set_focus(None)
        self._watcher = RunWatcher(self._runs, run.files)
        self._update(run)
        self._changed.set()

    def _leave_run(self) -> None:
        """The person has seen the run; if it has ended, the chat need not say so any more."""
        if self._run is not None and not self._run.active:
            self.app.post_message(RunViewed(self._run))
        self._watcher = self._run = None
        self._requested = ""

    # A run

    @work(group="poll")
    async def _poll(self) -> None:
        """Keep the run on the screen up to date, until the screen is left."""
        while True:
            self._changed.clear()
            watcher = self._watcher
            if watcher is not None:
                run = await asyncio.to_thread(watcher.read)
                if not self._open:
                    return
                if watcher is self._watcher:
                    if run is None:
                        self._watcher = self._run = None
                        self._show_setup()
                        self.setup.show_error("The files of that run were deleted.")
                    else:
                        self._update(run)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), POLL_SECONDS)

    def _update(self, run: RunSnapshot) -> None:
        if not run.active:
            self._requested = ""
        before, self._run = self._run, run
        self.query_one(RunView).show(run, self._requested or self._usage())
        if before is None or before.status.state != run.status.state:
            self.refresh_bindings()
            self.app.post_message(RunChanged())

    def _usage(self) -> str:
        """What to say if the adapter answers already; empty if it does not."""
        if self._run is None or not self._is_used():
            return ""
        if self._can_undo():
            model, adapter = self._runs.used[1] if self._runs.used else ("", "")
            back = f"go back to {model_label(model, adapter, '', '')}" if adapter else "turn it off"
            return f"{one_line(self._adapter, 60)} now answers in the chat. Press u to {back}."
        return f"{one_line(self._adapter, 60)} now answers in the chat."

    @property
    def _adapter(self) -> str:
        return (self._run.status.adapter or self._run.status.name) if self._run else ""

    def _is_used(self) -> bool:
        status = self._run.status if self._run else None
        return (
            status is not None
            and status.state == "finished"
            and self._answers.settings.model.adapter == self._adapter
        )

    def _can_undo(self) -> bool:
        used = self._runs.used
        return self._is_used() and used is not None and used[0] == self._adapter

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether an action is possible now; the others are not listed in the footer."""
        run, state = self._run, self._run.status.state if self._run else ""
        possible = {
            "pause": bool(run and run.active and run.status.pid),
            "keep": state == "training",
            "resume": state in ("paused", "failed") and bool(run and run.resumable),
            "use": state == "finished" and not self._is_used(),
            "undo": self._can_undo(),
            "new": bool(run and not run.active),
        }
        return possible.get(action, True)

    def action_pause(self) -> None:
        self._signal(PAUSE, "Saving a checkpoint…")

    @work(exclusive=True, group="dialog")
    async def action_keep(self) -> None:
        question = (
            "Stop now and keep what it has learned so far? The remaining steps are skipped. "
            "A paused run can be resumed later."
        )
        wanted = await self.app.push_screen_wait(
            ConfirmScreen(question, "Stop and keep", "Keep training")
        )
        # It may have ended while the dialog was open.
        if wanted and self._run is not None and self._run.status.state == "training":
            self._signal(KEEP, "Stopping and keeping what it has learned…")

    @work(group="signal")
    async def _signal(self, number: signal.Signals, requested: str) -> None:
        run = self._run
        if run is None:
            return
        self._requested = requested
        if not await asyncio.to_thread(run.files.signal, number):
            self._requested = ""
        self._changed.set()

    @work(exclusive=True, group="start")
    async def action_resume(self) -> None:
        run = self._run
        if run is None:
            return
        try:
            await asyncio.to_thread(self._runs.resume, run)
        except MmchatError as error:
            self.notify(one_line(str(error), 600), severity="error", markup=False)
        self._changed.set()

    def action_use(self) -> None:
        if self._run is None:
            return
        if self._answers.remote:
            sentence = "The server in engine.url has no adapters: clear engine.url to use this one."
            self.notify(sentence, severity="error", markup=False)
            return
        before = self._answers.settings.model
        self._runs.used = (self._adapter, (before.name, before.adapter))
        self._select(self._run.status.model or before.name, self._adapter)

    def action_undo(self) -> None:
        if self._run is None or self._runs.used is None:
            return
        model, adapter = self._runs.used[1]
        self._runs.used = None
        self._select(model, adapter)

    def _select(self, model: str, adapter: str) -> None:
        """Answer with this model and adapter in the chat from now on."""
        other = model if model != self._answers.settings.model.name else None
        self._answers.select(other, adapter)
        if self._run is not None:
            self._update(self._run)
            self.refresh_bindings()

    # A new one

    def action_new(self) -> None:
        self._show_setup()

    @on(SetupView.SourceChanged)
    def _source_changed(self, event: SetupView.SourceChanged) -> None:
        event.stop()
        self._plan = None
        self.setup.show_error("")
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(TYPING_SECONDS, self._make_plan)

    @work(exclusive=True, group="plan")
    async def _make_plan(self) -> None:
        """Show what would be learned from the data that is chosen now."""
        setup, self._plan = self.setup, None
        folder = setup.folder
        if folder is None and not setup.from_history:
            setup.show_plan(NO_FOLDER)
            return
        setup.show_plan(LOOKING)
        if folder is not None and not await asyncio.to_thread(_exists, folder):
            if self._open:
                setup.show_plan(f"{folder} does not exist.")
            return
        wanted = HISTORY_NAME if folder is None else folder.absolute().stem
        name = await asyncio.to_thread(free_name, wanted)
        if self._open:
            setup.propose(name)
        source, model = source_arguments(folder), self._answers.settings.model.name

        def show_progress(line: str) -> None:
            if self._open:
                setup.show_plan(f"{LOOKING}\n{line}")

        plan = await plan_training(source, model, show_progress)
        if self._open:
            setup.show_plan(plan)
            self._plan = plan if isinstance(plan, TrainingPlan) else None

    @on(SetupView.StartRequested)
    @work(exclusive=True, group="start")
    async def _start(self, event: SetupView.StartRequested) -> None:
        event.stop()
        setup = self.setup
        if self._plan is None:
            setup.show_error("There is nothing to start yet: choose training data above.")
            return
        name, source = setup.adapter, source_arguments(setup.folder)
        model = self._answers.settings.model.name
        try:
            folder = await asyncio.to_thread(self._runs.start, name, source, model)
        except MmchatError as error:
            if self._open:
                setup.show_error(str(error))
            return
        run = await asyncio.to_thread(self._runs.snapshot, folder)
        if run is not None and self._open:
            self._show_run(run)

    # All of them

    @work(exclusive=True, group="dialog")
    async def action_runs(self) -> None:
        found = await asyncio.to_thread(self._runs.all)
        if not self._open:
            return
        items = [(one.name, one_line(one.status.name, 40), _about(one)) for one in found]
        current = self._run.name if self._run else ""
        chosen = await self.app.push_screen_wait(
            PickScreen(
                "Which run?",
                items,
                current,
                "There are no runs yet.",
                "Enter shows it   Esc goes back",
            )
        )
        for one in found:
            if one.name == chosen:
                self._show_run(one)

    def action_leave(self) -> None:
        self._leave_run()
        self._left = True
        self.dismiss(None)


def _about(run: RunSnapshot) -> str:
    state = heading(run.status)
    return state if run.status.state == "finished" else f"{state} · {percent(run.status)}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the name is too long, or has a character that no name can have
        return False
