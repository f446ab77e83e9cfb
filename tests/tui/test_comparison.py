"""Adapters in the chat: the conversation goes on, each answer says what it wore, two are compared."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Static

from mmchat.errors import HistoryError
from mmchat.history import History
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.dialogs import PickScreen
from mmchat.tui.widgets.message import MessageView, Siblings
from mmchat.tui.widgets.pair import Pair
from mmchat.tui.widgets.status import TitleLine
from tests.engine.scripted import answers, open_gate
from tests.tui.conftest import PATIENCE, answered, drawn, say, shown, shown_error, until

NewApp = Callable[..., ChatApp]
KNOWN = [("birds", "for scenes · yours"), ("kites", "for scenes · yours"), ("broken", "")]


@pytest.fixture(autouse=True)
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which adapters the app finds on this machine."""

    def choices(kind: str) -> list[tuple[str, str]]:
        return ([("none", "")] if kind == "adapters" else []) + KNOWN

    monkeypatch.setattr("mmchat.tui.choices.list_choices", choices)


def figures(app: ChatApp) -> list[str]:
    return [
        str(view.query_one(".figures", Static).content)
        for view in app.chat.query(MessageView)
        if view.message.role == "assistant"
    ]


async def engine_adapter(app: ChatApp) -> str:
    from mmchat.client import EngineClient

    client = EngineClient(app.answers.settings)
    status = await client.status()
    await client.aclose()
    assert status is not None
    return status.adapter


async def test_switching_keeps_the_conversation_and_each_answer_says_what_it_wore(
    new_app: NewApp,
) -> None:
    app = new_app()
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "say one")
        await answered(pilot)
        await say(pilot, "/adapter birds")
        await say(pilot, "echo-turns")
        await answered(pilot)
        assert "user=say one" in shown(app)[3] and "assistant=one" in shown(app)[3]
        await say(pilot, "/adapter none")
        await say(pilot, "say two")
        await answered(pilot)
        plain, worn, again = figures(app)
        assert worn.startswith("birds ") and "tok/s" in worn
        assert "birds" not in plain and "birds" not in again
        hashes = [one.origin.adapter_hash for one in app.chat.transcript.branch if one.origin]
        assert [bool(one) for one in hashes] == [False, True, False]
        assert hashes[1][:7] in worn


async def test_a_stopped_answer_says_it_too(new_app: NewApp) -> None:
    app = new_app(model__adapter="birds")
    async with app.run_test() as pilot:
        await say(pilot, "gate never")
        await until(pilot, lambda: "before" in "".join(shown(app)[1:]))
        await pilot.press("escape")
        await answered(pilot)
        origin = app.chat.transcript.branch[1].origin
        assert origin is not None and origin.adapter == "birds" and origin.adapter_hash
        assert origin.adapter_hash[:7] in figures(app)[0]


@pytest.mark.parametrize(("width", "beside"), [(110, True), (80, False)])
async def test_two_answers_beside_each_other_become_siblings(
    new_app: NewApp, width: int, beside: bool
) -> None:
    app = new_app(model__adapter="kites")
    async with app.run_test(size=(width, 30)) as pilot:
        await say(pilot, "say red kite")
        await answered(pilot)
        await say(pilot, "/compare birds none")
        await until(pilot, lambda: app.chat.query(Pair))
        await answered(pilot)
        first, second = app.chat.query_one(Pair).query(MessageView)
        assert (first.region.y == second.region.y) == beside
        assert (first.region.x == second.region.x) != beside
        assert [one.split()[0] for one in figures(app)] == ["birds", "no"]
        assert [str(one.content) for one in app.chat.query(Siblings)][1:] == ["‹ 2/3 ›", "‹ 3/3 ›"]
        assert [one.strip() for one in shown(app)] == ["say red kite", "red kite", "red kite"]
        assert "Enter continues with" in drawn(app)
        # What was on before answers the next question, and is on at once.
        await until(pilot, lambda: "kites" in app.chat.query_one(TitleLine).model)
        assert await engine_adapter(app) == "kites"
        await say(pilot, "say next")
        await answered(pilot)
        assert not app.chat.query(Pair)
        branch = app.chat.transcript.branch
        assert [one.text.strip() for one in branch] == [
            "say red kite",
            "red kite",
            "say next",
            "next",
        ]
        assert branch[1].origin is not None and branch[1].origin.adapter == ""
        assert branch[3].origin is not None and branch[3].origin.adapter == "kites"
        # The siblings are there as ever.
        app.chat.transcript.view(branch[1].id).focus()  # type: ignore[union-attr]
        await pilot.press("left")
        await until(pilot, lambda: len(app.chat.transcript.branch) == 2)
        origin = app.chat.transcript.branch[1].origin
        assert origin is not None and origin.adapter == "birds" and len(origin.adapter_hash) == 64


async def test_one_name_is_compared_with_what_is_on(new_app: NewApp) -> None:
    app = new_app(model__adapter="kites")
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "say a")
        await answered(pilot)
        await say(pilot, "/compare birds")
        await until(pilot, lambda: app.chat.query(Pair))
        await answered(pilot)
        assert [one.split()[0] for one in figures(app)] == ["kites", "birds"]
        await pilot.press("escape")
        await until(pilot, lambda: not app.chat.query(Pair))
        assert app.chat.transcript.branch[-1].origin.adapter == "birds"  # type: ignore[union-attr]
        await pilot.press("alt+left")
        await until(pilot, lambda: app.chat.transcript.branch[-1].sibling == 2)
        app.chat.action_compare()
        await until(pilot, lambda: isinstance(app.screen, PickScreen))
        assert "kites" in drawn(app) and "birds" in drawn(app)
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.query(Pair))
        await answered(pilot)
        assert [one.split()[0] for one in figures(app)] == ["kites", "no"]


async def test_enter_goes_on_with_the_first_one(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "say a")
        await answered(pilot)
        await say(pilot, "/compare birds kites")
        await until(pilot, lambda: app.chat.query(Pair))
        await answered(pilot)
        first = app.chat.query_one(Pair).query(MessageView).first()
        await pilot.press("ctrl+up", "ctrl+up")
        assert app.focused is first
        await pilot.press("enter")
        await until(pilot, lambda: not app.chat.query(Pair))
        assert app.chat.transcript.branch[-1].id == first.message.id
        await say(pilot, "echo-turns")
        await answered(pilot)
        assert app.history.branch(1)[1].origin.adapter == "birds"  # type: ignore[union-attr]


async def test_they_answer_one_after_the_other_and_esc_ends_both(new_app: NewApp) -> None:
    app = new_app(model__adapter="kites")
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "gate both")
        await until(pilot, lambda: "before" in "".join(shown(app)[1:]))
        await pilot.press("escape")
        await answered(pilot)
        asked = len(answers())
        await say(pilot, "/compare birds none")
        await until(pilot, lambda: app.chat.query(Pair) and "before" in shown(app)[1])
        assert "waiting for its turn" in shown(app)[2]
        await pilot.press("escape")
        await answered(pilot)
        assert shown(app)[1] == "before | Stopped."
        assert "Stopped before the first word" in shown(app)[2]
        assert len(answers()) == asked + 1
        # The one with words is the one to go on with.
        await until(pilot, lambda: app.chat.transcript.branch[-1].text == "before ")
        await until(pilot, lambda: "kites" in app.chat.query_one(TitleLine).model)
        await pilot.press("escape")
        await until(pilot, lambda: not app.chat.query(Pair))
        assert shown(app)[1] == "before | Stopped."
        conversation = app.history.latest()
        assert conversation is not None
        assert app.history.branch(conversation.id)[-1].origin.adapter == "birds"  # type: ignore[union-attr]


async def test_an_adapter_that_does_not_fit_is_told_in_its_place(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "say a")
        await answered(pilot)
        await say(pilot, "/compare broken birds")
        await until(pilot, lambda: app.chat.query(Pair))
        await answered(pilot)
        assert "does not fit this model" in shown(app)[1] and shown(app)[2] == "a"
        assert app.chat.transcript.branch[-1].state == "complete"


async def test_nothing_is_lost_when_the_app_dies_or_closes_meanwhile(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "gate dies")
        open_gate("dies")
        await answered(pilot)
        (app.history._database.path.parent / "gates" / "dies").unlink()
        await say(pilot, "/compare birds kites")
        await until(pilot, lambda: app.chat.query(Pair) and "before" in shown(app)[1])
        # What another process would find now: every word that was shown is in the file.
        with History.open(app.history._database.path) as other:
            there = other.siblings(app.chat.transcript.branch[-1].id)
            assert [one.text for one in there] == ["before after ", "before ", ""]
            assert [one.origin.adapter for one in there if one.origin] == ["", "birds", "kites"]
            assert {one.state for one in there[1:]} == {"streaming"}
    with History.open() as history:
        conversation = history.latest()
        assert conversation is not None
        kept = history.siblings(history.branch(conversation.id)[-1].id)
        assert [(one.text, one.state) for one in kept[1:]] == [
            ("before ", "stopped"),
            ("", "stopped"),
        ]


async def test_wrong_comparisons_change_nothing(new_app: NewApp) -> None:
    app = new_app(model__adapter="kites")
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "/compare birds")
        await until(pilot, lambda: "no message yet" in shown_error(app))
        await say(pilot, "say a")
        await answered(pilot)
        for typed, words in (
            ("/compare birds gulls", "There is no adapter gulls"),
            ("/compare kites", "kites is already active"),
            ("/compare birds birds", "birds is named twice: name two different adapters."),
            ("/compare none none", "none is named twice: name two different adapters."),
            ("/compare a b c", "takes one or two adapters"),
        ):
            await say(pilot, typed)
            await until(pilot, lambda words=words: words in shown_error(app))
            assert app.chat.composer.input.text == typed
        app.chat.composer.input.set_text("")
        await say(pilot, "gate open")
        await until(pilot, lambda: "before" in shown(app)[3])
        await say(pilot, "/compare birds none")
        await until(pilot, lambda: "still being written" in shown_error(app))
        open_gate("open")
        await answered(pilot)
        assert not app.chat.query(Pair) and len(app.history.branch(1)) == 4


async def test_a_comparison_that_breaks_leaves_on_what_was_on(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app(model__adapter="kites")
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "say a")
        await answered(pilot)
        begin, begun = app.history.begin_answer, []

        def breaks(*given: Any, **named: Any) -> Any:
            if begun:
                deadline = time.monotonic() + PATIENCE
                while begun[0].begun.id in app.answers.pending:  # the first has answered
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
                raise HistoryError("The disk is full.")
            begun.append(begin(*given, **named))
            return begun[0]

        monkeypatch.setattr(app.history, "begin_answer", breaks)
        await say(pilot, "/compare birds none")
        await until(pilot, lambda: "The disk is full" in shown_error(app))
        deadline = time.monotonic() + PATIENCE
        while await engine_adapter(app) != "kites":
            assert time.monotonic() < deadline


async def test_names_are_completed_one_after_the_other(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        box = app.chat.composer.input
        box.set_text("/compare ki")
        await until(pilot, lambda: box.suggesting)
        await pilot.press("tab")
        await until(pilot, lambda: box.text == "/compare kites")
        box.set_text("/compare kites no")
        # Those for the first name may stand there still: the key waits for those of the second.
        await pilot.press("tab")
        await until(pilot, lambda: box.text == "/compare kites none")


async def test_other_things_during_a_comparison_leave_a_whole_conversation(
    new_app: NewApp, tmp_path: Path
) -> None:
    app = new_app()
    async with app.run_test(size=(110, 40)) as pilot:
        await say(pilot, "say a")
        await answered(pilot)
        for key in ("ctrl+r", "f6", "ctrl+n"):
            await say(pilot, "/compare birds kites")
            await until(pilot, lambda: app.chat.query(Pair))
            await answered(pilot)
            first = app.chat.query_one(Pair).query(MessageView).first()
            first.focus()
            await pilot.pause()
            await pilot.press(key)
            if key == "ctrl+r":
                await until(pilot, lambda: not app.chat.query(Pair))
                await answered(pilot)
                assert [one.role for one in app.chat.transcript.branch] == ["user", "assistant"]
                assert app.chat.transcript.branch[-1].siblings == 4
            elif key == "f6":
                await until(pilot, lambda: first.message.rating == "good")  # noqa: B023
                assert app.chat.query(Pair)
                await pilot.press("escape")
                await until(pilot, lambda: not app.chat.query(Pair))
            else:
                await until(pilot, lambda: not app.chat.transcript.branch)
                assert not app.chat.query(Pair)
        await asyncio.sleep(0)
