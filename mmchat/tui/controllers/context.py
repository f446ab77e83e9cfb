"""What the controllers of the chat screen share."""

from collections.abc import Awaitable, Callable
from functools import partial

from textual.screen import Screen
from textual.worker import Worker

from mmchat.chat.service import ConversationService
from mmchat.errors import HistoryError
from mmchat.tui.task_queue import TaskQueue
from mmchat.tui.widgets.composer import Composer
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.status import StatusLine, TitleLine
from mmchat.tui.widgets.transcript import Transcript


class ChatContext:
    """The chat screen as its controllers see it: its widgets, its tasks, its dialogs."""

    def __init__(
        self,
        screen: Screen[None],
        service: ConversationService,
        tasks: TaskQueue,
        clock: Callable[[], float],
    ) -> None:
        self.screen = screen
        self.service = service
        self.tasks = tasks
        self.clock = clock
        """Returns the current time, in seconds since the Unix epoch."""

    @property
    def composer(self) -> Composer:
        return self.screen.query_one(Composer)

    @property
    def transcript(self) -> Transcript:
        return self.screen.query_one(Transcript)

    @property
    def title_line(self) -> TitleLine:
        return self.screen.query_one(TitleLine)

    @property
    def status(self) -> StatusLine:
        return self.screen.query_one(StatusLine)

    @property
    def conversation_list(self) -> ConversationList:
        return self.screen.query_one(ConversationList)

    def show_dialog(self, dialog: Callable[[], Awaitable[object]]) -> None:
        """Run a coroutine function that shows a dialog and waits for it; it ends the one before.

        What the history cannot do is shown next to the input.
        """
        # Not a coroutine, which would never be awaited if the worker is cancelled at once.
        work = partial(self._show_dialog, dialog)
        _: Worker[None] = self.screen.run_worker(work, group="dialog", exclusive=True)

    async def _show_dialog(self, dialog: Callable[[], Awaitable[object]]) -> None:
        try:
            await dialog()
        except HistoryError as error:
            self.composer.show_error(str(error))
