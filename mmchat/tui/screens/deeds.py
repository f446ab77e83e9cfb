"""What each action of actions.py does on the chat screen: one `do_<id>` each."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from textual import work

from mmchat.errors import HistoryError, ImageError
from mmchat.history import Hit, Message
from mmchat.images import PICTURE_SUFFIXES, read_picture
from mmchat.sanitize import clean
from mmchat.tui.choices import choices
from mmchat.tui.formatting import model_label, model_name, title
from mmchat.tui.pasted import as_path, paths
from mmchat.tui.screens.dialogs import ConfirmScreen, PickScreen, TextScreen
from mmchat.tui.screens.help import HelpScreen
from mmchat.tui.screens.search import SearchScreen
from mmchat.tui.screens.stage import Stage
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.message import MessageView

DARK, LIGHT = "textual-dark", "textual-light"
_OPENABLE = ("http", "https", "mailto")


class Deeds(Stage):
    """The middle of the chat screen, between what is shown and what is routed."""

    # Pictures

    async def attach(self, files: Sequence[Path]) -> bool:
        """Attach the pictures at `files`; what cannot be used is told next to the input.

        False where there was something to tell.
        """
        problems: list[str] = []
        for file in files:
            try:
                picture = await asyncio.to_thread(read_picture, file)
            except ImageError as error:
                problems.append(str(error))
            else:
                await self.composer.add_picture(picture)
        if problems:
            self.composer.complain("  ".join(problems))
        return not problems

    async def do_attach(self, argument: str) -> None:
        if not argument:
            before = self.composer.input.text
            # A text that is being written stays; @ completes a path within it.
            self.composer.input.take_text(f"{before.rstrip()} @".lstrip() if before else "/attach ")
            self.composer.input.focus()
            return
        if not await self.attach(paths(argument, PICTURE_SUFFIXES) or [as_path(argument)]):
            self.composer.put_back(f"/attach {argument}")

    # Conversations

    async def do_new(self, _: str) -> None:
        await self.show_new()

    async def do_conversations(self, _: str) -> None:
        self.toggle_class("listed")
        listed = self.query_one(ConversationList)
        if self.has_class("-narrow") and self.has_class("listed"):
            listed.take_focus()
        else:
            self.composer.input.focus()

    @work(exclusive=True, group="dialog")
    async def _search(self, words: str) -> None:
        history = self.app.history
        hit: Hit | None = await self.app.push_screen_wait(
            SearchScreen(lambda query: history.search(query, 30), self.app.clock(), words)
        )
        if hit is None:
            return
        try:
            if all(one.id != hit.message_id for one in history.branch(hit.conversation_id)):
                history.set_head(hit.conversation_id, hit.message_id)
        except HistoryError as error:
            self.composer.complain(str(error))
            return
        await self.open(hit.conversation_id, at=hit.message_id)

    async def do_search(self, argument: str) -> None:
        self._search(argument)

    async def do_rename(self, argument: str) -> None:
        if self.app.session.conversation is None:
            self.composer.complain("There is nothing to rename yet: send a message first.")
        elif argument:
            self._rename(argument)
        else:
            self._ask_title()

    @work(exclusive=True, group="dialog")
    async def _ask_title(self) -> None:
        now = title(self.app.session.conversation)
        wanted = await self.app.push_screen_wait(TextScreen("Title of this conversation", now))
        if wanted is not None and wanted.strip():
            self._rename(wanted)

    def _rename(self, wanted: str) -> None:
        try:
            self.app.session.rename(clean(wanted, keep_newlines=False))
            self.show_lines()
        except HistoryError as error:
            self.composer.complain(str(error))

    async def do_delete(self, _: str) -> None:
        conversation_id = self.app.session.conversation_id
        if conversation_id is None:
            self.composer.complain("There is nothing to delete: this conversation is empty.")
        else:
            self.ask_to_delete(conversation_id)

    @work(exclusive=True, group="dialog")
    async def ask_to_delete(self, conversation_id: int) -> None:
        session = self.app.session
        try:
            name = title(session.history.conversation(conversation_id))
            question = f"Delete “{name}”, its pictures and all its messages? This cannot be undone."
            if not await self.app.push_screen_wait(ConfirmScreen(question, "Delete")):
                return
            was_open = conversation_id == session.conversation_id
            session.delete(conversation_id)
            latest = session.history.latest()
            if was_open and latest is not None:
                await self.open(latest.id)
            elif was_open:
                await self.show_new()
            self.show_lines()
        except HistoryError as error:
            self.composer.complain(str(error))

    # Answers

    async def do_stop(self, _: str) -> None:
        if self.composer.close_suggestions():
            return
        if self.has_class("-narrow") and self.has_class("listed"):
            self.remove_class("listed")
            self.composer.input.focus()
            return
        live = self.app.session.live()
        if live:
            self.app.asker.stop(live[0])
            return
        self.composer.complain("")
        self.composer.input.focus()

    async def do_regenerate(self, _: str) -> None:
        message = self.target(lambda one: one.role == "assistant") or self.target(
            lambda one: one.role == "user"
        )
        if message is None:
            self.composer.complain("There is no answer yet to make again.")
            return
        if message.id in self.app.asker.live:
            self.composer.complain("This answer is still being written: Esc stops it.")
            return
        async with self.changing:
            answer = self.app.session.regenerate(message)
            if message.role == "assistant":
                await self.transcript.cut(message.id)
            else:
                await self.transcript.cut_after(message.id)
            await self.transcript.add(answer)
            self.composer.input.focus()
            self.show_lines()

    async def do_previous_answer(self, _: str) -> None:
        await self._move_some(-1)

    async def do_next_answer(self, _: str) -> None:
        await self._move_some(1)

    async def _move_some(self, step: int) -> None:
        message = self.target(lambda one: one.siblings > 1)
        if message is None:
            self.composer.complain("There is one answer only: ctrl+r makes another.")
        else:
            await self.move(message, step)

    async def move(self, message: Message, step: int) -> None:
        """Show the answer before or after `message`, and what followed it."""
        had_focus = isinstance(self.focused, MessageView)
        async with self.changing:
            branch = self.app.session.move(message, step)
            if branch is None:
                return
            await self.transcript.cut(message.id)
            known = {one.id for one in self.transcript.branch}
            new = [one for one in branch if one.id not in known]
            await self.transcript.add(*new)
            if had_focus and new and (view := self.transcript.view(new[0].id)) is not None:
                view.focus()
            self.show_lines()

    async def do_copy(self, _: str) -> None:
        message = self.target(lambda one: one.role == "assistant" and bool(one.text))
        if isinstance(self.focused, MessageView):
            message = self.focused.message
        if message is None:
            self.composer.complain("There is no answer yet to copy.")
            return
        self.app.copy_to_clipboard(clean(message.text))
        self.notify("Copied.", timeout=2)

    # Model, adapter, system prompt

    async def do_model(self, argument: str) -> None:
        if self.app.asker.remote:
            self.composer.complain("The server in engine.url chooses the model.")
        elif argument:
            self._use(model=argument)
        else:
            self._pick("model")

    async def do_adapter(self, argument: str) -> None:
        if self.app.asker.remote:
            self.composer.complain("The server in engine.url knows no adapters.")
        elif argument:
            self._use(adapter="" if argument == "none" else argument)
        else:
            self._pick("adapter")

    @work(exclusive=True, group="dialog")
    async def _pick(self, kind: str) -> None:
        wanted = self.app.asker.settings.model
        items = [
            (name, model_name(name), about)
            for name, about in await asyncio.to_thread(choices, kind)
        ]
        if kind == "adapter":
            items.insert(0, ("", "none", "the base's own projector"))
        current = wanted.name if kind == "model" else wanted.adapter
        chosen = await self.app.push_screen_wait(
            PickScreen(
                "Which model shall answer?" if kind == "model" else "Which adapter shall it wear?",
                items,
                current,
                "Nothing here has this name.",
            )
        )
        if chosen is None or chosen == current:
            return
        if kind == "model":
            self._use(model=chosen)
        else:
            self._use(adapter=chosen)

    def _use(self, model: str | None = None, adapter: str | None = None) -> None:
        """Change what answers in this window, and name it in the title before it is loaded."""
        self.app.use(model, adapter)
        wanted = self.app.asker.settings.model
        self._model_label = model_label(wanted.name, wanted.adapter, "", "")
        self.show_lines()

    async def do_system(self, argument: str) -> None:
        if argument:
            self.app.session.set_system(argument)
            self.notify("The system prompt is set for this conversation.", timeout=3)
        else:
            self._ask_system()

    @work(exclusive=True, group="dialog")
    async def _ask_system(self) -> None:
        session = self.app.session
        wanted = await self.app.push_screen_wait(
            TextScreen(
                "System prompt of this conversation", session.current_system, "empty for none"
            )
        )
        if wanted is not None:
            try:
                session.set_system(wanted)
            except HistoryError as error:
                self.composer.complain(str(error))

    # The rest

    async def do_theme(self, _: str) -> None:
        self.app.theme = LIGHT if self.app.current_theme.dark else DARK

    async def do_help(self, _: str) -> None:
        self.app.push_screen(HelpScreen(list(self.active_bindings.values())))

    async def do_quit(self, _: str) -> None:
        self.app.exit()

    @work(exclusive=True, group="dialog")
    async def ask_to_open(self, href: str) -> None:
        """A link of the model's is opened only after the person has read where it leads."""
        shown = clean(href, keep_newlines=False)
        if urlsplit(href).scheme.lower() not in _OPENABLE or shown != href:
            self.notify(f"Not opened: {shown}", severity="warning", markup=False)
            return
        if await self.app.push_screen_wait(
            ConfirmScreen(f"Open this address in the browser?\n{shown}", "Open", "Leave it")
        ):
            self.app.open_url(href)

    def action_step(self, step: int) -> None:
        """ctrl+↑ and ctrl+↓: walk over the messages."""
        views = list(self.query(MessageView))
        if not views:
            return
        at = views.index(self.focused) if isinstance(self.focused, MessageView) else len(views)
        if 0 <= at + step < len(views):
            views[at + step].focus()
        elif step > 0:
            self.composer.input.focus()
