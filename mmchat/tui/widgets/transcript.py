"""The conversation: the newest messages, older ones when one scrolls up to them."""

from collections.abc import Callable, Mapping, Sequence

from textual import events
from textual.containers import VerticalScroll
from textual.message import Message as Post
from textual.widgets import Static

from mmchat.history import Message, StoredImage
from mmchat.images import Picture
from mmchat.tui.news import Live
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.pair import Pair
from mmchat.tui.widgets.picture import Thumbnail

PAGE = 30
"""How many messages are mounted at once; a conversation may have thousands."""


class Earlier(Static):
    """The line above the first message that is mounted."""

    class Wanted(Post):
        """Older messages are to be shown."""

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Wanted())


class Transcript(VerticalScroll, can_focus=False):
    """Shows a branch; told of every change by the screen, it asks nobody."""

    def __init__(
        self,
        load: Callable[[StoredImage], Picture],
        clock: Callable[[], float],
        id: str | None = None,  # noqa: A002 (Textual's name)
    ) -> None:
        super().__init__(id=id)
        self._load = load
        self._clock = clock
        self._branch: list[Message] = []
        self._live: Mapping[int, Live] = {}
        self._first = 0
        self._pair: tuple[int, ...] = ()

    @property
    def branch(self) -> Sequence[Message]:
        """What is shown, older messages that are not mounted yet among them."""
        return self._branch

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

    async def show(
        self, branch: Sequence[Message], live: Mapping[int, Live], at: int | None = None
    ) -> None:
        """Show a conversation, its end or the message `at` in sight."""
        self._branch, self._live = list(branch), live
        self._pair = ()
        self._first = max(0, len(self._branch) - PAGE)
        if at is not None:
            places = [place for place, message in enumerate(self._branch) if message.id == at]
            if places:
                self._first = min(self._first, max(0, places[0] - 3))
        with self.app.batch_update():
            for view in self.query(MessageView):
                await view.settle()
            await self.remove_children()
            await self.mount_all([self._earlier(), *map(self._make, self._branch[self._first :])])
        self.anchor(at is None)
        if at is not None:
            self.call_after_refresh(self.reveal, at)

    def is_current(self, branch: Sequence[Message]) -> bool:
        """Whether the branch is shown as it is now in the history."""
        return len(branch) == len(self._branch) and all(map(self._is_same, self._branch, branch))

    def is_continued_by(self, branch: Sequence[Message]) -> bool:
        """Whether the branch begins with all messages that are shown."""
        shown = [one.id for one in self._branch]
        return [one.id for one in branch[: len(shown)]] == shown

    def _is_same(self, old: Message, new: Message) -> bool:
        # The history is behind the view of an answer that this window writes.
        return old == new or (old.id == new.id and new.id in self._live)

    async def follow(self, branch: Sequence[Message], live: Mapping[int, Live]) -> None:
        """Show what another window changed; the views of messages that stay are kept."""
        if not self.is_continued_by(branch):
            await self.show(branch, live)
            return
        before = len(self._branch)
        for place, new in enumerate(branch[:before]):
            if not self._is_same(self._branch[place], new):
                self._branch[place] = new
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
        self._branch += messages
        if not self.children:
            await self.mount(self._earlier())
        await self.mount_all([self._make(message) for message in messages])
        self.anchor()

    async def compare(self, first: Message, second: Message) -> None:
        """Two answers to the last message beside each other; the second is the branch's."""
        self._branch.append(second)
        self._pair = (first.id, second.id)
        await self.mount(Pair(*(self._make(one, compared=True) for one in (first, second))))
        self.anchor()

    def keep(self, message: Message) -> None:
        """The other one of two is the branch's."""
        self._branch[-1] = message

    async def collapse(self) -> None:
        """One answer again in the place of two: the branch's."""
        if self._pair:
            await self._unmount_pair()
            await self.mount(self._make(self._branch[-1]))

    async def _unmount_pair(self) -> None:
        self._pair = ()
        for pair in self.query(Pair):
            for view in pair.query(MessageView):
                await view.settle()
            await pair.remove()

    async def cut(self, message_id: int) -> None:
        """Take away a message and all after it: another answer comes in its place."""
        await self._cut_from(self._place(message_id))

    async def cut_after(self, message_id: int) -> None:
        """Take away all after a message."""
        await self._cut_from(self._place(message_id) + 1)

    def _place(self, message_id: int) -> int:
        if message_id in self._pair:
            return len(self._branch) - 1
        places = [place for place, message in enumerate(self._branch) if message.id == message_id]
        return places[0] if places else len(self._branch)

    async def _cut_from(self, place: int) -> None:
        gone = {message.id for message in self._branch[place:]}
        del self._branch[place:]
        if gone.intersection(self._pair):
            await self._unmount_pair()
        for view in self.query(MessageView):
            if view.message.id in gone:
                await view.settle()
                await view.remove()

    def replace(self, message: Message) -> None:
        """A message of the branch is known better now."""
        self._branch = [message if old.id == message.id else old for old in self._branch]

    async def more(self) -> None:
        """Mount the messages before the first one; what is in sight stays where it is."""
        if not self._first:
            return
        first, self._first = self._first, max(0, self._first - PAGE)
        before = self.max_scroll_y
        views = [self._make(message) for message in self._branch[self._first : first]]
        await self.mount_all(views, after=0)
        self.query_one(Earlier).update(self._earlier_text())
        self.query_one(Earlier).display = self._first > 0

        def keep() -> None:
            self.scroll_to(y=self.scroll_y + self.max_scroll_y - before, animate=False)

        self.call_after_refresh(keep)

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if new < old and new < 2 and self._first:
            self.post_message(Earlier.Wanted())

    def on_resize(self) -> None:
        """Pictures take the size that the window has room for."""
        for view in self.query(MessageView):
            for thumbnail in view.query(Thumbnail):
                thumbnail.refit(*self._box(view.message))

    def _box(self, message: Message) -> tuple[int, int]:
        """The columns and rows that a picture of `message` may take."""
        narrow, low = self.app.size.width < 100, self.app.size.height < 30
        count = max(len(message.images), 1)
        columns = 40 if not narrow else 30
        if count > 1:
            columns = max(10, min(columns, (self.size.width or 76) // count - 4, 24))
        return columns, 7 if low else 12

    def _make(self, message: Message, compared: bool = False) -> MessageView:
        return MessageView(
            message,
            now=self._clock(),
            load=self._load,
            box=self._box(message),
            live=self._live.get(message.id),
            compared=compared,
        )

    def _earlier(self) -> Earlier:
        line = Earlier(self._earlier_text(), classes="earlier", markup=False)
        line.display = self._first > 0
        return line

    def _earlier_text(self) -> str:
        return f"▲ {self._first} earlier messages"
