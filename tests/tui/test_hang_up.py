"""A terminal that goes away takes the app with it."""

import os
import pty
import select
import sys
import time
from pathlib import Path

from tests.engine.scripted import end_engine, environment


def test_a_closed_terminal_ends_the_app(home: Path) -> None:
    """Nobody reads what it writes any more; it is gone soon all the same."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(environment(), TERM="xterm-256color")
        os.execv(sys.executable, [sys.executable, "-m", "mmchat"])
    try:
        seen = b""
        while b"Drop a file here" not in seen:
            assert select.select([terminal], [], [], 60)[0], seen[-300:]
            seen += os.read(terminal, 65536)
        os.close(terminal)
        deadline = time.monotonic() + 30
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline, "the app lives on without a terminal"
            select.select([], [], [], 0.05)
    finally:
        end_engine()
