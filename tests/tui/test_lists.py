"""Lists and keys that come before the list has a size, or after it has changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from textual import events
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widgets import OptionList

from mmchat.history import History
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.search import Result, SearchScreen
from mmchat.tui.widgets.conversations import Rows
from tests.tui.conftest import say, until

NewApp = Callable[..., ChatApp]


def burst(app: ChatApp, *keys: str) -> None:
    """Keys that arrive at once, as from a slow line or a held key."""
    for key in keys:
        app.post_message(events.Key(key, None))


async def still_works(pilot: Pilot[None], app: ChatApp) -> None:
    box = app.chat.composer.input
    box.focus()
    await pilot.press("x")
    await until(pilot, lambda: box.text == "x")


@pytest.fixture
def conversations(fresh: Path) -> None:
    with History.open() as history:
        for title in ("kites", "boats", "birds"):
            conversation = history.new_conversation(title)
            history.add_message(conversation.id, "user", f"a word about {title}")


@pytest.mark.parametrize("page", ["pagedown", "pageup"])
async def test_page_keys_behind_the_key_of_the_palette(new_app: NewApp, page: str) -> None:
    app = new_app()
    async with app.run_test(size=(100, 30)) as pilot:
        burst(app, "ctrl+p", page)
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        listed = app.screen.query_one(OptionList)
        await until(pilot, lambda: listed.option_count and listed.size)
        await pilot.press("pagedown")
        await until(pilot, lambda: listed.highlighted)
        await pilot.press("escape")
        await still_works(pilot, app)


@pytest.mark.usefixtures("conversations")
async def test_page_keys_of_the_conversations_before_they_have_a_size(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        rows = app.chat.query_one(Rows)
        await say(pilot, "/rename Red kites")  # the list changes while it is folded away
        await until(pilot, lambda: "Red kites" in str([one.prompt for one in rows.options]))
        assert rows.highlighted is not None
        assert not rows.size
        rows.action_page_down()
        rows.action_page_up()
        burst(app, "ctrl+b", "pagedown", "pageup", "pagedown")
        await until(pilot, lambda: rows.has_focus and rows.size)
        await pilot.press("home", "pagedown")
        await until(pilot, lambda: rows.highlighted == rows.option_count - 1)


@pytest.mark.usefixtures("conversations")
async def test_keys_behind_the_key_of_a_dialog(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(10, 2)) as pilot:
        for opened_by in ("ctrl+f", "f1", "f3", "f4", "f5", "f9", "ctrl+p"):
            keys = ("pagedown", "down", "pageup", "up", "end", "home", "pagedown")
            burst(app, opened_by, *keys)
            await until(pilot, lambda: app.screen is not app.chat)
            await pilot.press("pagedown", "pageup", "escape")
            await until(pilot, lambda: app.screen is app.chat)
        await still_works(pilot, app)


@pytest.mark.usefixtures("conversations")
async def test_a_result_is_opened_that_is_no_longer_found(new_app: NewApp) -> None:
    app = new_app(new=True)
    async with app.run_test() as pilot:
        await pilot.press("ctrl+f", *"word")
        screen = app.screen
        assert isinstance(screen, SearchScreen)
        listed = screen.query_one(OptionList)
        await until(pilot, lambda: listed.option_count == 3)
        await pilot.press("down", "down")
        chosen = listed.highlighted_option
        assert isinstance(chosen, Result)
        listed.action_select()
        screen._show("word", ())  # as of a search that has just ended
        await until(pilot, lambda: app.screen is app.chat)
        await until(pilot, lambda: app.service.conversation_id == chosen.hit.conversation_id)
