"""The list of conversations, with the search above it."""

from collections.abc import Callable
from typing import ClassVar, Literal

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import var
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from mmchat.display.messages import tag_words, title
from mmchat.history import Conversation
from mmchat.tui.labels import MUTED, grouped

_MORE = "more"
_WIDTH = 23
"""The least width of a row in cells (chat.tcss), without the mark and the scroll bar."""


class SearchLine(Static):
    """Looks like an input, and opens the search."""

    class Clicked(Message):
        pass

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Clicked())


class Rows(OptionList):
    """The rows. Textual ends the app at Page Up and Page Down before they have a size."""

    def _move_page(self, direction: Literal[-1, 1]) -> None:
        if self.scrollable_content_region:
            super()._move_page(direction)


class ConversationList(Vertical):
    """Conversations by day; Enter opens, F2 renames, Del deletes the one under the cursor."""

    class Selected(Message):
        def __init__(self, conversation_id: int) -> None:
            super().__init__()
            self.conversation_id = conversation_id

    class MoreRequested(Message):
        """The line at the end of the list was selected."""

    class DeleteRequested(Message):
        def __init__(self, conversation_id: int) -> None:
            super().__init__()
            self.conversation_id = conversation_id

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete", "delete", "Delete", id="list.delete"),
    ]

    conversations: var[tuple[Conversation, ...]] = var((), init=False, always_update=True)
    """The newest first. Each assignment checks the headings: it may be another day."""
    current: var[int | None] = var(None, init=False)
    """The open conversation."""
    has_more: var[bool] = var(False, init=False)
    """Whether there are older conversations."""

    def __init__(self, clock: Callable[[], float], id: str | None = None) -> None:  # noqa: A002
        """clock: returns the current time, in seconds since the Unix epoch."""
        super().__init__(id=id)
        self._clock = clock
        self._shown: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        yield SearchLine("⌕ search", markup=False, id="search-line")
        yield Rows(id="conversations", compact=True, markup=False)

    def watch_conversations(self) -> None:
        self._update()

    def watch_current(self) -> None:
        self._update()

    def watch_has_more(self) -> None:
        self._update()

    def _update(self) -> None:
        """Show the list; the highlighted row stays highlighted, an unchanged list is not touched."""
        current = self.current
        groups = grouped(self.conversations, self._clock())
        shown = (
            tuple((heading, [(c.id, c.title, c.tags) for c in cs]) for heading, cs in groups),
            current,
            self.has_more,
        )
        if shown == self._shown:
            return
        self._shown = shown
        listed = self.query_one(Rows)
        at = self._highlighted()
        options: list[Option] = []
        for heading, members in groups:
            if options:
                options.append(Option("", disabled=True))
            options.append(Option(Content.styled(f" {heading}", MUTED), disabled=True))
            options += [self._row(one, one.id == current) for one in members]
        if self.has_more:
            options.append(Option(Content.styled("  … older conversations", MUTED), id=_MORE))
        with self.app.batch_update():
            listed.clear_options()
            listed.add_options(options)
            wanted = at if listed.has_focus and at is not None else current
            for index, option in enumerate(options):
                if wanted is not None and option.id == str(wanted):
                    listed.highlighted = index

    def focus_rows(self) -> None:
        self.query_one(Rows).focus()

    @property
    def focused_id(self) -> int | None:
        """The conversation under the cursor, if the list has the focus."""
        return self._highlighted() if self.query_one(Rows).has_focus else None

    def _row(self, conversation: Conversation, current: bool) -> Option:
        mark = Content.styled("▌", "$primary") if current else Content(" ")
        # One line for each conversation: the list cuts what is too long.
        name = Content.styled(title(conversation), "bold" if current else "")
        if conversation.tags:
            # Tags stay visible, however long the title is.
            tags = Content.styled(f" {tag_words(conversation.tags)}", MUTED)
            room = max(_WIDTH // 2, _WIDTH - name.cell_length)
            tags = tags.truncate(room, ellipsis=True)
            name = name.truncate(_WIDTH - tags.cell_length, ellipsis=True) + tags
        return Option(Content.assemble(mark, name), id=str(conversation.id))

    def _highlighted(self) -> int | None:
        listed = self.query_one(Rows)
        if listed.highlighted is None:
            return None
        at = listed.get_option_at_index(listed.highlighted).id
        return int(at) if at is not None and at != _MORE else None

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id == _MORE:
            self.post_message(self.MoreRequested())
        elif event.option.id is not None:
            self.post_message(self.Selected(int(event.option.id)))

    def action_delete(self) -> None:
        at = self._highlighted()
        if at is not None:
            self.post_message(self.DeleteRequested(at))
