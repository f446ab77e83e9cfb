"""kill -9 in mid-answer of the app, on a real terminal with the real model."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from mmchat.client.endpoint import engine_lives, lock_holder
from mmchat.history import History, Message
from tests.builtin.asking import LONG_SETTINGS, STARS
from tests.builtin.terminal import Terminal
from tests.client.asking import until

Open = Callable[..., Terminal]
QUESTION = "tell me all"


@pytest.fixture
def open_app() -> Iterator[Open]:
    """Opens the app on a terminal of its own; an app that is left over is ended."""
    with contextlib.ExitStack() as stack:

        def open_app(*arguments: str, **variables: str) -> Terminal:
            terminal = Terminal(*arguments, **variables)
            stack.callback(terminal.close)
            return terminal

        yield open_app


def branch() -> list[Message]:
    """The newest conversation."""
    with History.open() as history:
        latest = history.latest()
        return history.branch(latest.id) if latest is not None else []


def flat(text: str) -> str:
    return " ".join(text.split())


async def in_mid_answer(open_app: Open) -> tuple[Terminal, int, str]:
    """(the app, the engine's process, what the history has of the answer by then)"""
    app = open_app("--new", **{**LONG_SETTINGS, "MMCHAT_GENERATION_MAX_TOKENS": "200"})
    # Not the placeholder of the input, which stands there before the app listens.
    await until(lambda: "Drop a file here" in app.painted())
    app.type(f"{STARS}\r")  # a path alone is attached
    await until(lambda: "247×195" in app.painted())
    app.type(QUESTION)
    await until(lambda: QUESTION in app.painted())
    app.type("\r")

    def half() -> bool:
        messages = branch()
        return len(messages) == 2 and messages[0].text == QUESTION and len(messages[1].text) > 60

    await until(half, 60.0)
    _, answer = branch()
    engine = lock_holder()
    assert answer.state == "streaming" and engine is not None
    return app, engine, answer.text


async def works_in(app: Terminal, before: int) -> None:
    """The next message of the conversation, which has `before` messages, is answered."""
    app.type("hello")
    app.type("\r")
    await until(lambda: len(branch()) == before + 2 and branch()[-1].state != "streaming", 60.0)
    answer = branch()[-1]
    assert answer.state in ("complete", "length") and answer.text


async def test_the_engine_dies_and_the_app_goes_on(open_app: Open) -> None:
    app, engine, seen = await in_mid_answer(open_app)
    os.kill(engine, signal.SIGKILL)
    await until(lambda: branch()[1].state == "failed")
    question, answer = branch()
    assert [image.name for image in question.images] == ["stars.png"]
    assert answer.text.startswith(seen)
    assert answer.error.startswith("The engine ended unexpectedly while answering")
    await until(lambda: "The engine ended unexpectedly" in flat(app.painted()))
    await works_in(app, 2)
    assert app.process.poll() is None and lock_holder() != engine


@pytest.mark.parametrize("both", [False, True], ids=["the app", "app and engine"])
async def test_the_app_dies_and_its_conversation_is_there_again(both: bool, open_app: Open) -> None:
    app, engine, seen = await in_mid_answer(open_app)
    app.process.kill()
    if both:
        os.kill(engine, signal.SIGKILL)
        await until(lambda: not engine_lives())
    app.process.wait()
    again = open_app()
    await until(lambda: "247×195" in again.painted() and "nterrupted" in again.painted())
    question, answer = branch()
    assert [image.name for image in question.images] == ["stars.png"]
    assert answer.state == "interrupted" and answer.text.startswith(seen)
    await works_in(again, 2)
    assert (lock_holder() == engine) is not both
