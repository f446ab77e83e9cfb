"""Conversations: opened, found, named, tagged, deleted."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from functools import partial

from mmchat.display.messages import tag_words, title
from mmchat.errors import HistoryError
from mmchat.history import Conversation, Hit, Message
from mmchat.sanitize import clean
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.controllers.unsent import UnsentMessages
from mmchat.tui.screens.dialogs import ConfirmScreen, LinesScreen, TextScreen, WordsScreen
from mmchat.tui.screens.search import SearchScreen
from mmchat.tui.widgets.welcome import Welcome, examples

_HITS = 30


class ConversationsController:
    """What is done with a conversation as a whole."""

    def __init__(self, context: ChatContext, unsent: UnsentMessages) -> None:
        self._context = context
        self._service = context.service
        self._unsent = unsent

    @property
    def selected_id(self) -> int | None:
        """The conversation under the cursor of the list if that has the focus, else the open one."""
        return self._context.conversation_list.focused_id or self._service.conversation_id

    # Opening

    async def open(self, conversation_id: int) -> None:
        """Show a conversation, scrolled to its end."""
        await self._show(await self._service.open(conversation_id))

    async def open_new(self) -> None:
        """Show an empty conversation."""
        self._service.start_new()
        await self._show([])

    async def _open_hit(self, hit: Hit) -> None:
        branch = await self._service.open_at(hit.conversation_id, hit.message_id)
        await self._show(branch, hit.message_id)

    async def _show(self, branch: Sequence[Message], message_id: int | None = None) -> None:
        context = self._context
        await self.hide_welcome()
        context.screen.remove_class("listed")
        await context.transcript.show(branch, message_id)
        if not branch:
            await self._show_welcome()
        if message_id is None:
            context.composer.input.focus()
        await self._unsent.restore()

    async def _show_welcome(self) -> None:
        context = self._context
        await self.hide_welcome()
        first = await self._service.history.latest() is None
        welcome = Welcome(examples() if first else [], first)
        context.transcript.display = False
        await context.screen.query_one("#conversation").mount(welcome)
        context.composer.input.choosing = welcome.has_examples

    async def hide_welcome(self) -> None:
        """Make room for messages."""
        self._context.composer.input.choosing = False
        await self._context.screen.query(Welcome).remove()
        self._context.transcript.display = True

    # Search

    def search(self, query: str) -> None:
        self._context.show_dialog(partial(self._search, query))

    async def _search(self, query: str) -> None:
        context = self._context
        hit: Hit | None = await context.screen.app.push_screen_wait(
            SearchScreen(
                lambda query: self._service.history.search(query, _HITS), context.clock(), query
            )
        )
        if hit is not None:
            context.tasks.enqueue(partial(self._open_hit, hit))

    # Title

    def rename(self, new_title: str) -> None:
        conversation_id = self.selected_id
        if conversation_id is None:
            self._context.composer.show_error(
                "There is nothing to rename yet: send a message first."
            )
        elif new_title:
            self._context.tasks.enqueue(
                partial(self._rename_by_command, conversation_id, new_title)
            )
        else:
            self._context.show_dialog(partial(self._ask_title, conversation_id))

    async def _rename_by_command(self, conversation_id: int, new_title: str) -> None:
        with self._restored_on_error(f"/rename {new_title}"):
            await self._rename(conversation_id, new_title)

    async def _ask_title(self, conversation_id: int) -> None:
        now = await self._service.history.conversation(conversation_id)

        async def save(text: str) -> None:
            if text.strip():
                await self._context.tasks.call(partial(self._rename, conversation_id, text))

        await self._context.screen.app.push_screen_wait(
            TextScreen("Title of this conversation", title(now), save)
        )

    async def _rename(self, conversation_id: int, new_title: str) -> None:
        await self._service.rename(conversation_id, clean(new_title, keep_newlines=False))

    # Tags

    def tag(self, name: str) -> None:
        conversation_id = self.selected_id
        if conversation_id is None:
            self._context.composer.show_error("There is nothing to tag yet: send a message first.")
        elif name:
            self._context.tasks.enqueue(partial(self._toggle_tag, conversation_id, name))
        else:
            self._context.show_dialog(partial(self._ask_tags, conversation_id))

    async def _toggle_tag(self, conversation_id: int, name: str) -> None:
        with self._restored_on_error(f"/tag {name}"):
            self._notify_tags(await self._service.toggle_tag(conversation_id, name))

    async def _ask_tags(self, conversation_id: int) -> None:
        now = await self._service.history.conversation(conversation_id)

        async def save(text: str) -> None:
            names = [name for name in re.split(r"[\s,;]+", text) if name]
            set_tags = partial(self._service.set_tags, conversation_id, names)
            self._notify_tags(await self._context.tasks.call(set_tags))

        await self._context.screen.app.push_screen_wait(
            WordsScreen("Tags of this conversation", " ".join(now.tags), save, "birds red-kites")
        )

    def _notify_tags(self, conversation: Conversation) -> None:
        tags = conversation.tags
        message = f"Tagged {tag_words(tags)}." if tags else "All tags removed."
        self._context.screen.notify(message, timeout=3, markup=False)

    # System prompt

    def set_system(self, text: str) -> None:
        if text:
            self._context.tasks.enqueue(partial(self._set_system_by_command, text))
        else:
            self._context.show_dialog(self._ask_system)

    async def _set_system_by_command(self, text: str) -> None:
        with self._restored_on_error(f"/system {text}"):
            await self._set_system(text)

    async def _ask_system(self) -> None:
        async def save(text: str) -> None:
            await self._context.tasks.call(partial(self._set_system, text))

        await self._context.screen.app.push_screen_wait(
            LinesScreen(
                "System prompt of this conversation", self._service.system, save, "empty for none"
            )
        )

    async def _set_system(self, text: str) -> None:
        await self._service.set_system(text)
        self._context.screen.notify("The system prompt is set for this conversation.", timeout=3)

    # Deleting

    def delete(self, conversation_id: int | None = None) -> None:
        """Ask whether to delete a conversation, by default the selected one."""
        conversation_id = self.selected_id if conversation_id is None else conversation_id
        if conversation_id is None:
            self._context.composer.show_error(
                "There is nothing to delete: this conversation is empty."
            )
        else:
            self._context.show_dialog(partial(self._ask_to_delete, conversation_id))

    async def _ask_to_delete(self, conversation_id: int) -> None:
        conversation = await self._service.history.conversation(conversation_id)
        question = (
            f"Delete “{title(conversation)}”, its pictures and all its messages? "
            "This cannot be undone."
        )
        if await self._context.screen.app.push_screen_wait(ConfirmScreen(question, "Delete")):
            self._context.tasks.enqueue(partial(self._delete, conversation_id))

    async def _delete(self, conversation_id: int) -> None:
        was_open = conversation_id == self._service.conversation_id
        await self._service.delete(conversation_id)
        if not was_open:
            return
        latest = await self._service.history.latest()
        if latest is not None:
            await self.open(latest.id)
        else:
            await self.open_new()

    @contextlib.contextmanager
    def _restored_on_error(self, command: str) -> Iterator[None]:
        """A command that failed goes back into the input, unless something is typed there."""
        try:
            yield
        except HistoryError:
            if not self._context.composer.input.text:
                self._context.composer.restore(command)
            raise
