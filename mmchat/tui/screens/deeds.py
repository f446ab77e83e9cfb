"""What each action of actions.py does on the chat screen: one `do_<id>` each.

A `do_<id>` does at once what can be done at once and returns what has to wait:
a deed for the line (stage.py), or None.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from textual import work

from mmchat.display.messages import model_label, model_name, title
from mmchat.errors import HistoryError, ImageError
from mmchat.history import Hit, Message
from mmchat.images import PICTURE_SUFFIXES, read_picture
from mmchat.sanitize import clean
from mmchat.tui.choices import choices
from mmchat.tui.pasted import as_path, paths
from mmchat.tui.screens.dialogs import ConfirmScreen, LinesScreen, PickScreen, TextScreen
from mmchat.tui.screens.help import HelpScreen
from mmchat.tui.screens.search import SearchScreen
from mmchat.tui.screens.stage import Deed, Stage
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.message import MessageView

if TYPE_CHECKING:
    from mmchat.tui.screens.training import TrainingScreen

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

    def do_attach(self, argument: str) -> Deed | None:
        if argument:
            return partial(self._attach_typed, argument)
        before = self.composer.input.text
        # A text that is being written stays; @ completes a path within it.
        self.composer.input.take_text(f"{before.rstrip()} @".lstrip() if before else "/attach ")
        self.composer.input.focus()
        return None

    async def _attach_typed(self, argument: str) -> None:
        if not await self.attach(paths(argument, PICTURE_SUFFIXES) or [as_path(argument)]):
            self.composer.put_back(f"/attach {argument}")

    # Conversations

    def do_new(self, _: str) -> Deed:
        return self.show_new

    def do_conversations(self, _: str) -> None:
        self.toggle_class("listed")
        if self.has_class("-narrow") and self.has_class("listed"):
            self.listed.take_focus()
        else:
            self.composer.input.focus()

    @property
    def listed(self) -> ConversationList:
        return self.query_one(ConversationList)

    def _meant(self) -> int | None:
        """The conversation under the cursor of the list that has the focus, else the open one."""
        return self.listed.chosen or self.app.session.conversation_id

    def do_search(self, words: str) -> None:
        self._search(words)

    @work(exclusive=True, group="dialog")
    async def _search(self, words: str) -> None:
        history = self.app.history
        hit: Hit | None = await self.app.push_screen_wait(
            SearchScreen(lambda query: history.search(query, 30), self.app.clock(), words)
        )
        if hit is not None:
            self.put(partial(self._open_hit, hit))

    async def _open_hit(self, hit: Hit) -> None:
        branch = await self.app.session.show(hit.conversation_id, hit.message_id)
        await self._show(branch, at=hit.message_id)

    def do_rename(self, argument: str) -> Deed | None:
        conversation_id = self._meant()
        if conversation_id is None:
            self.composer.complain("There is nothing to rename yet: send a message first.")
        elif argument:
            return partial(self._rename, conversation_id, argument)
        else:
            self._ask_title(conversation_id)
        return None

    @work(exclusive=True, group="dialog")
    async def _ask_title(self, conversation_id: int) -> None:
        with self.told():
            now = await asyncio.to_thread(self.app.history.conversation, conversation_id)
            wanted = await self.app.push_screen_wait(
                TextScreen("Title of this conversation", title(now))
            )
            if wanted is not None and wanted.strip():
                self.put(partial(self._rename, conversation_id, wanted))

    @contextlib.contextmanager
    def _kept_typed(self, command: str) -> Iterator[None]:
        """A command that the history cannot carry out goes back into the input, if that is empty."""
        try:
            yield
        except HistoryError:
            if not self.composer.input.text:
                self.composer.put_back(command)
            raise

    async def _rename(self, conversation_id: int, wanted: str) -> None:
        with self._kept_typed(f"/rename {wanted}"):
            await self.app.session.rename(conversation_id, clean(wanted, keep_newlines=False))
        await self.show_lines()

    def do_delete(self, _: str) -> None:
        conversation_id = self._meant()
        if conversation_id is None:
            self.composer.complain("There is nothing to delete: this conversation is empty.")
        else:
            self.ask_to_delete(conversation_id)

    @work(exclusive=True, group="dialog")
    async def ask_to_delete(self, conversation_id: int) -> None:
        with self.told():
            one = await asyncio.to_thread(self.app.history.conversation, conversation_id)
            question = (
                f"Delete “{title(one)}”, its pictures and all its messages? This cannot be undone."
            )
            if await self.app.push_screen_wait(ConfirmScreen(question, "Delete")):
                self.put(partial(self._delete, conversation_id))

    async def _delete(self, conversation_id: int) -> None:
        session = self.app.session
        was_open = conversation_id == session.conversation_id
        await session.delete(conversation_id)
        latest = await asyncio.to_thread(session.history.latest)
        if not was_open:
            await self.show_lines()
        elif latest is not None:
            await self.open(latest.id)
        else:
            await self.show_new()

    # Answers

    def do_stop(self, _: str) -> None:
        if self.composer.close_suggestions():
            return
        if self.has_class("-narrow") and self.has_class("listed"):
            self.remove_class("listed")
            self.composer.input.focus()
            return
        live = [one for one in self.app.session.live() if one.ending is None]
        if live:
            pair = self.transcript.pair
            both = [one for one in live if one.id in pair] if live[0].id in pair else live[:1]
            for one in reversed(both):  # the one that waits before the one that would make way
                self.app.asker.stop(one)
            return
        if self.transcript.pair:
            self.put(self.transcript.collapse)
        self.composer.complain("")
        self.composer.input.focus()

    def do_regenerate(self, _: str) -> Deed:
        return self._regenerate

    async def _regenerate(self) -> None:
        message = self.target(lambda one: True)
        if message is None:
            self.composer.complain("There is no answer to regenerate yet.")
            return
        if message.id in self.app.asker.live:
            self.composer.complain("This answer is still being written: Esc stops it.")
            return
        answer = await self.app.session.regenerate(message)
        if message.role == "assistant":
            await self.transcript.cut(message.id)
        else:
            await self.transcript.cut_after(message.id)
        await self.transcript.add(answer)
        self.composer.input.focus()
        await self.app.session.refresh()
        await self.show_lines()

    def do_previous_answer(self, _: str) -> Deed:
        return partial(self._move_some, -1)

    def do_next_answer(self, _: str) -> Deed:
        return partial(self._move_some, 1)

    async def _move_some(self, step: int) -> None:
        message = self.target(lambda one: one.siblings > 1)
        if message is None:
            self.composer.complain("There is only one answer: Ctrl+R makes another.")
        else:
            await self.move(message, step)

    async def move(self, message: Message, step: int) -> None:
        """Show the answer before or after `message`, and what followed it."""
        had_focus = isinstance(self.focused, MessageView)
        branch = await self.app.session.move(message, step)
        if branch is None:
            return
        await self.transcript.cut(message.id)
        known = {one.id for one in self.transcript.branch}
        new = [one for one in branch if one.id not in known]
        await self.transcript.add(*new)
        if had_focus and new and (view := self.transcript.view(new[0].id)) is not None:
            view.focus()
        await self.show_lines()

    def do_copy(self, _: str) -> None:
        if isinstance(self.focused, MessageView):
            text = self.focused.words
        else:
            message = self.target(lambda one: one.role == "assistant" and bool(one.text))
            text = message.text if message else ""
        if not text:
            self.composer.complain("There is no text here to copy.")
            return
        self.app.copy_to_clipboard(clean(text))
        self.notify("Copied.", timeout=2)

    # Model, adapter, system prompt

    def do_model(self, argument: str) -> Deed | None:
        if self.app.asker.remote:
            self.composer.complain("The server in engine.url chooses the model.")
        elif argument:
            return partial(self._use_named, "model", argument)
        else:
            self._pick("model")
        return None

    def do_adapter(self, argument: str) -> Deed | None:
        if self.app.asker.remote:
            self.composer.complain("The server in engine.url has no adapters.")
        elif argument:
            if argument == "none":
                return partial(self._use, adapter="")
            return partial(self._use_named, "adapter", argument)
        else:
            self._pick("adapter")
        return None

    @work(exclusive=True, group="dialog")
    async def _pick(self, kind: str) -> None:
        wanted = self.app.asker.settings.model
        items = [
            (name, model_name(name), about)
            for name, about in await asyncio.to_thread(choices, kind)
        ]
        if kind == "adapter":
            items.insert(0, ("", "none", "no adapter"))
        current = wanted.name if kind == "model" else wanted.adapter
        chosen = await self.app.push_screen_wait(
            PickScreen(
                "Which model?" if kind == "model" else "Which adapter?",
                items,
                current,
                "No matches.",
            )
        )
        if chosen is None or chosen == current:
            return
        self.put(partial(self._use, **{kind: chosen}))

    async def _use_named(self, kind: Literal["model", "adapter"], name: str) -> None:
        """What a person typed, if there is one of this name; a folder is named by a path."""
        known = {one for one, _ in await asyncio.to_thread(choices, kind)}
        if name not in known and Path(name).name == name:
            self.composer.put_back(
                f"/{kind} {name}", f"There is no {kind} {name}. /{kind} alone shows what is here."
            )
        elif kind == "model":
            await self._use(model=name)
        else:
            await self._use(adapter=name)

    async def _use(self, model: str | None = None, adapter: str | None = None) -> None:
        """Change what answers in this window, and name it in the title before it is loaded."""
        self.app.use(model, adapter)
        wanted = self.app.asker.settings.model
        self._model_label = model_label(wanted.name, wanted.adapter, "", "")
        await self.show_lines()

    def do_system(self, argument: str) -> Deed | None:
        if argument:
            return partial(self._set_system, argument)
        self._ask_system()
        return None

    @work(exclusive=True, group="dialog")
    async def _ask_system(self) -> None:
        wanted = await self.app.push_screen_wait(
            LinesScreen(
                "System prompt of this conversation",
                self.app.session.current_system,
                "empty for none",
            )
        )
        if wanted is not None:
            self.put(partial(self._set_system, wanted))

    async def _set_system(self, wanted: str) -> None:
        with self._kept_typed(f"/system {wanted}"):
            await self.app.session.set_system(wanted)
        self.notify("The system prompt is set for this conversation.", timeout=3)

    # Training

    def do_train(self, path: str) -> None:
        self._train(path)

    @work(exclusive=True, group="dialog")
    async def _train(self, path: str) -> None:
        screen = await asyncio.to_thread(_training_screen)
        self.app.push_screen(screen(self._wear, path))

    def _wear(self, model: str | None, adapter: str, then: Callable[[], None]) -> None:
        async def wear() -> None:
            await self._use(model, adapter)
            then()

        self.put(wear)

    # The rest

    def do_theme(self, _: str) -> None:
        self.app.theme = LIGHT if self.app.current_theme.dark else DARK

    def do_help(self, _: str) -> None:
        self.app.push_screen(HelpScreen(list(self.active_bindings.values())))

    def do_quit(self, _: str) -> None:
        self.app.exit()

    @work(exclusive=True, group="dialog")
    async def ask_to_open(self, href: str) -> None:
        """A link of the model's is opened only after the person has read where it leads."""
        shown = clean(href, keep_newlines=False)
        if urlsplit(href).scheme.lower() not in _OPENABLE or shown != href:
            self.notify(f"Not opened: {shown}", severity="warning", markup=False)
            return
        if await self.app.push_screen_wait(
            ConfirmScreen(f"Open this address in the browser?\n{shown}", "Open", "Cancel")
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


def _training_screen() -> "type[TrainingScreen]":
    # Loads what draws curves, which the first paint shall not wait for.
    from mmchat.tui.screens.training import TrainingScreen

    return TrainingScreen
