"""The app against a real history file and a real engine that answers by script."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from mmchat.settings import load_settings
from mmchat.tui.app import ChatApp
from mmchat.tui.widgets.answer_text import AnswerText
from mmchat.tui.widgets.message import MessageView
from tests.client.conftest import shared_engine, shared_home

__all__ = ["shared_engine", "shared_home"]

NOW = 1_780_000_000.0
PATIENCE = 20.0


@pytest.fixture
def fresh(shared_engine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty history beside the module's engine; colours are shown."""
    for file in shared_engine.glob("history.db*"):
        file.unlink()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("mmchat.tui.controllers.conversations.examples", list)
    return shared_engine


@pytest.fixture
def new_app(fresh: Path) -> Callable[..., ChatApp]:
    """Makes apps; settings such as `generation__max_tokens="3"`."""

    def make(conversation: int | None = None, new: bool = False, **overrides: str) -> ChatApp:
        named = {name.replace("__", "."): value for name, value in overrides.items()}
        return ChatApp(load_settings(named), conversation=conversation, new=new)

    return make


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture in a folder whose name has a space."""
    return draw(tmp_path / "my pictures" / "red circle.png")


def draw(path: Path) -> Path:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill="red")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


async def until(
    pilot: Pilot[None], holds: Callable[[], object], patience: float = PATIENCE
) -> None:
    """Lets the app work until `holds()`; fails after half a minute, or `patience` seconds."""
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "the app did not get there"
        await asyncio.sleep(0.01)
        await pilot.pause()


async def say(pilot: Pilot[None], text: str) -> None:
    """Types a message (as one paste, which is faster) and sends it."""
    app = pilot.app
    assert isinstance(app, ChatApp)
    app.chat.composer.input.set_text(text)
    await pilot.pause()
    await pilot.press("enter")
    # Enter on a command waits for its suggestions; what is typed meanwhile would cancel it.
    await until(pilot, lambda: not app.chat.composer._waiting_key)


async def answered(pilot: Pilot[None]) -> None:
    """Waits until all that was typed is done, nothing is asked any more and the screen shows it."""
    app = pilot.app
    assert isinstance(app, ChatApp)
    done = asyncio.Event()

    async def reached() -> None:
        done.set()

    app.chat.tasks.enqueue(reached)
    await until(pilot, done.is_set)
    await until(pilot, lambda: app.chat.transcript.branch and not app.answers.pending)
    await until(pilot, lambda: not any(view.pending for view in app.chat.query(MessageView)))


def shown(app: ChatApp) -> list[str]:
    """The texts of the messages that are on the screen, notes under them after a bar."""
    texts = []
    for view in app.chat.query(MessageView):
        if view.message.role == "user":
            text = str(view.query_one(".text", Static).content)
        else:
            text = view.query_one(AnswerText).source
        note = view.query_one(".note", Static)
        texts.append(text.strip() + (f" | {note.content}" if note.display else ""))
    return texts


def shown_error(app: ChatApp) -> str:
    """The sentence next to the input."""
    line = app.chat.query_one("#error", Static)
    return str(line.content) if line.display else ""


def drawn(app: ChatApp) -> str:
    """What stands on the screen, cell by cell."""
    return "\n".join(
        "".join(segment.text for segment in strip)
        for strip in app.screen._compositor.render_strips()
    )
