"""Two adapters answer the same message, and their answers are seen beside each other."""

import asyncio
from functools import partial

from textual import work

from mmchat.display.messages import model_name
from mmchat.history import Message
from mmchat.settings import NO_ADAPTER
from mmchat.tui.choices import choices
from mmchat.tui.screens.dialogs import PickScreen
from mmchat.tui.screens.judging import Judging
from mmchat.tui.screens.stage import Deed


class Comparing(Judging):
    """More of the actions (deeds.py)."""

    def do_compare(self, argument: str) -> Deed | None:
        names = argument.split()
        if self.app.asker.remote:
            self.composer.complain("The server in engine.url has no adapters.")
        elif len(names) > 2:
            self.composer.put_back(f"/compare {argument}", "Name two adapters, or none and one.")
        elif self._question() is None:
            self.composer.complain("There is no message yet that two adapters could answer.")
        elif names:
            return partial(self._compare_named, argument, names)
        else:
            self._pick_other()
        return None

    def _question(self) -> Message | None:
        """The person's last message that is shown."""
        messages = reversed(self.transcript.branch)
        return next((one for one in messages if one.role == "user"), None)

    @property
    def _worn(self) -> str:
        return self.app.asker.settings.model.adapter or NO_ADAPTER

    @work(exclusive=True, group="dialog")
    async def _pick_other(self) -> None:
        worn = self._worn
        items = [
            (name, model_name(name), about)
            for name, about in await asyncio.to_thread(choices, "adapters")
            if name != worn
        ]
        chosen = await self.app.push_screen_wait(
            PickScreen(
                "Which adapter should also answer?",
                items,
                "",
                "No matches.",
                "Enter asks both   Esc cancels",
            )
        )
        if chosen is not None:
            self.put(partial(self._compare, worn, chosen))

    async def _compare_named(self, argument: str, names: list[str]) -> None:
        """What a person typed, if there are adapters of these names; a folder is named by a path."""
        known = {one for one, _ in await asyncio.to_thread(choices, "adapters")}
        unknown = [one for one in names if one not in known and not one.startswith(("/", ".", "~"))]
        first, second = names if len(names) == 2 else (self._worn, names[0])
        problem = ""
        if unknown:
            problem = f"There is no adapter {unknown[0]}. /adapter alone shows what is here."
        elif len(names) == 2 and first == second:
            problem = f"{first} is named twice: name two different adapters."
        elif first == second:
            problem = f"{first} is already active: name another adapter, or {NO_ADAPTER}."
        if problem:
            self.composer.put_back(f"/compare {argument}", problem)
        else:
            await self._compare(first, second)

    async def _compare(self, first: str, second: str) -> None:
        """Both answer the last message, one after the other; what was on before is on again then."""
        session, transcript = self.app.session, self.transcript
        if session.live():
            self.composer.complain("An answer is still being written: Esc stops it.")
            return
        await self.catch_up(only_more=True)
        question = self._question()
        if question is None:
            return  # the conversation was changed meanwhile
        answers = await session.compare(
            question, *("" if n == NO_ADAPTER else n for n in (first, second))
        )
        await transcript.cut_after(question.id)
        await transcript.compare(*answers)
        self.composer.input.focus()
        await session.refresh()
        await self.show_lines()

    async def one_of_two_ended(self, message: Message) -> None:
        """Once both are over: an answer without a word is not the one to go on with."""
        pair = self.transcript.pair
        if message.id not in pair or any(one in self.app.asker.live for one in pair):
            return
        shown = self.transcript.branch[-1]
        other = await asyncio.to_thread(
            self.app.history.message, next(one for one in pair if one != shown.id)
        )
        if other.text.strip() and not shown.text.strip():
            await self.app.session.show(other.conversation_id, other.id)
            self.transcript.keep(other)
