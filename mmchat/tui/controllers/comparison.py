"""Two adapters answer the same message, and their answers are shown beside each other."""

import asyncio
from functools import partial

from mmchat.display.messages import model_name
from mmchat.history import Message
from mmchat.settings import NO_ADAPTER
from mmchat.tui import choices
from mmchat.tui.controllers.context import ChatContext
from mmchat.tui.controllers.sync import HistorySync
from mmchat.tui.screens.dialogs import PickScreen


class ComparisonController:
    """Compares adapters."""

    def __init__(self, context: ChatContext, sync: HistorySync) -> None:
        self._context = context
        self._service = context.service
        self._sync = sync

    def compare(self, argument: str) -> None:
        """argument: two names, one name to compare with the selected adapter, or nothing to ask."""
        composer, names = self._context.composer, argument.split()
        if self._service.answers.remote:
            composer.show_error("The server in engine.url has no adapters.")
        elif len(names) > 2:
            composer.restore(
                f"/compare {argument}",
                "/compare takes one or two adapters, such as /compare none birds.",
            )
        elif self._question() is None:
            composer.show_error("There is no message yet that two adapters could answer.")
        elif names:
            self._context.tasks.enqueue(partial(self._compare_named, argument, names))
        else:
            self._context.show_dialog(self._pick)

    def _question(self) -> Message | None:
        """The person's last message that is shown."""
        messages = reversed(self._context.transcript.branch)
        return next((one for one in messages if one.role == "user"), None)

    @property
    def _selected(self) -> str:
        return self._service.answers.settings.model.adapter or NO_ADAPTER

    async def _pick(self) -> None:
        selected = self._selected
        items = [
            (name, model_name(name), about)
            for name, about in await asyncio.to_thread(choices.list_choices, "adapters")
            if name != selected
        ]
        chosen = await self._context.screen.app.push_screen_wait(
            PickScreen(
                "Which adapter should also answer?",
                items,
                "",
                "No matches.",
                "Enter asks both   Esc cancels",
            )
        )
        if chosen is not None:
            self._context.tasks.enqueue(partial(self._compare, selected, chosen))

    async def _compare_named(self, argument: str, names: list[str]) -> None:
        """Compare what a person typed, if there are such adapters; a folder is named by a path."""
        known = {one for one, _ in await asyncio.to_thread(choices.list_choices, "adapters")}
        unknown = [one for one in names if one not in known and not one.startswith(("/", ".", "~"))]
        first, second = names if len(names) == 2 else (self._selected, names[0])
        problem = ""
        if unknown:
            problem = f"There is no adapter {unknown[0]}. /adapter alone shows what is here."
        elif len(names) == 2 and first == second:
            problem = f"{first} is named twice: name two different adapters."
        elif first == second:
            problem = f"{first} is already active: name another adapter, or {NO_ADAPTER}."
        if problem:
            self._context.composer.restore(f"/compare {argument}", problem)
        else:
            await self._compare(first, second)

    async def _compare(self, first: str, second: str) -> None:
        """Both answer the last message, one after the other."""
        context = self._context
        if self._service.pending():
            context.composer.show_error("An answer is still being written: Esc stops it.")
            return
        await self._sync.sync_messages(only_new=True)
        question = self._question()
        if question is None:
            return  # another window changed the conversation
        adapters = ["" if name == NO_ADAPTER else name for name in (first, second)]
        answers = await self._service.compare(question, *adapters)
        await context.transcript.remove_after(question.id)
        await context.transcript.add_pair(*answers)
        context.composer.input.focus()
        await self._service.refresh()

    async def answer_finished(self, message: Message) -> None:
        """When both are finished, and only one has text, the conversation goes on with that one."""
        transcript, history = self._context.transcript, self._service.history
        pair = transcript.pair
        if message.id not in pair or any(one in self._service.answers.pending for one in pair):
            return
        shown = transcript.branch[-1]
        other = await history.message(next(one for one in pair if one != shown.id))
        if other.text.strip() and not shown.text.strip():
            await self._service.open_at(other.conversation_id, other.id)
            transcript.continue_pair_with(other)
