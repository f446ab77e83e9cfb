"""What the chat screen shows: a conversation or a welcome, the lines around it, the list."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from textual import work
from textual.screen import Screen

from mmchat.errors import HistoryError
from mmchat.history import Conversation, Message
from mmchat.tui.formatting import title
from mmchat.tui.widgets.composer import Composer
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.status import StatusLine, TitleLine
from mmchat.tui.widgets.transcript import Transcript
from mmchat.tui.widgets.welcome import Welcome, examples

if TYPE_CHECKING:
    from mmchat.tui.app import ChatApp

LISTED = 200


class Stage(Screen[None]):
    """The base of the chat screen: brings what stands on it up to date."""

    app: "ChatApp"

    def __init__(self) -> None:
        super().__init__()
        self._limit = LISTED
        self._model_label = ""
        self._window = 0
        self._seen: tuple[object, ...] = ()
        self.changing = asyncio.Lock()
        """Held by whoever mounts or removes messages: one change at a time."""

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
        async with self.changing:
            await self._open(conversation_id, at)

    async def _open(self, conversation_id: int, at: int | None) -> None:
        try:
            branch = self.app.session.open(conversation_id)
        except HistoryError as error:
            self.composer.complain(str(error))
            return
        await self._leave_welcome()
        self.remove_class("listed")
        await self.transcript.show(branch, self.app.asker.live, at)
        if not branch:
            await self._show_welcome()
        if at is None:
            self.composer.input.focus()
        self.show_lines()

    async def show_new(self) -> None:
        """Show an empty conversation."""
        async with self.changing:
            await self._show_new()

    async def _show_new(self) -> None:
        self.app.session.start_new()
        self.remove_class("listed")
        await self.transcript.show([], self.app.asker.live)
        await self._show_welcome()
        self.composer.input.focus()
        self.show_lines()

    async def _show_welcome(self) -> None:
        await self._leave_welcome()
        first = self.app.history.latest() is None
        welcome = Welcome(examples() if first else [], first)
        self.transcript.display = False
        await self.query_one("#stage").mount(welcome)
        self.composer.input.choosing = welcome.offers

    async def _leave_welcome(self) -> None:
        self.composer.input.choosing = False
        await self.query(Welcome).remove()
        self.transcript.display = True

    def show_lines(self) -> None:
        """The title line, the figures, the list: after every change."""
        session = self.app.session
        self.query_one(TitleLine).show(title(session.conversation), self._model_label)
        answers = [one for one in self.transcript.branch if one.role == "assistant" and one.origin]
        origin = next((one.origin for one in reversed(answers) if one.state != "streaming"), None)
        known = origin.parameters.get("context_length") if origin else None
        context = known if isinstance(known, int) else self._window
        self.status.show_figures(origin, context)
        self._seen = self._mark()
        self.show_list()

    def show_list(self, listed: Sequence[Conversation] | None = None) -> None:
        if listed is None:
            listed = self.app.history.conversations(limit=self._limit)
        self.query_one(ConversationList).show(
            listed,
            self.app.session.conversation_id,
            self.app.clock(),
            more=len(listed) == self._limit,
        )

    # Other windows on the same history

    def _mark(self) -> tuple[object, ...]:
        """Changes when another window changes the open conversation."""
        session = self.app.session
        branch = self.transcript.branch
        if session.conversation is None or not branch:
            return ()
        last = self.app.history.message(branch[-1].id)
        row = self.app.history.conversation(session.conversation.id)
        return (row.head_id, last.state, len(last.text), last.siblings)

    @work(group="look")
    async def look_around(self) -> None:
        """Follow what other windows did: new conversations, new messages, deletions."""
        if self.changing.locked():
            return  # the next look comes soon
        async with self.changing:
            session = self.app.session
            try:
                at = session.conversation_id
                # In threads: an answer that waits for a locked file holds the history meanwhile.
                quiet = at is not None and not session.live()
                if at is not None and quiet and self._seen != await asyncio.to_thread(self._mark):
                    branch = session.open(at)
                    await self.transcript.show(branch, self.app.asker.live)
                    self.show_lines()
                    return
                await asyncio.to_thread(session.refresh)
                self.show_list(
                    await asyncio.to_thread(self.app.history.conversations, limit=self._limit)
                )
            except HistoryError:
                if session.conversation is not None:
                    self.notify("This conversation was deleted in another window.", markup=False)
                    await self._show_new()

    def target(self, wanted: Callable[[Message], bool]) -> Message | None:
        """The focused message if it is `wanted`, else the last such one that is shown."""
        if isinstance(self.focused, MessageView) and wanted(self.focused.message):
            return self.focused.message
        return next((one for one in reversed(self.transcript.branch) if wanted(one)), None)
