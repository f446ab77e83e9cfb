"""The app: owns the history, the asker and the chat screen, and closes them in order."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message as Post
from textual.screen import Screen

from mmchat.errors import SettingsError
from mmchat.history import History
from mmchat.settings import Settings
from mmchat.tui.actions import ACTIONS, BY_ID, key_label
from mmchat.tui.asking import Asker
from mmchat.tui.news import News
from mmchat.tui.runs import Runs, Seen, mark_seen, notice
from mmchat.tui.screens.chat import ChatScreen
from mmchat.tui.screens.palette import Palette
from mmchat.tui.session import Session
from mmchat.tui.widgets.status import StatusLine

LEAVE_SECONDS = 5.0
"""How long an app without a terminal may take to end."""
LOOK_EVERY = 2.0
"""Seconds between looks at what is being trained."""


class Happened(Post):
    """News of the asker on their way to the screen."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news = news


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
        """Opens the history. Raises HistoryError and SettingsError."""
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
        self.asker = Asker(self.history, settings, lambda news: self.post_message(Happened(news)))
        self.session = Session(self.history, self.asker)
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
        self._end_on_signals()
        await self.push_screen(ChatScreen(self._start))
        self.run_worker(self.asker.run(), name="asker", group="asker")
        self.call_after_refresh(self.asker.load)  # what is seen comes first
        self.run_worker(self._watch_training(self.chat.status), name="training", group="training")

    async def on_unmount(self) -> None:
        await self.asker.close()
        await asyncio.to_thread(self.history.close)
        self._restore.close()

    async def _watch_training(self, line: StatusLine) -> None:
        """A run goes on without us: what it is at stands in the chat's last line."""
        while True:
            self._runs_changed.clear()
            line.show_training(notice(await asyncio.to_thread(self.runs.first)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._runs_changed.wait(), LOOK_EVERY)

    def look_at_runs(self) -> None:
        """Something has happened to a run."""
        self._runs_changed.set()

    def saw(self, seen: Seen) -> None:
        """The person has looked at a run that has ended: it is no news any more."""
        self.run_worker(self._saw(seen), group="saw")

    async def _saw(self, seen: Seen) -> None:
        await asyncio.to_thread(mark_seen, seen)
        self.look_at_runs()

    def _end_on_signals(self) -> None:
        """A closed terminal or a friendly kill ends as Quit does: with every answer kept.

        Writing to a terminal that is gone can wait for ever. What is in the history
        by then is safe, so the process leaves after a while whatever waits.
        """
        loop = asyncio.get_running_loop()

        def end(number: int, frame: object) -> None:
            # A hang-up brings a "continue" along, at which Textual would begin anew on no terminal.
            signal.signal(signal.SIGCONT, lambda number, frame: None)
            leave = threading.Timer(LEAVE_SECONDS, os._exit, (128 + number,))
            leave.daemon = True
            leave.start()
            loop.call_soon_threadsafe(self.exit)

        for number in (signal.SIGHUP, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread
                before = signal.signal(number, end)
                self._restore.callback(signal.signal, number, before)

    @property
    def chat(self) -> ChatScreen:
        """The chat screen, which is always there under the dialogs."""
        return next(one for one in self.screen_stack if isinstance(one, ChatScreen))

    def use(self, model: str | None = None, adapter: str | None = None) -> None:
        """Ask another model, or with another adapter, from now on."""
        self.asker.use(model, adapter)

    async def on_event(self, event: events.Event) -> None:
        # Keys behind Quit would act on screens that are being taken down, and end in a traceback.
        if not (self._exit and isinstance(event, events.InputEvent | events.Paste)):
            await super().on_event(event)

    def on_happened(self, event: Happened) -> None:
        if self.is_running:  # else the screen is gone
            self.chat.hear(event.news)

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette())

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: the actions, and nothing that cannot be reached otherwise."""
        for action in ACTIONS:
            how = "  ".join(part for part in (f"/{action.id}", key_label(action.key)) if part)
            yield SystemCommand(action.title, how, partial(self._perform, action.id), discover=True)

    def _perform(self, action_id: str) -> None:
        self.chat.perform(action_id)
