"""What the person thinks: answers rated and corrected, conversations tagged."""

import asyncio
import re
from functools import partial

from textual import work

from mmchat.display.messages import tag_words
from mmchat.errors import HistoryError
from mmchat.history import Message, Rating
from mmchat.tui.screens.correct import CorrectScreen
from mmchat.tui.screens.deeds import Deeds
from mmchat.tui.screens.dialogs import TextScreen
from mmchat.tui.screens.stage import Deed
from mmchat.tui.widgets.message import MessageView

_CUT = ("length", "interrupted", "failed")


class Judging(Deeds):
    """More of the actions (deeds.py): those from which mmchat can learn."""

    def do_good(self, _: str) -> Deed | None:
        return self._rate("good")

    def do_bad(self, _: str) -> Deed | None:
        return self._rate("bad")

    def _rate(self, rating: Rating) -> Deed | None:
        message = self._answer()
        return partial(self._toggle_rating, message.id, rating) if message else None

    def _answer(self) -> Message | None:
        """The answer that is meant: the focused one, else the last one, if it is over."""
        message = self.target(lambda one: one.role == "assistant")
        if message is None:
            self.composer.complain("There is no answer yet to rate or to correct.")
        elif message.id in self.app.asker.live:
            self.composer.complain("This answer is still being written: Esc stops it.")
            message = None
        return message

    async def _toggle_rating(self, message_id: int, rating: Rating) -> None:
        """The same rating again takes it back."""
        before = await asyncio.to_thread(self.app.history.message, message_id)
        wanted = None if before.rating == rating else rating
        message = await asyncio.to_thread(self.app.history.rate, message_id, wanted)
        await self._show_again(message)
        if wanted == "good" and message.state in _CUT:
            self.notify(
                "This answer is incomplete, so nothing is learned from it: complete it with Ctrl+G.",
                timeout=6,
            )

    async def _show_again(self, message: Message) -> None:
        self.transcript.replace(message)
        view = self.transcript.view(message.id)
        if view is not None:
            await view.finish(message)
        await self.show_lines()

    def do_correct(self, _: str) -> None:
        message = self._answer()
        if message is not None:
            self._ask_correction(message.id)

    @work(exclusive=True, group="dialog")
    async def _ask_correction(self, message_id: int) -> None:
        had_focus = isinstance(self.focused, MessageView)

        async def save(text: str) -> Message:
            return await asyncio.to_thread(self.app.history.correct, message_id, text)

        with self.told():
            message = await asyncio.to_thread(self.app.history.message, message_id)
            if message.state == "streaming":
                self.composer.complain("This answer is being written in another window.")
                return
            kept: Message | None = await self.app.push_screen_wait(
                CorrectScreen(message.text, save, lambda: not self.app.asker.live)
            )
            if kept is not None and kept.id != message_id:
                self.put(partial(self._show_correction, message, kept, had_focus))

    async def _show_correction(self, message: Message, kept: Message, had_focus: bool) -> None:
        session = self.app.session
        if kept.conversation_id != session.conversation_id:
            return  # deleted in another window meanwhile
        if all(one.id != message.id for one in self.transcript.branch):
            await self.open(kept.conversation_id)  # another window changed the branch
            return
        followed = self.transcript.branch[-1].id != message.id
        await self.transcript.cut(message.id)
        await self.transcript.add(kept)
        view = self.transcript.view(kept.id)
        if had_focus and view is not None:
            view.focus()
        else:
            self.composer.input.focus()
        await session.refresh()
        await self.show_lines()
        if followed:
            self.notify(
                "The messages that followed are under the previous answer: Alt+←.", timeout=6
            )

    # Tags

    def do_tag(self, name: str) -> Deed | None:
        conversation_id = self._meant()
        if conversation_id is None:
            self.composer.complain("There is nothing to tag yet: send a message first.")
        elif name:
            return partial(self._toggle_tag, conversation_id, name)
        else:
            self._ask_tags(conversation_id)
        return None

    async def _toggle_tag(self, conversation_id: int, name: str) -> None:
        """The same tag again takes it away."""
        history = self.app.history

        def toggle() -> tuple[str, ...]:
            before = history.conversation(conversation_id).tags
            after = history.tag(conversation_id, name).tags
            return after if after != before else history.untag(conversation_id, name).tags

        try:
            tags = await asyncio.to_thread(toggle)
        except HistoryError as error:
            self.composer.put_back(f"/tag {name}", str(error))
            return
        await self._show_tags(conversation_id, tags)

    @work(exclusive=True, group="dialog")
    async def _ask_tags(self, conversation_id: int) -> None:
        with self.told():
            now = await asyncio.to_thread(self.app.history.conversation, conversation_id)
            wanted = await self.app.push_screen_wait(
                TextScreen("Tags of this conversation", " ".join(now.tags), "birds red-kites")
            )
            if wanted is not None:
                names = [name for name in re.split(r"[\s,;]+", wanted) if name]
                self.put(partial(self._set_tags, conversation_id, names))

    async def _set_tags(self, conversation_id: int, names: list[str]) -> None:
        now = await asyncio.to_thread(self.app.history.set_tags, conversation_id, names)
        await self._show_tags(conversation_id, now.tags)

    async def _show_tags(self, conversation_id: int, tags: tuple[str, ...]) -> None:
        await self.app.session.refresh()
        await self.show_lines()
        said = f"Tagged {tag_words(tags)}" if tags else "All tags removed"
        self.notify(f"{said}.", timeout=3, markup=False)
