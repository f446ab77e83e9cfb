"""What `mmchat train` shows while it trains: a live panel on a terminal, plain lines elsewhere.

Both write to stderr and are used in the same way:

    with watch(as_json) as panel:
        panel.say("a remark")
        panel.show(status, metrics)

Foreign text is cleaned, and never interpreted as markup.
"""

import atexit
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mmchat.cli.output import note
from mmchat.cli.training_view import draw, table_lines
from mmchat.sanitize import clean
from mmchat.training import status_format
from mmchat.training.run_folder import Status

Metrics = Sequence[Mapping[str, Any]]

WIDEST, TALLEST = 100, 30
DRAWN_EVERY = 0.1
"""The fewest seconds from one drawing to the next."""
SHARE = 0.02
"""The largest share of the time that is spent on drawing."""
LINE_EVERY = 5.0
"""Seconds between two plain lines about the same thing; measurements are always printed."""


class Watcher(Protocol):
    """Shows the progress of a run."""

    def say(self, text: str) -> None:
        """Shows a remark, which stays on the screen."""

    def show(self, status: Status, metrics: Metrics) -> None:
        """Shows the run's status; `metrics` are all lines so far."""

    def close(self) -> None:
        """Shows the last status and releases the terminal."""

    def __enter__(self) -> "Watcher": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def watch(as_json: bool = False) -> Watcher:
    """The live panel if stderr is a terminal that can show it, else plain lines."""
    plain = as_json or os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    encoding = (getattr(sys.stderr, "encoding", None) or "").lower().replace("-", "")
    if plain or not sys.stderr.isatty() or not encoding.startswith("utf"):
        return LogLines()
    return TrainingPanel()


class _Closing:
    """A context manager that calls `close` at its end."""

    def close(self) -> None:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LogLines(_Closing):
    """A line every few seconds, one for every measurement, and all remarks."""

    def __init__(self) -> None:
        self._logged = 0
        self._said: tuple[str, str] = ("", "")
        self._sentence = ""
        self._next = 0.0

    def __enter__(self) -> "LogLines":
        return self

    def say(self, text: str) -> None:
        note(text)

    def show(self, status: Status, metrics: Metrics) -> None:
        if status.state == "failed":
            return  # the command prints the reason at its end
        sentence = status_format.sentence(status)
        # The same sentence with other numbers is a count in progress.
        said = (status.state, re.sub(r"\d+", "", sentence))
        if said != self._said or (sentence != self._sentence and self._due()):
            self._said, self._sentence = said, sentence
            self._wait()
            note(": ".join(part for part in (status_format.heading(status), sentence) if part))
            if status.state == "finished":
                for line in table_lines(status.rows, WIDEST):
                    note(line)
        if len(metrics) == self._logged:
            return
        measured = any("held_out_loss" in line for line in metrics[self._logged :])
        self._logged = len(metrics)
        if measured or self._due() or status.step == status.steps:
            self._wait()
            told = status_format.where(status) or [status_format.heading(status)]
            note("  ".join([*told, *status_format.figures(status)]))

    def _due(self) -> bool:
        return time.monotonic() >= self._next

    def _wait(self) -> None:
        self._next = time.monotonic() + LINE_EVERY

    def close(self) -> None:
        """Does nothing."""


class TrainingPanel(_Closing):
    """A panel that is redrawn in its place.

    It has no thread: `show` draws it, which a training loop calls at each step.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False)
        self._live: Live | None = None
        self._size = (0, 0)
        self._shown: tuple[Status, Metrics] | None = None
        self._drawn: Status | None = None
        self._next = 0.0

    def __enter__(self) -> "TrainingPanel":
        return self

    def say(self, text: str) -> None:
        self._console.print(Text(clean(text)))

    def show(self, status: Status, metrics: Metrics) -> None:
        self._shown = (status, metrics)
        changed = self._drawn is None or self._drawn.state != status.state
        if changed or time.monotonic() >= self._next:
            self._draw()

    def close(self) -> None:
        if self._shown is not None and self._shown[0] is not self._drawn:
            self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None
        atexit.unregister(self.close)

    def _draw(self) -> None:
        if self._shown is None:
            return
        began = time.monotonic()
        status, metrics = self._shown
        live = self._at_place()
        width, height = self._size
        lines = draw(status, metrics, min(width, WIDEST), min(height, TALLEST))
        live.update(Text("\n").join(lines), refresh=True)
        self._drawn = status
        ended = time.monotonic()
        self._next = ended + max(DRAWN_EVERY, (ended - began) / SHARE)

    def _at_place(self) -> Live:
        """The live display; a new one on a clean screen after the window has changed its size.

        The terminal has wrapped the old lines again, so they cannot be overwritten.
        """
        size = (self._console.size.width - 1, self._console.size.height - 1)
        if self._live is not None and size != self._size:
            self._live.stop()
            self._live = None
            self._console.clear()
        self._size = size
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),  # otherwise it is data
                vertical_overflow="crop",
            )
            atexit.register(self.close)  # shows the cursor again, however the program ends
            self._live.start()
        return self._live
