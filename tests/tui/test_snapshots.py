"""Snapshots of the main screens. Look at a changed one before it is accepted.

`pytest tests/tui/test_snapshots.py --snapshot-update` accepts what is drawn now.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.chat.events import LoadFinished
from mmchat.client.protocol import EngineStatus
from mmchat.history import History, Origin, Rating
from mmchat.images import read_picture
from mmchat.settings import load_settings
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.correct import CorrectScreen, EditInput
from mmchat.tui.screens.dialogs import ConfirmScreen, LinesScreen
from mmchat.tui.screens.search import SearchScreen
from mmchat.tui.widgets.input import LinesInput
from mmchat.tui.widgets.picture import Thumbnail
from mmchat.tui.widgets.status import TitleLine
from mmchat.tui.widgets.welcome import Card
from tests.tui.conftest import NOW, draw, until

Compare = Callable[..., bool]
ANSWER = """A **red circle** on a white ground.

1. It is the *only* object.
2. `[brackets]` and <b>tags</b> stay text.
"""
READY = EngineStatus(
    "0", 1, "ready", model="scenes", quantization="4bit", device="cpu", context_length=8192
)


@pytest.fixture(autouse=True)
def still(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clock that stands still, colours, no engine; gives a picture."""
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("mmchat.history.inserts.time", SimpleNamespace(time=lambda: NOW))
    monkeypatch.setattr(
        AnswerQueue, "load", lambda self: self._emit(LoadFinished(READY)), raising=True
    )
    picture = draw(tmp_path / "circle.png")
    monkeypatch.setattr("mmchat.tui.controllers.conversations.examples", lambda: [picture])
    return picture


def _app(theme: str = "textual-dark") -> ChatApp:
    return ChatApp(load_settings({"app.theme": theme}), clock=lambda: NOW)


def _fill(picture: Path) -> None:
    with History.open() as history:
        for title in ("Invoice, totals", "[bold]A title[/bold] that is much too long for the list"):
            conversation = history.new_conversation(title)
            history.add_message(conversation.id, "user", f"about the circle in {title}")
        one = read_picture(picture)
        image = history.add_image(
            one.data, mime=one.mime, width=one.width, height=one.height, name=one.name
        )
        conversation = history.new_conversation("Red circle")
        said = history.add_message(
            conversation.id, "user", "What is in this picture?", images=[image.sha256]
        )
        origin = Origin("scenes", "", "", "4bit", "cpu", {}, 412, 98, 60, 0, 3.0, 10.0, 100.0, 41.2)
        for text in ("A circle.", ANSWER):
            history.add_message(
                conversation.id, "assistant", text, parent_id=said.id, origin=origin
            )


async def _settled(pilot: Pilot[None]) -> None:
    app = pilot.app
    assert isinstance(app, ChatApp)
    app.chat.composer.input.cursor_blink = False
    await until(pilot, lambda: "4-bit" in app.chat.query_one(TitleLine).model)
    await until(pilot, lambda: all(one._strips for one in app.chat.query(Thumbnail)))
    await pilot.pause()


async def _welcomed(pilot: Pilot[None]) -> None:
    await until(pilot, lambda: pilot.app.screen.query(Card))
    await _settled(pilot)


async def _with_chips(pilot: Pilot[None]) -> None:
    app = pilot.app
    assert isinstance(app, ChatApp)
    picture = Path(app.history.message(1).text)  # the fixture keeps the path there
    await app.chat.composer.attach([picture, picture])
    app.chat.composer.input.set_text("Which of [1] and [2]\nis larger?")
    await _settled(pilot)


async def _searched(pilot: Pilot[None]) -> None:
    app = pilot.app
    await _settled(pilot)
    await pilot.press("ctrl+f", *"circle")
    screen = app.screen
    assert isinstance(screen, SearchScreen)
    await until(pilot, lambda: screen.query_one(OptionList).option_count == 4)
    for box in screen.query("Input"):
        box.cursor_blink = False  # type: ignore[attr-defined]
    await pilot.pause()


async def _helped(pilot: Pilot[None]) -> None:
    await _settled(pilot)
    await pilot.press("f1")


async def _system_asked(pilot: Pilot[None]) -> None:
    await _settled(pilot)
    await pilot.press("f5")
    await until(pilot, lambda: isinstance(pilot.app.screen, LinesScreen))
    pilot.app.screen.query_one(LinesInput).cursor_blink = False
    await pilot.pause()


def _judge(last: Rating) -> None:
    """The first answer is corrected, the last one rated; the conversations have tags."""
    with History.open() as history:
        history.correct(4, "A red disc.\n\nIts edge is *not* drawn.")
        said = history.add_message(3, "user", "And the ground?")
        answer = history.add_message(
            3, "assistant", "It is white.", parent_id=said.id, origin=history.message(4).origin
        )
        history.rate(answer.id, last)
        history.set_tags(3, ["shapes", "red"])
        history.tag(2, "a-tag-that-is-longer-than-all")
        history.tag(1, "invoices")


async def _correction_asked(pilot: Pilot[None]) -> None:
    await _settled(pilot)
    await pilot.press("ctrl+g")
    await until(pilot, lambda: isinstance(pilot.app.screen, CorrectScreen))
    box = pilot.app.screen.query_one(EditInput)
    box.cursor_blink = False
    await pilot.press("enter", *"Like a coin.")
    pilot.app.screen._show_error("The disk is full: history.db could not grow.")  # type: ignore[attr-defined]
    await pilot.pause()


async def _delete_asked(pilot: Pilot[None]) -> None:
    await _settled(pilot)
    await pilot.press("f8")
    await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
    await pilot.pause()


def test_welcome(snap_compare: Compare) -> None:
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_welcomed)


def test_conversation_narrow_dark(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_settled)


def test_conversation_wide_light(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app("textual-light"), terminal_size=(140, 40), run_before=_settled)


def test_conversation_narrow_light(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app("textual-light"), terminal_size=(80, 24), run_before=_settled)


def test_conversation_large_dark(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app(), terminal_size=(200, 60), run_before=_settled)


def test_a_failed_answer(snap_compare: Compare) -> None:
    with History.open() as history:
        conversation = history.new_conversation("Failed").id
        history.add_message(conversation, "user", "What is in this picture?")
        error = "The engine ended in mid-answer (signal 9). Its log: /home/me/logs/engine.log"
        history.add_message(
            conversation,
            "assistant",
            "A red",
            state="failed",
            error=error,
            origin=Origin("scenes"),
        )
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_settled)


def test_the_system_prompt(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    with History.open() as history:
        history.set_system(3, "Answer in one sentence.\nName colours first.")
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_system_asked)


def test_judged_answers_light(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    _judge("good")
    assert snap_compare(_app("textual-light"), terminal_size=(120, 35), run_before=_settled)


def test_judged_answers_dark(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    _judge("bad")
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_settled)


def test_the_correction(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_correction_asked)


def test_delete_asks(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app("textual-light"), terminal_size=(100, 30), run_before=_delete_asked)


def test_chips(snap_compare: Compare, still: Path) -> None:
    with History.open() as history:
        history.add_message(history.new_conversation("Chips").id, "user", str(still))
        history.add_message(history.new_conversation("New one").id, "user", "hello")
    assert snap_compare(_app(), terminal_size=(80, 24), run_before=_with_chips)


def test_search(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app(), terminal_size=(100, 30), run_before=_searched)


def test_help(snap_compare: Compare, still: Path) -> None:
    _fill(still)
    assert snap_compare(_app(), terminal_size=(100, 40), run_before=_helped)
