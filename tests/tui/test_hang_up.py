"""A terminal that goes away takes the app with it, and every answer is kept."""

import os
import pty
import select
import sys
import time
from pathlib import Path

from mmchat.history import History
from tests.engine.scripted import end_engine, environment

# The last resort is put off, so that only the orderly way out can end it in time.
APP = """
import mmchat.tui.app
mmchat.tui.app.EXIT_SECONDS = 3600
from mmchat.cli import main
main()
"""


def _read_until(terminal: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        assert select.select([terminal], [], [], 60)[0], seen[-300:]
        seen += os.read(terminal, 65536)


def _exit_code(process: int) -> int:
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < deadline, "the app lives on without a terminal"
        select.select([], [], [], 0.05)
    return os.waitstatus_to_exitcode(ended[1])


def test_a_closed_terminal_ends_the_app_in_order(home: Path) -> None:
    """Nobody reads what it writes any more; it stops its answer and is gone soon all the same."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(environment(), TERM="xterm-256color")
        os.execv(sys.executable, [sys.executable, "-c", APP])
    try:
        _read_until(terminal, b"Drop a file here")
        os.write(terminal, b"forever")
        _read_until(terminal, b"forever")
        os.write(terminal, b"\r")
        _read_until(terminal, b"tick-2")
        os.close(terminal)
        code = _exit_code(process)
        with History.open() as history:
            answer = history.branch(1)[1]
        assert (answer.state, answer.text[:14]) == ("stopped", "tick-1 tick-2 ")
        assert code != 129
    finally:
        end_engine()
