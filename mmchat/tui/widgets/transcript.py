"""The messages of the open conversation: the newest ones, and older ones after scrolling up."""

from collections.abc import Callable, Mapping, Sequence

from textual import events
from textual.containers import VerticalScroll
from textual.message import Message as Post
from textual.reactive import var
from textual.widgets import Static

from mmchat.chat.events import PendingAnswer
from mmchat.history import Message, StoredImage
from mmchat.images import Picture
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.pair import Pair
from mmchat.tui.widgets.picture import GRID_COLUMNS, Thumbnail

PAGE = 30
"""How many messages are mounted at a time; a conversation may have thousands."""


class Earlier(Static):
    """The line above the first message that is mounted."""

    class Requested(Post):
        """The person wants to see older messages."""

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Requested())


class Transcript(VerticalScroll, can_focus=False):
    """Shows a branch of a conversation. It reads nothing itself: the controllers change it."""

    branch: var[tuple[Message, ...]] = var((), init=False)
    """What is shown, including older messages that are not mounted yet."""

    def __init__(
        self,
        load: Callable[[StoredImage], Picture],
        pending: Mapping[int, PendingAnswer],
        clock: Callable[[], float],
        id: str | None = None,  # noqa: A002 (Textual's name)
    ) -> None:
        """
        load: returns a picture of a message; called in a thread.
        pending: the answers that are not finished, by message id.
        clock: returns the current time, in seconds since the Unix epoch.
        """
        super().__init__(id=id)
        self._load = load
        self._pending = pending
        self._clock = clock
        self._first = 0
        self._pair: tuple[int, ...] = ()

    @property
    def pair(self) -> tuple[int, ...]:
        """The two answers that are compared; the branch's last message is one of them."""
        return self._pair

    def view(self, message_id: int) -> MessageView | None:
        """The widget of a message, if it is mounted."""
        for view in self.query(MessageView):
            if view.message.id == message_id:
                return view
        return None

    def selected_message(self, wanted: Callable[[Message], bool]) -> Message | None:
        """The focused message if it is `wanted`, else the last one that is."""
        focused = self.screen.focused
        if isinstance(focused, MessageView) and wanted(focused.message):
            return focused.message
        return next((one for one in reversed(self.branch) if wanted(one)), None)

    async def show(self, branch: Sequence[Message], at: int | None = None) -> None:
        """Show a conversation, scrolled to its end or to the message `at`."""
        self.branch = tuple(branch)
        self._pair = ()
        self._first = max(0, len(self.branch) - PAGE)
        if at is not None:
            places = [place for place, message in enumerate(self.branch) if message.id == at]
            if places:
                self._first = min(self._first, max(0, places[0] - 3))
        with self.app.batch_update():
            for view in self.query(MessageView):
                await view.stop_stream()
            await self.remove_children()
            await self.mount_all([self._earlier(), *map(self._make, self.branch[self._first :])])
        self.anchor(at is None)
        if at is not None:
            self.call_after_refresh(self.reveal, at)

    def is_current(self, branch: Sequence[Message]) -> bool:
        """Whether this branch is shown already."""
        return len(branch) == len(self.branch) and all(map(self._is_same, self.branch, branch))

    def is_continued_by(self, branch: Sequence[Message]) -> bool:
        """Whether the branch begins with all messages that are shown."""
        shown = [one.id for one in self.branch]
        return [one.id for one in branch[: len(shown)]] == shown

    def _is_same(self, old: Message, new: Message) -> bool:
        # The view of an answer that this window writes is newer than the history.
        return old == new or (old.id == new.id and new.id in self._pending)

    async def follow(self, branch: Sequence[Message]) -> None:
        """Show what another window changed; views of messages that stay are kept."""
        if not self.is_continued_by(branch):
            await self.show(branch)
            return
        before = len(self.branch)
        for old, new in zip(self.branch, branch, strict=False):
            if not self._is_same(old, new):
                self.replace(new)
                if (view := self.view(new.id)) is not None:
                    await view.finish(new)
        if len(branch) > before:
            await self.add(*branch[before:])

    def reveal(self, message_id: int) -> None:
        """Scroll to a message and mark it."""
        view = self.view(message_id)
        if view is not None:
            view.focus(scroll_visible=False)
            self.scroll_to_widget(view, animate=False, top=True)

    async def add(self, *messages: Message) -> None:
        """New messages at the end."""
        await self.collapse()
        self.branch = (*self.branch, *messages)
        if not self.children:
            await self.mount(self._earlier())
        await self.mount_all([self._make(message) for message in messages])
        self.anchor()

    async def add_pair(self, first: Message, second: Message) -> None:
        """Two answers to the last message, beside each other; the branch goes on with the second."""
        self.branch = (*self.branch, second)
        self._pair = (first.id, second.id)
        await self.mount(Pair(*(self._make(one, compared=True) for one in (first, second))))
        self.anchor()

    def continue_pair_with(self, message: Message) -> None:
        """The branch goes on with the other answer of a pair."""
        self.branch = (*self.branch[:-1], message)

    async def collapse(self) -> None:
        """Show one answer of a pair only: the one that the branch goes on with."""
        if self._pair:
            await self._unmount_pair()
            await self.mount(self._make(self.branch[-1]))

    async def _unmount_pair(self) -> None:
        self._pair = ()
        for pair in self.query(Pair):
            for view in pair.query(MessageView):
                await view.stop_stream()
            await pair.remove()

    async def remove_from(self, message_id: int) -> None:
        """Remove a message and all after it."""
        await self._remove_from(self._place(message_id))

    async def remove_after(self, message_id: int) -> None:
        """Remove all messages after a message."""
        await self._remove_from(self._place(message_id) + 1)

    def _place(self, message_id: int) -> int:
        if message_id in self._pair:
            return len(self.branch) - 1
        places = [place for place, message in enumerate(self.branch) if message.id == message_id]
        return places[0] if places else len(self.branch)

    async def _remove_from(self, place: int) -> None:
        gone = {message.id for message in self.branch[place:]}
        self.branch = self.branch[:place]
        if gone.intersection(self._pair):
            await self._unmount_pair()
        for view in self.query(MessageView):
            if view.message.id in gone:
                await view.stop_stream()
                await view.remove()

    def replace(self, message: Message) -> None:
        """Replace a message of the branch by a newer state of it; its view stays as it is."""
        self.branch = tuple(message if old.id == message.id else old for old in self.branch)

    async def more(self) -> None:
        """Mount the messages before the first one; what is visible stays where it is."""
        if not self._first:
            return
        first, self._first = self._first, max(0, self._first - PAGE)
        before = self.max_scroll_y
        views = [self._make(message) for message in self.branch[self._first : first]]
        await self.mount_all(views, after=0)
        self.query_one(Earlier).update(self._earlier_text())
        self.query_one(Earlier).display = self._first > 0

        def scroll_back() -> None:
            self.scroll_to(y=self.scroll_y + self.max_scroll_y - before, animate=False)

        self.call_after_refresh(scroll_back)

    def scroll_pages(self, pages: int) -> None:
        """Scroll down (1) or up (-1) by a page; more than one page is to the end or beginning."""
        if abs(pages) > 1:
            end = self.scroll_end if pages > 0 else self.scroll_home
            end(animate=False)
        elif pages > 0:
            self.scroll_page_down(animate=False)
        else:
            self.scroll_page_up(animate=False)

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if new < old and new < 2 and self._first:
            self.post_message(Earlier.Requested())

    def on_resize(self) -> None:
        """Fit the pictures to the size of the window."""
        for view in self.query(MessageView):
            for thumbnail in view.query(Thumbnail):
                thumbnail.refit(*self._box(view.message))

    def _box(self, message: Message) -> tuple[int, int]:
        """The columns and rows that a picture of `message` may take."""
        narrow, low = self.app.size.width < 100, self.app.size.height < 30
        single = 30 if narrow else 40
        columns = single if len(message.images) < 2 else GRID_COLUMNS - 2
        return columns, 7 if low else 12

    def _make(self, message: Message, compared: bool = False) -> MessageView:
        return MessageView(
            message,
            now=self._clock(),
            load=self._load,
            box=self._box(message),
            pending=self._pending.get(message.id),
            compared=compared,
        )

    def _earlier(self) -> Earlier:
        line = Earlier(self._earlier_text(), classes="earlier", markup=False)
        line.display = self._first > 0
        return line

    def _earlier_text(self) -> str:
        return f"▲ {self._first} earlier messages"
