"""The conversation service without a screen: a real history file, an engine that answers by script."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.chat.async_history import AsyncHistory
from mmchat.chat.events import (
    AnswerChanged,
    AnswerDelta,
    AnswerFinished,
    ChatEvent,
    ConversationsChanged,
    LoadFinished,
    LoadProgress,
    ModelSelected,
)
from mmchat.chat.service import ConversationService
from mmchat.chat.unsaved import unsaved_answer
from mmchat.errors import HistoryError
from mmchat.history import Answer, History, Message
from mmchat.settings import load_settings
from tests.client.conftest import shared_engine, shared_home
from tests.engine.scripted import open_gate

__all__ = ["shared_engine", "shared_home"]


class Window:
    """A service with its queue, and the events that both emitted."""

    def __init__(self, history: History) -> None:
        self.events: list[ChatEvent] = []
        self._added = asyncio.Event()
        self.answers = AnswerQueue(load_settings({}), self._emit)
        self.service = ConversationService(AsyncHistory(history), self.answers, self._emit)
        self.history = history

    def _emit(self, event: ChatEvent) -> None:
        self.events.append(event)
        self._added.set()

    async def until(self, holds: Callable[[], object]) -> None:
        """Waits for events until `holds()`."""
        async with asyncio.timeout(30):
            while not holds():
                self._added.clear()
                await self._added.wait()

    async def ask(self, text: str) -> Message:
        """Sends a message at the end of the conversation; returns the finished answer."""
        branch = (
            self.history.branch(self.service.conversation_id) if self.service.conversation else []
        )
        message, answer = await self.service.send(text, [], branch[-1] if branch else None)
        await self.service.refresh(message.conversation_id)
        return await self.finished(answer)

    async def finished(self, answer: Message) -> Message:
        await self.until(lambda: answer.id not in self.answers.pending)
        return self.history.message(answer.id)


@pytest.fixture
async def window(shared_engine: Path) -> AsyncIterator[Window]:
    for file in shared_engine.glob("history.db*"):
        file.unlink()
    with History.open() as history:
        window = Window(history)
        worker = asyncio.create_task(window.answers.run())
        yield window
        await window.answers.close()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker


async def test_an_answer_is_streamed_and_stored(window: Window) -> None:
    answer = await window.ask("say red kite")
    assert (answer.text, answer.state) == ("red kite ", "complete")
    assert answer.origin is not None and answer.origin.model == "scenes"
    about = [
        event
        for event in window.events
        if isinstance(event, AnswerChanged | AnswerDelta | AnswerFinished)
    ]
    assert "".join(one.text for one in about if isinstance(one, AnswerDelta)) == "red kite "
    assert [type(one) for one in about[-2:]] == [AnswerDelta, AnswerFinished]
    assert isinstance(about[-1], AnswerFinished) and about[-1].message == answer
    assert ConversationsChanged() in window.events
    assert window.service.conversation is not None


async def test_stop_keeps_the_text(window: Window) -> None:
    _, begun = await window.service.send("gate stopped", [], None)
    await window.until(lambda: any(isinstance(one, AnswerDelta) for one in window.events))
    window.answers.stop(window.answers.pending[begun.id])
    answer = await window.finished(begun)
    assert (answer.text, answer.state) == ("before ", "stopped")


async def test_regenerate_correct_and_compare_make_siblings(window: Window) -> None:
    first = await window.ask("say one")
    again = await window.finished(await window.service.regenerate(first))
    correction = await window.service.correct(again.id, "two")
    question = window.history.message(first.parent_id or 0)
    for begun in await window.service.compare(question, "birds", ""):
        await window.finished(begun)
    siblings = window.history.siblings(first.id)
    assert [one.text for one in siblings] == ["one ", "one ", "two", "one ", "one "]
    assert [one.origin.adapter if one.origin else None for one in siblings] == [
        "",
        "",
        None,
        "birds",
        "",
    ]
    assert correction.corrects == again.id
    branch = await window.service.show_sibling(siblings[-1], -4)
    assert branch is not None and branch[-1].id == first.id
    assert await window.service.show_sibling(first, -1) is None


async def test_a_load_is_reported(window: Window) -> None:
    window.answers.select(model="other", adapter="birds")
    await window.until(lambda: any(isinstance(one, LoadFinished) for one in window.events))
    assert window.events[0] == ModelSelected("other", "birds")
    assert isinstance(window.events[1], LoadProgress)
    last = window.events[-1]
    assert isinstance(last, LoadFinished) and last.status is not None
    assert (last.status.model, last.status.adapter, last.error) == ("other", "birds", "")


async def test_an_answer_that_cannot_be_saved_stays_pending_until_it_is(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Answer, *arguments: object) -> Message:
        raise HistoryError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(Answer, "finish", full)
        _, begun = await window.service.send("say one", [], None)
        await window.until(lambda: window.answers.pending[begun.id].save_error)
    window.answers.retry_saving()
    assert (await window.finished(begun)).state == "complete"


async def test_tags_title_and_system_prompt(window: Window) -> None:
    await window.service.set_system("Be brief.")
    await window.ask("say one")
    conversation_id = window.service.conversation_id
    assert conversation_id is not None
    assert window.service.system == "Be brief."
    await window.service.rename(conversation_id, "Kites")
    assert (await window.service.toggle_tag(conversation_id, "birds")).tags == ("birds",)
    assert (await window.service.toggle_tag(conversation_id, "birds")).tags == ()
    opened = window.service.conversation
    assert opened is not None and (opened.title, opened.tags) == ("Kites", ())
    await window.service.delete(conversation_id)
    assert window.service.conversation is None and window.service.system == ""


async def test_an_unsaved_answer_leaves_no_trace(window: Window) -> None:
    await window.ask("say one")
    before = window.history.stats()
    answer = unsaved_answer(
        window.answers.settings,
        "echo-turns",
        [],
        "Be brief.",
        window.history,
        window.service.conversation,
    )
    window.answers.submit(answer)
    await window.until(lambda: not window.answers.pending)
    assert answer.text == "system=Be brief.\nuser=say one\nassistant=one \nuser=echo-turns\n"
    assert window.history.stats() == before


async def test_a_deleted_conversation_is_reported_and_its_answer_ends(window: Window) -> None:
    _, begun = await window.service.send("gate deleted", [], None)
    await window.until(lambda: any(isinstance(one, AnswerDelta) for one in window.events))
    window.history.delete(begun.conversation_id)  # as another window does
    open_gate("deleted")
    await window.until(lambda: not window.answers.pending)
    last = window.events[-1]
    assert isinstance(last, AnswerFinished) and last.message is None
    assert "deleted in another window" in last.error
