"""Another program holds the history file: the app lives on, and nothing is lost."""

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.screen import Screen

from mmchat.history import Message
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.dialogs import ConfirmScreen
from mmchat.tui.widgets.conversations import ConversationList
from tests.engine.scripted import open_gate
from tests.tui.conftest import PATIENCE, answered, draw, drawn, say, shown, shown_error, until

NewApp = Callable[..., ChatApp]


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """What a backup or a database browser does in mid-work."""
    other = sqlite3.connect(home / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def waits(app: ChatApp) -> bool:
    """Whether a thread of the app waits for the file."""
    turn = app.history._database._writer._lock
    if not turn.acquire(blocking=False):
        return True
    turn.release()
    return False


class Paints:
    """Counts what really goes to the terminal."""

    def __init__(self, app: ChatApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        display = app._display

        def counted(screen: Screen[Any], renderable: Any) -> None:
            self.count += 1
            display(screen, renderable)

        monkeypatch.setattr(app, "_display", counted)


async def lives(pilot: Pilot[None], app: ChatApp, paints: Paints) -> None:
    """A key is taken and painted while a thread waits for the file, not after it."""
    await until(pilot, lambda: waits(app))
    before, box = paints.count, app.chat.composer.input
    box.set_text("")
    await pilot.press("x")
    await until(pilot, lambda: box.text == "x" and paints.count > before)
    assert waits(app)
    box.set_text("")


async def test_a_locked_file_holds_up_no_key_and_no_repaint(
    new_app: NewApp, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 3 * PATIENCE)
    app = new_app()
    async with app.run_test() as pilot:
        paints = Paints(app, monkeypatch)
        await say(pilot, "say one")
        await answered(pilot)

        def last() -> Message:
            return app.chat.transcript.branch[-1]

        async def press(*keys: str) -> None:
            await pilot.press(*keys)

        async def delete() -> None:
            await pilot.press("f8")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            await pilot.press("y")
            await until(pilot, lambda: app.screen is app.chat)

        steps: list[tuple[Callable[[], Awaitable[None]], Callable[[], object]]] = [
            (lambda: say(pilot, "say two"), lambda: len(app.chat.transcript.branch) == 4),
            (lambda: press("ctrl+r"), lambda: last().sibling == 2),
            (lambda: press("alt+left"), lambda: last().sibling == 1),
            (lambda: say(pilot, "/rename Kites"), lambda: "Kites" in str(app.service.conversation)),
            (lambda: say(pilot, "/system Be brief."), lambda: app.service.system),
            (delete, lambda: app.service.conversation is None),
        ]
        for step, done in steps:
            with locked(fresh):
                await step()
                await lives(pilot, app, paints)
            await until(pilot, done)
            await until(pilot, lambda: not app.answers.pending)


@pytest.mark.parametrize(("key", "save"), [("ctrl+l", "enter"), ("ctrl+g", "ctrl+s")])
async def test_a_dialog_says_that_it_is_saving(
    new_app: NewApp, fresh: Path, monkeypatch: pytest.MonkeyPatch, key: str, save: str
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 3 * PATIENCE)
    app = new_app()
    async with app.run_test() as pilot:
        await say(pilot, "say one")
        await answered(pilot)
        await pilot.press(key)
        await until(pilot, lambda: app.screen is not app.chat)
        with locked(fresh):
            await pilot.press("x", save)
            await until(pilot, lambda: "Saving…" in drawn(app))
        await until(pilot, lambda: app.screen is app.chat)


async def test_an_answer_that_waits_for_the_file_holds_up_nothing_else(
    new_app: NewApp, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 3 * PATIENCE)
    app = new_app()
    async with app.run_test() as pilot:
        paints = Paints(app, monkeypatch)
        await say(pilot, "gate locked")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        with locked(fresh):
            open_gate("locked")
            await lives(pilot, app, paints)
            await pilot.press("ctrl+n")  # what only reads does not wait
            await until(pilot, lambda: app.service.conversation is None and not shown(app))
            app.chat.post_message(ConversationList.Selected(1))
            await until(pilot, lambda: shown(app)[-1:] == ["before"])
            app.chat.history_sync.sync()
            await lives(pilot, app, paints)
        await answered(pilot)
        assert shown(app)[-1] == "before after"
        await say(pilot, "gate esc")
        await until(pilot, lambda: shown(app)[-1] == "before")
        with locked(fresh):
            await pilot.press("escape", "escape")
            await until(pilot, lambda: shown(app)[-1] == "before | stopping…")
            await lives(pilot, app, paints)
        await answered(pilot)
        assert shown(app)[-1] == "before | Stopped."


async def test_a_file_that_stays_locked_is_told_and_mended_by_trying_again(
    new_app: NewApp, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 0.05)
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "say one")
        await answered(pilot)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.chat.transcript.branch[-1].sibling == 2)
        await answered(pilot)
        app.chat.tasks.enqueue(lambda: app.chat.composer.attach([draw(tmp_path / "a.png")]))
        await until(pilot, lambda: app.chat.composer.pictures)
        with locked(fresh):
            await pilot.press("ctrl+up", "left")
            await until(pilot, lambda: "is locked" in shown_error(app))
            app.chat.composer.show_error("")
            app.chat.composer.input.focus()
            await say(pilot, "say two")
            await until(pilot, lambda: "is locked" in shown_error(app))
            assert app.chat.composer.input.text == "say two"
            assert len(app.chat.composer.pictures) == 1
            for command in ("/system Be\nbrief.", "/rename Kites"):
                await say(pilot, command)
                await until(pilot, lambda: "is locked" in shown_error(app))
                assert app.chat.composer.input.text == command
            app.chat.composer.input.set_text("say two")
        assert app.history.stats()["messages"] == 3
        await pilot.press("enter")
        await until(pilot, lambda: len(app.chat.transcript.branch) == 4)
        await answered(pilot)
        assert shown(app)[-1] == "two"
        assert app.history.stats()["messages"] == 5


async def test_the_end_of_an_answer_is_written_when_the_file_is_free(
    new_app: NewApp, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 0.05)
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "gate end")
        await until(pilot, lambda: shown(app)[-1:] == ["before"])
        with locked(fresh):
            await pilot.press("escape")
            await until(pilot, lambda: "mmchat will try again" in shown(app)[-1])
            assert "is locked" in shown(app)[-1]
        app.chat.history_sync.sync()
        await answered(pilot)
        assert shown(app)[-1] == "before | Stopped."
        assert app.history.branch(1)[1].state == "stopped"
