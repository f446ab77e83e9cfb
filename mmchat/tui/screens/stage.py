"""What the chat screen shows: a conversation or a welcome, the lines around it, the list."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from textual import work
from textual.screen import Screen

from mmchat.display.messages import tag_words, title
from mmchat.errors import HistoryError
from mmchat.history import Conversation, Message, MissingError
from mmchat.tui.widgets.composer import Composer
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.status import StatusLine, TitleLine
from mmchat.tui.widgets.transcript import Transcript
from mmchat.tui.widgets.welcome import Welcome, examples

if TYPE_CHECKING:
    from mmchat.tui.app import ChatApp

LISTED = 200

Deed = Callable[[], Awaitable[object]]
"""Something that reads or writes the history, or changes which messages are mounted."""


class Stage(Screen[None]):
    """The base of the chat screen: brings what stands on it up to date.

    Deeds stand in a line and one worker does them, in their order. So one at a
    time mounts or removes messages, and none is awaited where keys are handled
    and the screen is drawn: a file that another program holds stops neither.
    """

    app: "ChatApp"

    def __init__(self) -> None:
        super().__init__()
        self._deeds: asyncio.Queue[Deed] = asyncio.Queue()
        self._limit = LISTED
        self._model_label = ""
        self._window = 0
        self._looks = False

    # The line of deeds

    def put(self, deed: Deed) -> None:
        """Have a deed done after those before it."""
        self._deeds.put_nowait(deed)

    @work(group="deeds")
    async def do_deeds(self) -> None:
        while True:
            deed = await self._deeds.get()
            try:
                with self.told():
                    await deed()
            except Exception:
                if self.app.is_running:
                    raise
                return  # the app closes, and what stood on the screen is gone

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What the history cannot do stands next to the input, and the app goes on."""
        try:
            yield
        except HistoryError as error:
            self.composer.complain(str(error))

    # The parts

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    # What is shown

    async def open(self, conversation_id: int, at: int | None = None) -> None:
        """Show a conversation, its end or the message `at`."""
        await self._show(await self.app.session.open(conversation_id), at)

    async def _show(self, branch: Sequence[Message], at: int | None = None) -> None:
        await self._leave_welcome()
        self.remove_class("listed")
        await self.transcript.show(branch, self.app.asker.live, at)
        if not branch:
            await self._show_welcome()
        if at is None:
            self.composer.input.focus()
        await self.show_lines()

    async def show_new(self) -> None:
        """Show an empty conversation."""
        self.app.session.start_new()
        await self._show([])

    async def _show_welcome(self) -> None:
        await self._leave_welcome()
        first = await asyncio.to_thread(self.app.history.latest) is None
        welcome = Welcome(examples() if first else [], first)
        self.transcript.display = False
        await self.query_one("#stage").mount(welcome)
        self.composer.input.choosing = welcome.offers

    async def _leave_welcome(self) -> None:
        self.composer.input.choosing = False
        await self.query(Welcome).remove()
        self.transcript.display = True

    async def show_lines(self) -> None:
        """The title line, the figures, the list: after every change."""
        self._show_title()
        answers = [one for one in self.transcript.branch if one.role == "assistant" and one.origin]
        origin = next((one.origin for one in reversed(answers) if one.state != "streaming"), None)
        known = origin.parameters.get("context_length") if origin else None
        context = known if isinstance(known, int) else self._window
        self.status.show_figures(origin, context)
        await self.show_list()

    def _show_title(self) -> None:
        conversation = self.app.session.conversation
        tags = tag_words(conversation.tags) if conversation else ""
        self.query_one(TitleLine).show(title(conversation), self._model_label, tags)

    async def show_list(self) -> None:
        listed: list[Conversation] = await asyncio.to_thread(
            self.app.history.conversations, limit=self._limit
        )
        self.query_one(ConversationList).show(
            listed,
            self.app.session.conversation_id,
            self.app.clock(),
            more=len(listed) == self._limit,
        )

    # Other windows on the same history

    async def catch_up(self, *, only_more: bool) -> None:
        """Show what other windows did in the open conversation.

        With `only_more` what is on the screen stays, and only messages behind it are added.
        Raises HistoryError; MissingError if the conversation was deleted.
        """
        at = self.app.session.conversation_id
        if at is None:
            return
        branch = await self.app.session.open(at)
        if self.transcript.is_current(branch):
            return
        if not only_more or self.transcript.is_continued_by(branch):
            await self.transcript.follow(branch, self.app.asker.live)
            await self.show_lines()

    def look_around(self) -> None:
        """Follow what other windows did: new conversations, new messages, deletions."""
        self.app.asker.end_again()
        if not self._looks:  # else one stands in the line already
            self._looks = True
            self.put(self._look)

    async def _look(self) -> None:
        self._looks = False
        try:
            # An answer of this window stays on the screen while it is being written.
            await self.catch_up(only_more=bool(self.app.session.live()))
        except MissingError:
            self.notify("This conversation was deleted in another window.", markup=False)
            await self.show_new()
            return
        self._show_title()
        await self.show_list()

    def target(self, wanted: Callable[[Message], bool]) -> Message | None:
        """The focused message if it is `wanted`, else the last such one that is shown."""
        if isinstance(self.focused, MessageView) and wanted(self.focused.message):
            return self.focused.message
        return next((one for one in reversed(self.transcript.branch) if wanted(one)), None)
