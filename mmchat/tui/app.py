"""The app: owns the history, the answer queue and the chat screen, and closes them in order."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

from textual import events, on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.chat.async_history import AsyncHistory
from mmchat.chat.events import ChatEvent
from mmchat.chat.service import ConversationService
from mmchat.errors import SettingsError
from mmchat.history import History
from mmchat.settings import Settings
from mmchat.tui.actions import ACTIONS, BY_ID, key_label
from mmchat.tui.messages import RunChanged, RunViewed, ServiceEvent
from mmchat.tui.runs import Runs, RunSnapshot, mark_viewed, notice
from mmchat.tui.screens.chat import ChatScreen
from mmchat.tui.screens.palette import Palette

DARK, LIGHT = "textual-dark", "textual-light"
EXIT_SECONDS = 5.0
"""How long an app without a terminal may take to end."""
POLL_SECONDS = 2.0
"""Between looks at training runs."""


class ChatApp(App[None]):
    """mmchat on a terminal."""

    TITLE = "mmchat"
    CSS_PATH: ClassVar[Any] = ["styles/chat.tcss", "styles/dialogs.tcss"]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(BY_ID["quit"].key, "quit", BY_ID["quit"].title, id="quit", priority=True),
    ]

    def __init__(
        self,
        settings: Settings,
        *,
        conversation: int | None = None,
        new: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the history.

        conversation, new: what to open; by default the last conversation. clock: returns the
        current time, in seconds since the Unix epoch.

        Raises HistoryError if the history cannot be opened or has no such conversation, and
        SettingsError if there is no such theme.
        """
        super().__init__()
        if settings.app.theme not in self.available_themes:
            names = ", ".join(sorted(self.available_themes))
            raise SettingsError(
                f"There is no theme {settings.app.theme} (app.theme): choose one of {names}."
            )
        self.theme = settings.app.theme
        self.clock = clock
        self.history = History.open()
        self._restore = contextlib.ExitStack()
        self.answers = AnswerQueue(settings, self._emit)
        self.service = ConversationService(AsyncHistory(self.history), self.answers, self._emit)
        self.runs = Runs()
        self._runs_changed = asyncio.Event()
        try:
            self._start = None if new else self._first(conversation)
        except Exception:
            self.history.close()
            raise

    def _first(self, conversation: int | None) -> int | None:
        if conversation is not None:
            return self.history.conversation(conversation).id
        latest = self.history.latest()
        return latest.id if latest else None

    async def on_mount(self) -> None:
        self._exit_on_signals()
        self.chat = ChatScreen(self.service, self.runs, self.clock, self._start)
        await self.push_screen(self.chat)
        self.run_worker(self.answers.run(), name="answers", group="answers")
        self.call_after_refresh(self.answers.load)  # after the first paint
        self.run_worker(self._watch_training(), name="training", group="training")

    async def on_unmount(self) -> None:
        await self.answers.close()
        await self.service.history.close()
        self._restore.close()

    def _emit(self, event: ChatEvent) -> None:
        if self.is_running:  # else the screen is gone
            self.chat.post_message(ServiceEvent(event))

    # Training runs

    async def _watch_training(self) -> None:
        """Training goes on in its own process; its state is shown in the chat's status line."""
        status = self.chat.status  # still there when the screen has been emptied at the end
        while True:
            self._runs_changed.clear()
            status.training = notice(await asyncio.to_thread(self.runs.first))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._runs_changed.wait(), POLL_SECONDS)

    @on(RunChanged)
    def _run_changed(self) -> None:
        self._runs_changed.set()

    @on(RunViewed)
    def _run_viewed(self, message: RunViewed) -> None:
        self.run_worker(self._mark_viewed(message.run), group="viewed")

    async def _mark_viewed(self, run: RunSnapshot) -> None:
        await asyncio.to_thread(mark_viewed, run)
        self._runs_changed.set()

    # The end

    def _exit_on_signals(self) -> None:
        """A closed terminal or SIGTERM ends the app as Quit does: every answer is kept.

        Writing to a terminal that is gone may block for ever. What is in the history by then is
        safe, so the process ends after a while in any case.
        """
        loop = asyncio.get_running_loop()

        def end(number: int, frame: object) -> None:
            # A hang-up is followed by SIGCONT, at which Textual would start again on no terminal.
            signal.signal(signal.SIGCONT, lambda number, frame: None)
            timer = threading.Timer(EXIT_SECONDS, os._exit, (128 + number,))
            timer.daemon = True
            timer.start()
            loop.call_soon_threadsafe(self.exit)

        for number in (signal.SIGHUP, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # this is not the main thread
                before = signal.signal(number, end)
                self._restore.callback(signal.signal, number, before)

    async def on_event(self, event: events.Event) -> None:
        # Keys after Quit would act on screens that are being removed, and end in a traceback.
        if not (self._exit and isinstance(event, events.InputEvent | events.Paste)):
            await super().on_event(event)

    # Actions

    def action_theme(self) -> None:
        self.theme = LIGHT if self.current_theme.dark else DARK

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette())

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette: the actions of actions.py."""
        for action in ACTIONS:
            how = "  ".join(part for part in (f"/{action.id}", key_label(action.key)) if part)
            run = partial(self.run_action, action.target, self.chat)
            yield SystemCommand(action.title, how, run, discover=True)
