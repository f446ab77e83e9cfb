"""The app, driven as a person drives it."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events

from mmchat.chat.async_history import AsyncAnswer
from mmchat.chat.events import PendingAnswer
from mmchat.client.protocol import Loading, Started, Waiting
from mmchat.history import History, Origin
from mmchat.tui.actions import ACTIONS, key_label
from mmchat.tui.app import ChatApp
from mmchat.tui.completion import Suggestion
from mmchat.tui.screens.help import HelpScreen
from mmchat.tui.widgets import composer
from mmchat.tui.widgets.composer import Chip
from mmchat.tui.widgets.conversations import ConversationList
from mmchat.tui.widgets.input import ChatInput
from mmchat.tui.widgets.message import MessageView, Siblings
from mmchat.tui.widgets.picture import PictureView, Thumbnail
from mmchat.tui.widgets.status import TitleLine
from mmchat.tui.widgets.welcome import Card, examples
from tests.engine.scripted import open_gate
from tests.tui.conftest import answered, draw, drawn, say, shown, shown_error, until

NewApp = Callable[..., ChatApp]


async def test_send_and_stream(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await pilot.press(*"say a **b** c")
        await pilot.press("enter")
        await answered(pilot)
        assert shown(app) == ["say a **b** c", "a **b** c"]
        assert app.chat.composer.input.text == ""
        assert "4-bit" in app.chat.query_one(TitleLine).model
        assert "tokens" in app.chat.status.text
    with History.open() as history:
        conversation = history.latest()
        assert conversation is not None
        said, answer = history.branch(conversation.id)
        assert (said.text, answer.text.strip(), answer.state) == (
            "say a **b** c",
            "a **b** c",
            "complete",
        )
        assert answer.origin is not None
        assert answer.origin.model == "scenes"


async def test_lines_and_their_keys(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c")
        assert app.chat.composer.input.text == "a\nb\nc"
        await pilot.pause()
        assert app.chat.composer.input.size.height == 3


async def test_attach_by_typing(new_app: NewApp, picture: Path) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        app.chat.composer.input.set_text(f"/attach {picture.parent}/red")
        await until(pilot, lambda: app.chat.composer.input.suggesting)
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.composer.pictures)
        assert app.chat.composer.input.text == ""
        await say(pilot, "echo-images")
        await answered(pilot)
        sent = app.chat.transcript.branch[0].images[0]
        assert sent.name == "red circle.png"
        assert sent.sha256 in shown(app)[1]
        assert app.chat.query(Thumbnail)
        assert app.chat.composer.pictures == []


async def test_attach_by_paste_and_remove_by_key(
    new_app: NewApp, picture: Path, tmp_path: Path
) -> None:
    app = new_app()
    other = draw(tmp_path / "b.png")
    async with app.run_test() as pilot:
        box = app.chat.composer.input
        app.post_message(events.Paste(f"'{picture}' {other.as_uri()}"))
        await until(pilot, lambda: len(app.chat.composer.pictures) == 2)
        app.post_message(events.Paste("a word"))
        await until(pilot, lambda: box.text == "a word")
        await pilot.press("up")
        assert isinstance(app.focused, Chip)
        await pilot.press("delete")
        await until(pilot, lambda: len(app.chat.composer.pictures) == 1)
        assert app.chat.composer.pictures[0].name == "red circle.png"
        await pilot.press("!")
        assert box.text == "a word!"
        app.post_message(events.Paste(" more"))
        await until(pilot, lambda: box.text == "a word! more")


async def test_a_picture_with_nothing_to_see_is_remarked_on(
    new_app: NewApp, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48), "black").save(tmp_path / "dark.png")
    remark = "dark.png is nearly black all over, so there may be nothing to see."
    app = new_app()
    async with app.run_test(size=(100, 30)) as pilot:
        app.post_message(events.Paste(str(tmp_path / "dark.png")))
        await until(pilot, lambda: remark in drawn(app))
        await pilot.press(*"what", "up")
        assert remark in drawn(app)
        await pilot.press("delete")
        await until(pilot, lambda: remark not in drawn(app))


async def test_a_bad_path_is_told_next_to_the_input(new_app: NewApp, tmp_path: Path) -> None:
    app = new_app()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    async with app.run_test() as pilot:
        await say(pilot, "/attach /nowhere/a.png")
        await until(pilot, lambda: "/nowhere/a.png does not exist" in shown_error(app))
        assert app.chat.composer.input.text == "/attach /nowhere/a.png"
        app.chat.composer.input.set_text("")
        app.post_message(events.Paste(str(broken)))
        await until(pilot, lambda: "broken.png" in shown_error(app))
        assert app.chat.composer.pictures == []
        await say(pilot, "/nonsense")
        await until(pilot, lambda: "There is no command /nonsense" in shown_error(app))


async def test_esc_stops_and_keeps_the_part(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "gate stop")
        await until(pilot, lambda: "before" in "".join(shown(app)[1:]))
        await pilot.press("escape")
        await answered(pilot)
        assert shown(app)[1] == "before | Stopped."
        assert app.history.branch(1)[1].state == "stopped"
        await say(pilot, "say on")
        await answered(pilot)
        assert shown(app)[-1] == "on"


async def test_regenerate_makes_a_sibling_and_keys_move(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say one")
        await answered(pilot)
        first = app.chat.transcript.branch[1].id
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.chat.transcript.branch[1].id != first)
        await answered(pilot)
        bar = app.chat.query(Siblings).last()
        assert str(bar.content) == "‹ 2/2 ›"
        await pilot.press("alt+left")
        await until(pilot, lambda: app.chat.transcript.branch[1].id == first)
        assert str(app.chat.query(Siblings).last().content) == "‹ 1/2 ›"
        conversation = app.history.latest()
        assert conversation is not None
        assert conversation.head_id == first


async def test_messages_wait_while_the_model_loads(new_app: NewApp) -> None:
    app = new_app(model__name="gate-load")
    async with app.run_test() as pilot:
        await until(pilot, lambda: "loading" in app.chat.status.text)
        await say(pilot, "say first")
        await say(pilot, "say second")
        await until(pilot, lambda: len(shown(app)) == 4)
        assert "waiting for its turn" in shown(app)[3]
        assert len(app.history.branch(1)) == 4  # in the history before the model is there
        open_gate("load")
        await answered(pilot)
        assert shown(app) == ["say first", "first", "say second", "second"]


async def test_the_length_limit_is_told(new_app: NewApp) -> None:
    app = new_app(generation__max_tokens="2")
    async with app.run_test() as pilot:
        await say(pilot, "say a b c d")
        await answered(pilot)
        assert shown(app)[1].startswith("a b | Cut at 2 tokens:")


async def test_the_engine_dies_in_mid_answer(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "crash")
        await answered(pilot)
        text = shown(app)[1]
        assert text.startswith("one two | ")
        assert "engine.log" in text
        assert "Ctrl+R asks again" in text
        assert app.history.branch(1)[1].state == "failed"
        await say(pilot, "say again")
        await answered(pilot)
        assert shown(app)[-1] == "again"


async def test_what_fails_before_the_first_word(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "oom")
        await answered(pilot)
        assert "memory does not suffice" in shown(app)[1]
        assert "engine.log" in shown(app)[1]
        assert "Ctrl+R" in shown(app)[1]
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not shown(app))
        await say(pilot, "too-long")
        await answered(pilot)
        sentence = "The last message takes 9 tokens, and scenes has room for 8."
        assert shown(app)[1] == f" | {sentence}"
        await say(pilot, "echo-turns")
        await answered(pilot)
        assert "too-long" not in shown(app)[3]


async def test_a_message_that_is_too_long_goes_back_into_the_input(
    new_app: NewApp, picture: Path
) -> None:
    app = new_app(model__name="gate-refused")
    async with app.run_test(size=(120, 40)) as pilot:
        box = app.chat.composer.input
        app.post_message(events.Paste(str(picture)))
        await until(pilot, lambda: app.chat.composer.pictures)
        await say(pilot, "too-long")
        await until(pilot, lambda: len(shown(app)) == 2)
        assert not app.chat.composer.pictures
        await pilot.press("ctrl+n")  # it is refused while another conversation is open
        await until(pilot, lambda: not shown(app))
        open_gate("refused")
        await until(pilot, lambda: not app.answers.pending)
        await pilot.pause()
        assert not box.text
        app.chat.post_message(ConversationList.Selected(1))
        await until(pilot, lambda: box.text == "too-long" and app.chat.composer.pictures)
        assert [one.name for one in app.chat.composer.pictures] == [picture.name]
        assert "has room for" in shown(app)[1]

        app.chat.composer.input.set_text("echo-images")
        await pilot.press("enter")
        await answered(pilot)
        assert shown(app)[3].startswith("1 pictures")
        assert not app.chat.composer.pictures


async def test_a_message_that_is_too_long_stays_away_from_what_is_typed_meanwhile(
    new_app: NewApp,
) -> None:
    app = new_app(model__name="gate-typed")
    async with app.run_test() as pilot:
        await say(pilot, "too-long")
        await until(pilot, lambda: len(shown(app)) == 2)
        await pilot.press("n", "e", "w")
        open_gate("typed")
        await answered(pilot)
        assert app.chat.composer.input.text == "new"
        app.chat.post_message(ConversationList.Selected(1))
        await pilot.pause()
        assert app.chat.composer.input.text == "new"


async def test_what_is_typed_after_enter_is_the_next_message(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        box = app.chat.composer.input
        for word in ("say one", "say two", "say three"):  # faster than a message is written down
            box.insert(word)
            box.action_submit()
        box.insert("and")
        await until(pilot, lambda: len(app.chat.transcript.branch) == 6)
        await answered(pilot)
        assert shown(app) == ["say one", "one", "say two", "two", "say three", "three"]
        assert box.text == "and"


async def test_a_mistyped_path_is_no_question(new_app: NewApp, picture: Path) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, f"'{picture.parent}/blue.png' what is it?")
        await until(pilot, lambda: "does not exist" in shown_error(app))
        assert app.chat.composer.input.text.endswith("what is it?")
        await say(pilot, f"'{picture}' what is it?")
        await until(pilot, lambda: app.chat.composer.pictures)
        await until(pilot, lambda: app.chat.composer.input.text == "what is it?")
        assert not app.chat.transcript.branch


async def test_the_engine_is_killed(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "pid")
        await answered(pilot)
        pid = int(app.chat.transcript.branch[1].text)
        await say(pilot, "gate kill")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        os.kill(pid, signal.SIGKILL)
        await answered(pilot)
        assert shown(app)[-1].startswith("before | ")


async def test_leaving_in_mid_answer_keeps_it(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "gate leave")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        await pilot.press("ctrl+q")
        await asyncio.sleep(0)
    with History.open() as history:
        answer = history.branch(1)[1]
        assert (answer.text, answer.state) == ("before ", "stopped")


async def test_examples_are_one_key_away(
    new_app: NewApp, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.tui.controllers.conversations.examples", lambda: [picture])
    app = new_app()
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.chat.query(Card))
        await pilot.press("enter")
        await until(pilot, lambda: app.chat.composer.pictures and app.chat.composer.input.text)
        await pilot.press("enter")
        await answered(pilot)
        assert shown(app)[1].startswith("I see 1 picture")


async def test_a_text_that_looks_like_a_command_is_sent(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "/etc is what?")
        await until(pilot, lambda: "Begin with a space" in shown_error(app))
        await say(pilot, " /etc is what?")
        await answered(pilot)
        assert shown(app)[0] == "/etc is what?"


async def test_why_a_model_is_not_there_stands_there_whole(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "4-bit" in app.chat.query_one(TitleLine).model)
        app.chat.status.error = "It failed for a long reason. " * 16 + "Its log: /x/engine.log"
        await until(pilot, lambda: "/x/engine.log" in drawn(app))
        assert app.chat.composer.input.region.height == 1


async def test_model_and_adapter_are_switched(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [(name, "") for name in ("scenes", "other", "birds", "broken")]
    monkeypatch.setattr("mmchat.tui.choices.list_choices", lambda kind: names)
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "/model other")
        await until(pilot, lambda: "other" in app.chat.query_one(TitleLine).model)
        await say(pilot, "/adapter birds")
        await until(pilot, lambda: "birds" in app.chat.query_one(TitleLine).model)
        await say(pilot, "/model broken")
        await until(pilot, lambda: app.chat.status.error)
        assert app.chat.query_one(TitleLine).model == "broken"
        await say(pilot, "hello")
        await answered(pilot)
        await until(pilot, lambda: "loading" not in app.chat.status.text)
        await say(pilot, "/model scenes")
        await until(pilot, lambda: "scenes" in app.chat.query_one(TitleLine).model)
        assert "birds" not in app.chat.query_one(TitleLine).model


@pytest.mark.parametrize("kind", ["model", "adapter"])
async def test_a_mistyped_name_changes_nothing(new_app: NewApp, kind: str) -> None:
    app = new_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await say(pilot, f"/{kind} nope")
        await until(pilot, lambda: f"There is no {kind} nope" in drawn(app))
        assert app.chat.composer.input.text == f"/{kind} nope"
        assert app.answers.settings.model.name == "scenes"
        assert app.answers.settings.model.adapter == ""


async def test_the_place_in_line_and_what_was_left_out(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say one")
        await answered(pilot)
        view = app.chat.query(MessageView).last()
        record = AsyncAnswer(app.history.begin_answer(1, parent_id=1, origin=Origin("m")))
        pending = PendingAnswer(record, lambda: asyncio.sleep(0, []), 1, 1, Origin("m"))
        view.pending = pending
        for event, words in (
            (Waiting(3), "place 3 in line"),
            (Loading("m", "weights", 0.5), "waiting for the model to load"),
            (Started(10, 0, 0, dropped_turns=2, context_length=99), "reading"),
        ):
            await app.answers._handle(pending, event)
            view.show_state()
            assert words in shown(app)[1]
        assert pending.origin.parameters["dropped_turns"] == 2


async def test_pictures_follow_the_size_of_the_window(new_app: NewApp, tmp_path: Path) -> None:
    app = new_app()
    large = draw(tmp_path / "a.png")
    async with app.run_test(size=(80, 24)) as pilot:
        app.post_message(events.Paste(str(large)))
        await until(pilot, lambda: app.chat.composer.pictures)
        await say(pilot, "what is it?")
        await answered(pilot)
        picture = app.chat.transcript.query_one(Thumbnail)
        await until(pilot, lambda: picture.size.height == 7 and picture._strips)
        await pilot.resize_terminal(160, 50)
        await until(pilot, lambda: picture.size.height == 12 and len(picture._strips) == 12)


@pytest.mark.parametrize("size", [(60, 20), (100, 28), (140, 40)])
async def test_several_pictures_are_shown_whole_in_any_window(
    new_app: NewApp, tmp_path: Path, size: tuple[int, int]
) -> None:
    app = new_app()
    names = ["a.png", "b.png", "a-picture-with-a-long-name.png", "d.png", "e.png"]
    files = [draw(tmp_path / name) for name in names]
    async with app.run_test(size=size) as pilot:
        app.post_message(events.Paste(" ".join(map(str, files))))
        await until(pilot, lambda: len(app.chat.composer.pictures) == len(files))
        await say(pilot, "what are they?")
        await answered(pilot)
        views = list(app.chat.transcript.query(PictureView))
        right = app.chat.transcript.content_region.right
        for view in views:
            caption = view.query_one(".caption")
            thumbnail = view.query_one(Thumbnail)
            assert thumbnail.region.right <= right and caption.region.right <= right
            assert thumbnail.region.height == thumbnail._cells[1]
            assert caption.region.bottom <= view.region.bottom
        regions = [view.region for view in views]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(regions, 2))


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (100, 28)])
async def test_the_examples_are_shown_whole(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr("mmchat.tui.controllers.conversations.examples", examples)
    app = new_app()
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: len(app.chat.query(Card)) == 4)
        await pilot.pause()
        assert "and its name." in " ".join(drawn(app).split())
        room = app.chat.query_one("#conversation").region
        for card in app.chat.query(Card):
            assert room.contains_region(card.region)
            assert card.region.contains_region(card.query_one(".question").region)


async def test_an_error_goes_when_it_is_no_longer_true(new_app: NewApp) -> None:
    app = new_app(model__name="gate-stale")
    async with app.run_test() as pilot:
        await say(pilot, "say one")
        await until(pilot, lambda: len(shown(app)) == 2)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "Esc stops it" in shown_error(app))
        await pilot.press("escape")
        await until(pilot, lambda: not app.answers.pending)
        assert shown_error(app) == ""
        await say(pilot, "/nonsense")
        await until(pilot, lambda: "no command /nonsense" in shown_error(app))
        app.chat.composer.input.set_text("")
        await pilot.pause()
        assert "no command /nonsense" in shown_error(app)  # until something else is done
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.answers.pending)
        assert shown_error(app) == ""
        open_gate("stale")
        await answered(pilot)


async def test_help_lists_the_live_keys(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test() as pilot:
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        screen = app.screen
        assert isinstance(screen, HelpScreen)
        listed = {row[0] for row in screen._actions if row[0]}
        assert {key_label(action.key) for action in ACTIONS if action.key} <= listed
        assert ("Enter", "Send", "") in screen._here
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.focused, ChatInput))


def test_the_app_loads_no_heavy_module() -> None:
    code = (
        "import sys, mmchat.tui, mmchat.tui.app\n"
        "print([m for m in ('torch', 'transformers', 'PIL', 'peft', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_key_that_waits_is_for_the_text_that_it_was_pressed_on(
    new_app: NewApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enter while suggestions are looked for; what is typed before they come is not sent by it."""
    asked, may_answer = threading.Event(), threading.Event()
    found = composer.suggest

    def slow(*given: Any, **more: Any) -> Any:
        asked.set()
        may_answer.wait(30)
        return found(*given, **more)

    (tmp_path / "media").mkdir()
    app = new_app()
    async with app.run_test() as pilot:
        box = app.chat.composer.input
        box.set_text(f"see @{tmp_path}/")
        await until(pilot, lambda: box.suggesting)
        monkeypatch.setattr(composer, "suggest", slow)
        box.set_text(f"see @{tmp_path}/no-such")
        await until(pilot, asked.is_set)
        await pilot.press("enter", "h")
        may_answer.set()
        await until(pilot, lambda: not box.suggesting)
        await pilot.pause()
        assert box.text == f"see @{tmp_path}/no-suchh"

        # Nor does it wait where more was typed and taken back, or the list was closed.
        for typed, meanwhile in (("n", ("h", "backspace")), ("m", ("escape",))):
            may_answer.clear()
            box.set_text(f"see @{tmp_path}/")
            box.suggesting, app.chat.composer._suggestions = True, [Suggestion("x", "", 0, 0, "x")]
            await pilot.press(typed, "enter", *meanwhile)
            may_answer.set()
            await until(pilot, lambda: not box.suggesting)
            assert box.text == f"see @{tmp_path}/{typed}"
        box.set_text(f"see @{tmp_path}/nothing")
        await pilot.press("enter")
        await until(pilot, lambda: not box.text)


async def test_what_is_typed_behind_enter_is_not_sent_with_it(new_app: NewApp) -> None:
    """Keys that come at once, as from a slow line: each is for the text that it met."""
    app = new_app()
    async with app.run_test() as pilot:
        box = app.chat.composer.input
        box.set_text("hello")
        for key in (events.Key("enter", None), events.Key("h", "h")):
            app.post_message(key)
        await until(pilot, lambda: bool(app.chat.query(MessageView)))
        assert app.chat.query(MessageView).first().message.text == "hello"
        await until(pilot, lambda: box.text == "h")
