"""The training screen: begins a run, shows how it goes, steers it, puts its adapter on.

Training is a process of its own and goes on when this screen, or the app, is closed. The screen
looks at the run's files twice a second, in a thread.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Footer, Input

from mmchat.display.messages import model_label
from mmchat.display.text import one_line
from mmchat.errors import MmchatError
from mmchat.training.run_folder import KEEP, PAUSE
from mmchat.training.status_format import heading, percent
from mmchat.tui.runs import (
    Plan,
    Seen,
    Watch,
    ask_plan,
    free_name,
    source_arguments,
)
from mmchat.tui.screens.dialogs import ConfirmScreen, PickScreen
from mmchat.tui.widgets.training import RunView
from mmchat.tui.widgets.training_setup import LOOKING, NO_FOLDER, SetupView

if TYPE_CHECKING:
    from mmchat.tui.app import ChatApp

LOOK_EVERY = 0.5
"""Seconds between looks at the run."""
TYPING = 0.4
"""Seconds without a key until a path is looked at."""
Use = Callable[[str | None, str, Callable[[], None]], None]
"""Has another model (None: the same), with this adapter, answer from now on; then calls back."""
HISTORY_NAME = "mine"


class TrainingScreen(ModalScreen[None]):
    """Everything about training, in place of the chat for a while."""

    app: "ChatApp"
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
        Binding("ctrl+t", "theme", "Dark or light", show=False),
        Binding("escape", "leave", "Back", key_display="Esc"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-slim"), (60, "-narrow"), (100, "-wide")]  # noqa: RUF012 (Textual's own)
    VERTICAL_BREAKPOINTS = [(0, "-low"), (15, "-high")]  # noqa: RUF012

    def __init__(self, use: Use, path: str = "") -> None:
        """`path`: what to learn from, as it was typed in the chat; empty shows what there is."""
        super().__init__()
        self._use, self._path = use, path
        self._watch: Watch | None = None
        self._seen: Seen | None = None
        self._asked = ""
        """What the run was told to do and has not done yet."""
        self._plan: Plan | None = None
        self._typing: Timer | None = None
        self._news = asyncio.Event()
        self._left = False

    @property
    def _open(self) -> bool:
        """Whether the screen still stands: what waits for a thread may come back after its end."""
        return not self._left and self.app.is_running and self.is_attached

    def compose(self) -> ComposeResult:
        with Vertical(id="training"):
            yield SetupView(id="setup")
            yield RunView(id="run")
        yield Footer(compact=True, show_command_palette=False)

    async def on_mount(self) -> None:
        self.setup.display = self.query_one(RunView).display = False
        first = None if self._path else await asyncio.to_thread(self.app.runs.first)
        if not self._open:
            return
        if first is not None:
            self._show_run(first)
        else:
            self._show_setup()
        self._look_on()

    # Which of the two is shown

    @property
    def setup(self) -> SetupView:
        return self.query_one(SetupView)

    def _show_setup(self) -> None:
        self._leave_run()
        self.query_one(RunView).display = False
        self.setup.display = True
        wanted = self.app.asker.settings.model
        self.setup.show_model(model_label(wanted.name, "", "", ""))
        if self._path:
            self.setup.choose(self._path)
            self._path = ""
        self.query_one("#train-name", Input).focus()
        self.setup.show_plan(LOOKING)
        self._ask_plan()
        self.refresh_bindings()

    def _show_run(self, seen: Seen) -> None:
        self._leave_run()
        self.setup.display = False
        self.query_one(RunView).display = True
        self.set_focus(None)
        self._watch = Watch(self.app.runs, seen.run)
        self._take(seen)
        self._news.set()

    def _leave_run(self) -> None:
        """The person goes on from a run: what has ended is no news any more."""
        if self._seen is not None and not self._seen.works:
            self.app.saw(self._seen)
        self._watch = self._seen = None
        self._asked = ""

    # A run

    @work(group="look")
    async def _look_on(self) -> None:
        """Keeps the run on the screen up to date, until the screen is left."""
        while True:
            self._news.clear()
            watch = self._watch
            if watch is not None:
                seen = await asyncio.to_thread(watch.read)
                if not self._open:
                    return
                if watch is self._watch:
                    if seen is None:
                        self._watch = self._seen = None
                        self._show_setup()
                        self.setup.complain("The files of that run were deleted.")
                    else:
                        self._take(seen)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_EVERY)

    def _take(self, seen: Seen) -> None:
        if not seen.works:
            self._asked = ""
        before, self._seen = self._seen, seen
        self.query_one(RunView).show(seen, self._asked or self._used())
        if before is None or before.status.state != seen.status.state:
            self.refresh_bindings()
            self.app.look_at_runs()

    def _used(self) -> str:
        """What is to be said of an adapter that answers already."""
        if self._seen is None or not self._is_used():
            return ""
        if self._can_undo():
            model, adapter = self.app.runs.used[1] if self.app.runs.used else ("", "")
            back = f"go back to {model_label(model, adapter, '', '')}" if adapter else "turn it off"
            return f"{one_line(self._adapter, 60)} now answers in the chat. Press u to {back}."
        return f"{one_line(self._adapter, 60)} now answers in the chat."

    @property
    def _adapter(self) -> str:
        return (self._seen.status.adapter or self._seen.status.name) if self._seen else ""

    def _is_used(self) -> bool:
        status = self._seen.status if self._seen else None
        return (
            status is not None
            and status.state == "finished"
            and self.app.asker.settings.model.adapter == self._adapter
        )

    def _can_undo(self) -> bool:
        used = self.app.runs.used
        return self._is_used() and used is not None and used[0] == self._adapter

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done now stands in the last line."""
        state = self._seen.status.state if self._seen else ""
        told = bool(self._seen and self._seen.status.pid)
        able = {
            "pause": bool(self._seen and self._seen.works and told),
            "keep": state == "training",
            "resume": state in ("paused", "failed") and bool(self._seen and self._seen.can_resume),
            "use": state == "finished" and not self._is_used(),
            "undo": self._can_undo(),
            "new": bool(self._seen and not self._seen.works),
            "runs": True,
        }
        return able.get(action, True)

    def action_pause(self) -> None:
        self._tell(PAUSE, "Saving a checkpoint…")

    @work(exclusive=True, group="dialog")
    async def action_keep(self) -> None:
        question = (
            "Stop now and keep what it has learned so far? The remaining steps are skipped. "
            "A paused run can be resumed later."
        )
        wanted = await self.app.push_screen_wait(
            ConfirmScreen(question, "Stop and keep", "Keep training")
        )
        # It went on meanwhile: what has ended by itself can no longer end early.
        if wanted and self._seen is not None and self._seen.status.state == "training":
            self._tell(KEEP, "Stopping and keeping what it has learned…")

    @work(group="tell")
    async def _tell(self, number: signal.Signals, said: str) -> None:
        seen = self._seen
        if seen is None:
            return
        self._asked = said
        if not await asyncio.to_thread(seen.run.signal, number):
            self._asked = ""
        self._news.set()

    @work(exclusive=True, group="start")
    async def action_resume(self) -> None:
        seen = self._seen
        if seen is None:
            return
        try:
            await asyncio.to_thread(self.app.runs.resume, seen)
        except MmchatError as error:
            self.notify(one_line(str(error), 600), severity="error", markup=False)
        self._news.set()

    def action_use(self) -> None:
        if self._seen is None:
            return
        if self.app.asker.remote:
            sentence = "The server in engine.url has no adapters: clear engine.url to use this one."
            self.notify(sentence, severity="error", markup=False)
            return
        wanted = self.app.asker.settings.model
        self.app.runs.used = (self._adapter, (wanted.name, wanted.adapter))
        model = self._seen.status.model
        other = model if model and model != wanted.name else None
        self._use(other, self._adapter, self._used_now)

    def action_undo(self) -> None:
        if self._seen is None or self.app.runs.used is None:
            return
        model, adapter = self.app.runs.used[1]
        self.app.runs.used = None
        other = model if model != self.app.asker.settings.model.name else None
        self._use(other, adapter, self._used_now)

    def _used_now(self) -> None:
        if self._open and self._seen is not None:
            self._take(self._seen)
            self.refresh_bindings()

    # A new one

    def action_new(self) -> None:
        self._show_setup()

    @on(SetupView.SourceChanged)
    def _source_changed(self, event: SetupView.SourceChanged) -> None:
        event.stop()
        self._plan = None
        self.setup.complain("")
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(TYPING, self._ask_plan)

    @work(exclusive=True, group="plan")
    async def _ask_plan(self) -> None:
        """Says what would be learned; the newest question only."""
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
        source, model = source_arguments(folder), self.app.asker.settings.model.name

        def tell(line: str) -> None:
            if self._open:
                setup.show_plan(f"{LOOKING}\n{line}")

        plan = await ask_plan(source, model, tell)
        if self._open:
            setup.show_plan(plan)
            self._plan = plan if isinstance(plan, Plan) else None

    @on(SetupView.StartWanted)
    @work(exclusive=True, group="start")
    async def _start(self, event: SetupView.StartWanted) -> None:
        event.stop()
        setup = self.setup
        if self._plan is None:
            setup.complain("There is nothing to start yet: choose training data above.")
            return
        name, source = setup.adapter, source_arguments(setup.folder)
        model = self.app.asker.settings.model.name
        try:
            run = await asyncio.to_thread(self.app.runs.start, name, source, model)
        except MmchatError as error:
            if self._open:
                setup.complain(str(error))
            return
        seen = await asyncio.to_thread(self.app.runs.look, run)
        if seen is not None and self._open:
            self._show_run(seen)

    # All of them

    @work(exclusive=True, group="dialog")
    async def action_runs(self) -> None:
        found = await asyncio.to_thread(self.app.runs.all)
        if not self._open:
            return
        items = [(one.run.folder.name, one_line(one.status.name, 40), _about(one)) for one in found]
        current = self._seen.run.folder.name if self._seen else ""
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
            if one.run.folder.name == chosen:
                self._show_run(one)

    # The rest

    def action_theme(self) -> None:
        self.app.chat.perform("theme")

    def action_leave(self) -> None:
        self._leave_run()
        self._left = True
        self.dismiss(None)


def _about(seen: Seen) -> str:
    said = heading(seen.status)
    return said if seen.status.state == "finished" else f"{said} · {percent(seen.status)}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or one that no file can have
        return False
