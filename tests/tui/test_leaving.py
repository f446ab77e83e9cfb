"""Stopping and leaving while something works: the terminal stays clean, and nothing is lost."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mmchat.history import History
from mmchat.tui.app import ChatApp
from tests.builtin.terminal import Terminal
from tests.client.asking import until as until_outside
from tests.engine.scripted import open_gate
from tests.tui.conftest import answered, say, shown, until

NewApp = Callable[..., ChatApp]
OpenApp = Callable[..., Terminal]


@pytest.fixture
def open_app(fresh: Path) -> Iterator[OpenApp]:
    """Opens the app on a terminal of its own; an app that is left over is ended."""
    with ExitStack() as stack:

        def open_app(**variables: str) -> Terminal:
            terminal = Terminal("--new", MMCHAT_GENERATION_MAX_TOKENS="100000", **variables)
            stack.callback(terminal.close)
            return terminal

        yield open_app


async def test_stopping_while_text_arrives_is_no_error(new_app: NewApp) -> None:
    """The answer is stopped in the moment in which its socket has more text."""
    app = new_app()
    async with app.run_test() as pilot:
        loop: Any = asyncio.get_running_loop()
        errors: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda loop, context: errors.append(context))
        await say(pilot, "slowly " + "word " * 400)  # longer than a busy machine needs to stop it
        await until(pilot, lambda: "word" in "".join(shown(app)[1:]))
        (live,) = app.service.pending()

        def stop_when_text_waits() -> None:
            ready = [key.fd for key, _ in loop._selector.select(0.1)]
            if any(one != loop._ssock.fileno() for one in ready):
                loop.call_soon(app.answers.stop, live)
            else:
                loop.call_soon(stop_when_text_waits)

        loop.call_soon(stop_when_text_waits)
        await answered(pilot)
        assert shown(app)[1].endswith(" | Stopped.")
        assert not errors


@pytest.mark.parametrize(
    "steps",
    [
        [("forever", "forever"), ("\r", "tick-2")],
        [("\x06", "Search all"), ("zzz", "No matches")],
        [("\x1b[20~", "learn from")],
        [
            ("forever", "forever"),
            ("\r", "tick-2"),
            ("\x1b", "Stopped"),
            ("/compare ./a ./b", "./b"),
            ("\r", "tick-2"),
        ],
        [],
    ],
    ids=["answering", "searching", "planning to train", "comparing", "loading"],
)
async def test_leaving_prints_nothing(open_app: OpenApp, steps: list[tuple[str, str]]) -> None:
    app = open_app(MMCHAT_MODEL_NAME="scenes" if steps else "gate-leaving")
    await until_outside(lambda: "Drop a file here" in app.painted())
    for keys, seen in steps or [("", "loading gate-leaving")]:
        before = len(app.painted())
        app.type(keys)
        await until_outside(lambda: seen in app.painted()[before:])  # noqa: B023
    app.type("\x11\x10a\x06")  # Ctrl+Q; what comes behind it does nothing
    assert app.left_behind() == ""
    assert app.process.returncode == 0
    with History.open() as history:
        latest = history.latest()
        answers = history.branch(latest.id)[1::2] if latest is not None else []
    assert [answer.state for answer in answers] == ["stopped"] * len(answers)
    open_gate("leaving")
