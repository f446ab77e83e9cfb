"""Conversations: found, named, deleted, answered again, and shared with other windows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.widgets import Input, OptionList

from mmchat.errors import HistoryError
from mmchat.history import Answer, History, Message, Origin
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.dialogs import ConfirmScreen
from mmchat.tui.screens.search import SearchScreen
from mmchat.tui.widgets.conversations import ConversationList, Rows
from mmchat.tui.widgets.input import LinesInput
from mmchat.tui.widgets.message import MessageView
from tests.engine.scripted import open_gate
from tests.tui.conftest import answered, say, shown, shown_error, until

NewApp = Callable[..., ChatApp]


async def test_search_opens_the_message(new_app: NewApp) -> None:
    with History.open() as history:
        for title, text in (("kites", "a red kite flies"), ("boats", "two [blue] boats")):
            conversation = history.new_conversation(title)
            history.add_message(conversation.id, "user", text)
    app = new_app(new=True)
    async with app.run_test() as pilot:
        await pilot.press("ctrl+f")
        await until(pilot, lambda: isinstance(app.screen, SearchScreen))
        await pilot.press(*"kit")
        await until(pilot, lambda: app.screen.query_one(OptionList).option_count == 1)
        await pilot.press("enter")
        await until(pilot, lambda: shown(app) == ["a red kite flies"])


async def test_rename_and_delete(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say x")
        await answered(pilot)
        await pilot.press("f2")
        await until(pilot, lambda: app.screen.query(Input))
        app.screen.query_one(Input).value = "[bold]Kites[/]"
        await pilot.press("enter")
        await until(pilot, lambda: app.history.conversation(1).title == "[bold]Kites[/]")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("enter")  # the safe answer is the default
        await until(pilot, lambda: app.screen is app.chat)
        assert app.history.latest() is not None
        await say(pilot, "/delete")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: app.history.latest() is None)
        await until(pilot, lambda: app.service.conversation is None and not shown(app))


async def test_two_windows_on_one_history(new_app: NewApp) -> None:
    with History.open() as history:
        conversation = history.new_conversation("shared")
        history.add_message(conversation.id, "user", "one")
        app = new_app()
        async with app.run_test(size=(120, 40)) as pilot:
            history.add_message(conversation.id, "assistant", "from there", origin=Origin("m"))
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app) == ["one", "from there"])
            history.delete(conversation.id)
            app.chat.history_sync.sync()
            await until(pilot, lambda: app.service.conversation is None)
            await say(pilot, "say fine")
            await answered(pilot)
            assert shown(app)[-1] == "fine"


async def test_a_crash_of_the_app_is_shown_and_mended(new_app: NewApp, fresh: Path) -> None:
    script = (
        "import os\nfrom mmchat.history import History, Origin\n"
        "h = History.open(); c = h.new_conversation()\n"
        "m = h.add_message(c.id, 'user', 'say well')\n"
        "h.begin_answer(c.id, parent_id=m.id, origin=Origin('scenes')).append('half a')\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    app = new_app()
    async with app.run_test() as pilot:
        await until(pilot, lambda: len(shown(app)) == 2)
        assert shown(app)[1].startswith("half a | Interrupted:")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: shown(app)[-1] == "well")


async def test_a_long_conversation_is_mounted_in_pages(new_app: NewApp) -> None:
    with History.open() as history:
        conversation = history.new_conversation("long")
        for number in range(100):
            history.add_message(conversation.id, "user", f"message {number}")
    app = new_app()
    async with app.run_test() as pilot:
        assert len(shown(app)) == 30
        await pilot.press("ctrl+home")
        await until(pilot, lambda: len(shown(app)) >= 60)
        assert shown(app)[-1] == "message 99"


async def test_the_list_folds_away(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        listed = app.chat.query_one(ConversationList)
        assert not listed.display
        await pilot.press("ctrl+b")
        assert listed.display
        await pilot.press("escape")
        assert not listed.display
        await pilot.resize_terminal(120, 30)
        await until(pilot, lambda: listed.display)


async def test_system_prompt_theme_and_copy(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "/system Answer briefly.")
        await say(pilot, "echo-turns")
        await answered(pilot)
        assert "Answer briefly." in shown(app)[1]
        dark = app.current_theme.dark
        await pilot.press("ctrl+t")
        assert app.current_theme.dark != dark
        await pilot.press("ctrl+y")
        assert "Answer briefly." in app.clipboard
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        await pilot.press(*"New conv", "enter")
        await pilot.press("enter")
        await until(pilot, lambda: not shown(app) and app.service.conversation is None)


async def test_a_question_without_an_answer_is_answered_by_ctrl_r(new_app: NewApp) -> None:
    with History.open() as history:
        conversation = history.new_conversation("left alone").id
        history.add_message(conversation, "user", "say first")
        history.add_message(conversation, "assistant", "first", origin=Origin("m"))
        history.add_message(conversation, "user", "say second")
    app = new_app()
    async with app.run_test() as pilot:
        await pilot.press("ctrl+r")
        await until(pilot, lambda: len(app.chat.transcript.branch) == 4)
        await answered(pilot)
        assert shown(app) == ["say first", "first", "say second", "second"]


async def test_a_system_prompt_keeps_its_lines(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "/system one\ntwo")
        await until(pilot, lambda: app.service.system == "one\ntwo")
        await pilot.press("f5")
        await until(pilot, lambda: app.screen.query(LinesInput) and app.screen is not app.chat)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.chat)
        assert app.service.system == "one\ntwo"
        await pilot.press("f5")
        await until(pilot, lambda: app.screen.query(LinesInput) and app.screen is not app.chat)
        await pilot.press("shift+enter", *"three", "enter")
        await until(pilot, lambda: app.service.system == "one\ntwo\nthree")


async def test_keys_mean_the_conversation_under_the_lists_cursor(new_app: NewApp) -> None:
    with History.open() as history:
        first, second = (history.new_conversation(name).id for name in ("A", "B"))
        for conversation in (first, second):
            history.add_message(conversation, "user", "hello")
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        listed = app.chat.query_one(ConversationList)
        listed.focus_rows()
        await until(pilot, lambda: listed.focused_id == second)
        await pilot.press("down")
        await until(pilot, lambda: listed.focused_id == first)
        await pilot.press("f2")
        await until(pilot, lambda: app.screen.query(Input))
        assert app.screen.query_one(Input).value == "A"
        await pilot.press(*"Kites", "enter")
        await until(pilot, lambda: app.history.conversation(first).title == "Kites")
        assert app.service.conversation_id == second
        await until(pilot, lambda: app.screen is app.chat)
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: [one.id for one in app.history.conversations()] == [second])
        await until(pilot, lambda: app.screen is app.chat)
        assert shown(app) == ["hello"]


async def test_the_answer_of_another_window_grows_in_its_place(new_app: NewApp) -> None:
    with History.open() as history:
        conversation = history.new_conversation("shared").id
        history.add_message(conversation, "user", "well?")
        answer = history.begin_answer(conversation, origin=Origin("m"))
        answer.append("one ")
        app = new_app()
        async with app.run_test() as pilot:
            await until(pilot, lambda: shown(app)[1:] == ["one | Being written in another window."])
            await pilot.press("ctrl+up")
            view = app.focused
            assert isinstance(view, MessageView)
            answer.append("two")
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app)[1].startswith("one two |"))
            answer.finish(origin=Origin("m"))
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app)[1] == "one two")
            assert app.focused is view


async def test_an_answer_that_ends_before_it_is_drawn_is_drawn_whole(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between the moment when it is read and the moment when its view is made."""
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "gate late")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not shown(app))
        open_session = app.service.open

        async def slowly(conversation_id: int) -> list[Message]:
            branch = await open_session(conversation_id)
            open_gate("late")
            await until(pilot, lambda: not app.answers.pending)
            return branch

        monkeypatch.setattr(app.service, "open", slowly)
        app.chat.post_message(ConversationList.Selected(1))
        await until(pilot, lambda: shown(app)[1:] == ["before after"])


async def test_what_has_no_text_is_not_copied(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "oom")
        await answered(pilot)
        await pilot.press("ctrl+up", "ctrl+y")
        await until(pilot, lambda: "no text" in shown_error(app))
        await pilot.press("ctrl+up", "ctrl+y")
        await until(pilot, lambda: app.clipboard == "oom")


async def test_an_end_that_could_not_be_kept_is_told_and_kept_later(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Answer.finish
    full = True

    def finish_some(self: Answer, *arguments: object) -> Message:
        if full:
            raise HistoryError("The disk is full.")
        return finish(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Answer, "finish", finish_some)
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say one")
        await until(pilot, lambda: shown(app)[1:] and "The disk is full." in shown(app)[1])
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not shown(app))
        app.chat.post_message(ConversationList.Selected(1))
        await until(pilot, lambda: len(shown(app)) == 2)
        assert shown(app)[1].startswith("one | The disk is full.")
        full = False
        app.chat.history_sync.sync()
        await answered(pilot)
        assert shown(app)[1] == "one"
        kept = app.history.branch(1)[1]
        assert (kept.state, kept.text.strip()) == ("complete", "one")
        assert kept.origin is not None
        assert kept.origin.completion_tokens


async def test_what_cannot_be_read_is_told_and_the_conversation_stays(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say one")
        await answered(pilot)

        def damaged(*arguments: object, **named: object) -> None:
            raise HistoryError("The history file is damaged.")

        with monkeypatch.context() as patched:
            for name in ("conversations", "conversation", "message", "branch"):
                patched.setattr(app.history, name, damaged)
            for ask in (
                app.chat.history_sync.sync,
                lambda: app.chat.post_message(ConversationList.Selected(1)),
                lambda: app.chat.post_message(ConversationList.MoreRequested()),
                lambda: app.chat.action_new(),
            ):
                app.chat.composer.show_error("")
                ask()
                await until(pilot, lambda: shown_error(app) == "The history file is damaged.")
                if ask is app.chat.history_sync.sync:
                    assert shown(app) == ["say one", "one"]
        assert not [one for one in app._notifications if "deleted" in one.message]
        app.chat.post_message(ConversationList.Selected(1))
        await until(pilot, lambda: shown(app) == ["say one", "one"])


async def test_two_windows_ask_in_one_conversation(new_app: NewApp) -> None:
    """Both show all messages in the end, and none becomes a sibling of another."""
    one, two = new_app(), new_app()
    async with one.run_test(size=(120, 40)) as first, two.run_test(size=(120, 40)) as second:
        await say(first, "lines shared")
        await until(first, lambda: "line 9" in shown(one)[-1])
        two.chat.history_sync.sync()
        await until(second, lambda: two.chat.conversation_list.query_one(Rows).option_count)
        two.chat.post_message(ConversationList.Selected(1))
        await until(second, lambda: "in another window" in str(shown(two)))

        await say(second, "say from two")
        await until(second, lambda: len(shown(two)) == 4)
        one.chat.history_sync.sync()  # while its own answer is being written
        await until(first, lambda: shown(one)[2:3] == ["say from two"])
        assert shown(one)[1].endswith("line 9")
        open_gate("shared")
        await answered(first)
        await answered(second)
        for app, pilot in ((one, first), (two, second)):
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app)[1].endswith("line 18"))  # noqa: B023
            await until(pilot, lambda: shown(app)[2:] == ["say from two", "from two"])  # noqa: B023

        await say(second, "say on")
        await answered(second)
        await say(first, "say and on")  # before it has looked
        await answered(first)
        two.chat.history_sync.sync()
        await until(second, lambda: shown(two) == shown(one))
        assert shown(one)[4:] == ["say on", "on", "say and on", "and on"]
        assert {message.siblings for message in one.history.branch(1)} == {1}


async def test_an_answer_that_another_window_leaves_is_followed_behind_ones_own(
    new_app: NewApp,
) -> None:
    """It is not the last message any more, and its state changes all the same."""
    with History.open() as history:
        conversation = history.new_conversation("shared").id
        history.add_message(conversation, "user", "well?")
        answer = history.begin_answer(conversation, origin=Origin("m"))
        answer.append("one ")
        app = new_app()
        async with app.run_test() as pilot:
            await until(pilot, lambda: len(shown(app)) == 2)
            await say(pilot, "say mine")
            await answered(pilot)
            answer.append("two")
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app)[1].startswith("one two |"))
            history.rate(answer.finish(origin=Origin("m")).id, "good")
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app)[1] == "one two")
            assert app.chat.transcript.branch[1].rating == "good"
            with history.begin_answer(conversation, parent_id=1, origin=Origin("m")) as other:
                other.append("another")
            app.chat.history_sync.sync()  # the other window went to another branch
            await until(pilot, lambda: shown(app) == ["well?", "another | Stopped."])
