"""Answers rated and corrected, conversations tagged: with real keys."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static

from mmchat.history import History, Message, Origin
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.correct import CorrectScreen, EditInput
from mmchat.tui.screens.dialogs import ConfirmScreen, EditScreen, TextScreen
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.input import ChatInput, LinesInput
from mmchat.tui.widgets.message import MessageView
from mmchat.tui.widgets.status import TitleLine
from tests.engine.scripted import open_gate
from tests.tui.conftest import answered, drawn, say, shown, shown_error, until
from tests.tui.test_locked import locked

NewApp = Callable[..., ChatApp]


def heads(app: ChatApp) -> list[str]:
    """Who said each message that is shown, and what the person thinks of it."""
    found = []
    for view in app.chat.query(MessageView):
        rating = view.query_one(".rating", Static)
        badge = f" | {rating.content}" if rating.display else ""
        found.append(f"{view.query_one('.who', Static).content}{badge}")
    return found


def toasts(app: ChatApp) -> str:
    return " ".join(one.message for one in app._notifications)


async def corrects(pilot: Pilot[None]) -> EditInput:
    """Opens the correction with its key; gives the box that the text is in."""
    await pilot.press("ctrl+g")
    await until(pilot, lambda: isinstance(pilot.app.screen, CorrectScreen) and pilot.app.focused)
    return pilot.app.screen.query_one(EditInput)


def problem(pilot: Pilot[None]) -> str:
    line = pilot.app.screen.query_one(".error", Static)
    return str(line.content) if line.display else ""


@pytest.mark.parametrize(("good", "bad"), [("f6", "f7"), ("alt+up", "alt+down")])
async def test_one_key_rates_and_the_same_takes_it_back(
    new_app: NewApp, good: str, bad: str
) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a kite")
        await answered(pilot)
        app.chat.composer.input.set_text("a question that is begun")
        await pilot.press(good)
        await until(pilot, lambda: heads(app) == ["you", "mmchat | ▲ good"])
        assert app.history.message(2).rating == "good"
        assert "▲ good" in drawn(app)
        await pilot.press(bad)
        await until(pilot, lambda: heads(app) == ["you", "mmchat | ▼ bad"])
        await pilot.press(bad)
        await until(pilot, lambda: heads(app) == ["you", "mmchat"])
        assert app.history.message(2).rating is None
        await pilot.press(good, good, good)  # as fast as they come: each counts
        await until(pilot, lambda: heads(app) == ["you", "mmchat | ▲ good"])
        assert app.chat.composer.input.text == "a question that is begun"
        assert isinstance(app.focused, ChatInput)
    app = new_app()
    async with app.run_test() as pilot:
        await until(pilot, lambda: heads(app) == ["you", "mmchat | ▲ good"])


async def test_the_focused_answer_is_meant_else_the_last(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        for text in ("say one", "say two"):
            await say(pilot, text)
            await answered(pilot)
        await say(pilot, "/good")
        await until(pilot, lambda: app.history.message(4).rating == "good")
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up", "f7")
        await until(pilot, lambda: heads(app)[1] == "mmchat | ▼ bad")
        await pilot.press("up", "f7")  # a message of the person's own: the last answer then
        await until(pilot, lambda: heads(app)[3] == "mmchat | ▼ bad")
        assert [m.rating for m in app.history.branch(1)] == [None, "bad", None, "bad"]


async def test_what_cannot_be_rated_or_corrected_is_told(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        for key in ("f6", "f7", "ctrl+g"):
            await pilot.press(key)
            await until(pilot, lambda: "no answer yet" in shown_error(app))
            app.chat.composer.show_error("")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "nothing to tag yet" in shown_error(app))
        await say(pilot, "gate rated")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        for key in ("f6", "ctrl+g"):
            await pilot.press(key)
            await until(pilot, lambda: "still being written: Esc stops it" in shown_error(app))
            app.chat.composer.show_error("")
        open_gate("rated")
        await answered(pilot)
        with History.open() as other:
            growing = other.begin_answer(1, parent_id=1, origin=Origin("m"))
            growing.append("from there")
            app.chat.history_sync.sync()
            await until(pilot, lambda: "another window" in shown(app)[-1])
            await pilot.press("f6")
            await until(pilot, lambda: "still being written: stop it or wait" in shown_error(app))
            await pilot.press("ctrl+g")
            await until(pilot, lambda: "being written in another window" in shown_error(app))
            growing.finish()
        await pilot.press("f6")
        await until(pilot, lambda: heads(app)[-1] == "mmchat | ▲ good")


async def test_a_good_answer_that_was_cut_is_told(new_app: NewApp) -> None:
    app = new_app(generation__max_tokens="2")
    async with app.run_test() as pilot:
        await say(pilot, "say one two three")
        await answered(pilot)
        await pilot.press("f7")
        await until(pilot, lambda: "bad" in heads(app)[-1])
        assert not toasts(app)
        await pilot.press("f6")
        await until(pilot, lambda: "good" in heads(app)[-1])
        assert "incomplete" in toasts(app) and "Ctrl+G" in toasts(app)


async def test_correct_this_answer(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        await say(pilot, "say never mind")
        await answered(pilot)
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up")
        box = await corrects(pilot)
        assert box.text == "a dog "
        box.set_text("a *red*")
        await pilot.press("enter", *"kite", "ctrl+s")
        await until(pilot, lambda: heads(app) == ["you", "mmchat, corrected by you"])
        assert shown(app)[-1] == "a *red*\nkite"
        await until(pilot, lambda: isinstance(app.focused, MessageView))
        view = app.focused
        assert isinstance(view, MessageView)
        correction = app.history.message(view.message.id)
        assert (correction.text, correction.corrects) == ("a *red*\nkite", 2)
        assert app.history.message(2).text == "a dog "

        # Between original and correction, with what followed each.
        assert toasts(app) == "The messages that followed are under the previous answer: Alt+←."
        await pilot.press("alt+left")
        await until(pilot, lambda: shown(app)[1:2] == ["a dog"] and len(heads(app)) == 4)
        await pilot.press("alt+right")
        await until(pilot, lambda: heads(app) == ["you", "mmchat, corrected by you"])
        await pilot.press("left")
        await until(pilot, lambda: shown(app)[1:2] == ["a dog"])
        assert (heads(app)[1], len(heads(app))) == ("mmchat", 4)
        await pilot.press("right")
        await until(pilot, lambda: heads(app) == ["you", "mmchat, corrected by you"])

        # What is said next goes on from the correction.
        await say(pilot, "echo-turns")
        await answered(pilot)
        assert "a *red*\\nkite" in shown(app)[-1] or "a *red*\nkite" in shown(app)[-1]
        assert "a dog" not in shown(app)[-1]

        # Answering it again makes another one of the model's.
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up", "ctrl+r")
        await until(pilot, lambda: len(shown(app)) == 2 and not app.answers.pending)
        await until(pilot, lambda: heads(app) == ["you", "mmchat"])
        assert shown(app)[-1] == "a dog"
        assert app.history.branch(1)[-1].sibling == 3


async def test_a_correction_of_a_correction_and_one_that_changes_nothing(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        for text in ("a kite", "a red kite"):
            box = await corrects(pilot)
            box.set_text(text)
            await pilot.press("ctrl+s")
            await until(pilot, lambda text=text: shown(app)[-1] == text)
            assert isinstance(app.focused, ChatInput)
        assert not toasts(app)  # nothing followed
        last = app.history.branch(1)[-1]
        assert (last.sibling, last.corrects) == (3, app.history.siblings(2)[1].id)
        await corrects(pilot)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.screen is app.chat)
        await corrects(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat)
        assert app.history.stats()["messages"] == 4


async def test_what_was_written_is_not_lost_by_a_key(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        box = await corrects(pilot)
        await pilot.press(*" of mine", "escape")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("enter")  # the safe answer is the default
        await until(pilot, lambda: isinstance(app.screen, CorrectScreen))
        assert box.text == "a dog  of mine"
        box.set_text(" \n ")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "The correction is empty" in problem(pilot))
        await until(pilot, lambda: app.focused is box)
        await pilot.press("x")
        assert problem(pilot) == ""
        app.screen.query_one("#cancel", Button).press()
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: app.screen is app.chat)
        assert app.history.stats()["messages"] == 2
        box = await corrects(pilot)
        box.set_text("a kite")
        app.screen.query_one("#save", Button).press()
        await until(pilot, lambda: shown(app)[-1] == "a kite")


async def test_a_locked_file_keeps_the_correction_in_its_box(
    new_app: NewApp, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 0.05)
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        with locked(fresh):
            box = await corrects(pilot)
            box.set_text("a kite")
            await pilot.press("ctrl+s")
            await until(pilot, lambda: "is locked by another program" in problem(pilot))
            assert box.text == "a kite"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: shown(app)[-1] == "a kite")
        with locked(fresh):
            await pilot.press("f6")
            await until(pilot, lambda: "is locked by another program" in shown_error(app))
        await pilot.press("f6")
        await until(pilot, lambda: "good" in heads(app)[-1])


async def test_hostile_words_of_an_answer_are_clean_in_the_box(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        with History.open() as other:
            conversation = other.new_conversation("x").id
            other.add_message(conversation, "user", "well?")
            other.add_message(conversation, "assistant", "a\x1b]52;c;x\x07b\u202ec\r\nd\u2028e")
        app.chat.post_message(ConversationList.Selected(conversation))
        await until(pilot, lambda: len(shown(app)) == 2)
        box = await corrects(pilot)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", box.text)
        await pilot.press("ctrl+s")  # what nobody touched is no correction
        await until(pilot, lambda: app.screen is app.chat)
        assert app.history.stats()["messages"] == 2


@contextlib.contextmanager
def terminal_lent() -> Iterator[None]:
    """In place of a real terminal's change of hands, which a test without one has not."""
    yield


@pytest.fixture
def editor(tmp_path: Path) -> Callable[[str], str]:
    """Makes commands that do as an editor does with the file."""

    def make(body: str) -> str:
        script = tmp_path / "my editor"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o700)
        return f"'{script}' --wait"

    return make


async def test_the_persons_own_editor(
    new_app: NewApp, editor: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    app = new_app()
    monkeypatch.setattr(app, "suspend", terminal_lent)
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        box = await corrects(pilot)
        await pilot.press("ctrl+g")
        assert "set EDITOR" in problem(pilot)
        seen = tmp_path / "seen"
        for body, words in (
            ("exit 3", "ended with status 3"),
            (r'printf "\377" > "$2"', "cannot be used"),
            ("rm $2", "cannot be used"),
        ):
            monkeypatch.setenv("EDITOR", editor(body))
            await pilot.press("ctrl+g")
            assert words in problem(pilot)
            assert box.text == "a dog "
        for command in ("no-such-editor", "'unclosed"):
            monkeypatch.setenv("EDITOR", command)
            await pilot.press("ctrl+g")
            assert f"The editor {command} cannot be used" in problem(pilot)
        script = f'stat -c "%a %n" "$(dirname "$2")" "$2" > {seen}; echo " and a kite" >> "$2"'
        monkeypatch.setenv("VISUAL", editor(script))
        await pilot.press("ctrl+g")
        await until(pilot, lambda: box.text == "a dog  and a kite")
        folder, file = (line.split(" ", 1) for line in seen.read_text().splitlines())
        assert folder[0] == "700"
        assert not os.path.lexists(file[1])
        await pilot.press("ctrl+s")
        await until(pilot, lambda: shown(app)[-1] == "a dog  and a kite")


async def test_the_editor_waits_for_an_answer_that_is_being_written(
    new_app: NewApp, editor: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    monkeypatch.setattr(app, "suspend", terminal_lent)
    monkeypatch.setenv("EDITOR", editor('echo "a kite" > "$2"'))
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        await say(pilot, "gate edit")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up")
        box = await corrects(pilot)
        await pilot.press("ctrl+g")
        assert "open the editor when it is finished" in problem(pilot)
        open_gate("edit")
        await until(pilot, lambda: not app.answers.pending)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: box.text == "a kite")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: shown(app) == ["say a dog", "a kite"])


async def test_the_conversation_is_gone_when_the_correction_is_saved(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        box = await corrects(pilot)
        box.set_text("a kite")
        with History.open() as other:
            other.delete(1)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "There is no message 2" in problem(pilot))
        assert box.text == "a kite"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: app.service.conversation is None and not shown(app))


async def test_another_window_goes_to_another_branch_meanwhile(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        box = await corrects(pilot)
        with History.open() as other:
            other.add_message(1, "assistant", "from there", parent_id=1)
            app.chat.history_sync.sync()
            await until(pilot, lambda: shown(app)[-1] == "from there")
        box.set_text("a kite")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: shown(app) == ["say a dog", "a kite"])
        assert app.history.branch(1)[-1].corrects == 2


async def test_ratings_and_tags_of_another_window_are_seen(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        with History.open() as other:
            other.rate(2, "bad")
            app.chat.history_sync.sync()
            await until(pilot, lambda: heads(app) == ["you", "mmchat | ▼ bad"])
            other.rate(2, None)
            other.tag(1, "dogs")
            app.chat.history_sync.sync()
            await until(pilot, lambda: heads(app) == ["you", "mmchat"])
            await until(pilot, lambda: app.chat.query_one(TitleLine).tags == "#dogs")
        await pilot.press("f6")
        await until(pilot, lambda: app.history.message(2).rating == "good")


async def test_tags_by_command_and_by_dialog(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)

        def tags() -> tuple[str, ...]:
            return app.history.conversation(1).tags

        await say(pilot, "/tag #Birds")
        await until(pilot, lambda: tags() == ("birds",))
        await until(pilot, lambda: drawn(app).count("#birds") >= 2)  # the title and the list
        await say(pilot, "/tag birds")
        await until(pilot, lambda: tags() == ())
        await until(pilot, lambda: app.chat.query_one(TitleLine).tags == "")
        await say(pilot, "/tag two words")
        await until(pilot, lambda: "A tag is one word" in shown_error(app))
        assert app.chat.composer.input.text == "/tag two words"
        app.chat.composer.input.set_text("")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, TextScreen))
        await pilot.press(*"kites, birds", "enter")
        await until(pilot, lambda: tags() == ("birds", "kites"))
        await until(pilot, lambda: app.screen is app.chat)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, TextScreen))
        assert app.screen.query_one(Input).value == "birds kites "
        app.screen.query_one(Input).value = "kites"
        await pilot.press("enter")
        await until(pilot, lambda: tags() == ("kites",))
        await until(pilot, lambda: app.screen is app.chat)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, TextScreen))
        await pilot.press(*"owls", "enter")  # goes behind the tags that are there
        await until(pilot, lambda: tags() == ("kites", "owls"))


async def test_what_was_typed_in_a_dialog_stays_there_until_it_is_saved(
    new_app: NewApp, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 0.05)
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        for key, typed, saved in (
            ("ctrl+l", "birds", lambda: app.history.conversation(1).tags == ("birds",)),
            ("f2", "Kites", lambda: app.history.conversation(1).title == "Kites"),
            ("f5", "Be brief.", lambda: app.history.conversation(1).system == "Be brief."),
        ):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, EditScreen) and app.focused)
            field = app.screen.query_one(".field")
            assert isinstance(field, Input | LinesInput)
            with locked(fresh):
                await pilot.press("ctrl+u", *typed, "enter")
                await until(pilot, lambda: "is locked by another program" in problem(pilot))
            text = field.value if isinstance(field, Input) else field.text
            assert text.endswith(typed)
            assert app.focused is field
            await pilot.press("enter")
            await until(pilot, saved)
            await until(pilot, lambda: app.screen is app.chat)


async def test_a_wrong_tag_can_be_corrected(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say a dog")
        await answered(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, TextScreen))
        await pilot.press(*("x" * 41), "enter")
        await until(pilot, lambda: "A tag is one word" in problem(pilot))
        await pilot.press("backspace")
        await until(pilot, lambda: problem(pilot) == "")
        await pilot.press("enter")
        await until(pilot, lambda: app.history.conversation(1).tags == ("x" * 40,))
        await until(pilot, lambda: app.screen is app.chat)


def test_an_answer_knows_its_author() -> None:
    """What a screen reader says of it does not depend on colours or on marks."""
    from mmchat.display.messages import RATINGS, author

    answer = Message(2, 1, 1, "assistant", "x", (), 0.0, "complete", "", None, 1, 1)
    assert author(answer) == "mmchat"
    assert all(word in RATINGS[word] for word in ("good", "bad"))
