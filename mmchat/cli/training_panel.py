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
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from mmchat.cli.output import note
from mmchat.display.text import GAP, cut, one_line, wrapped
from mmchat.sanitize import clean
from mmchat.training import status_format
from mmchat.training.curves import Curves, curves
from mmchat.training.plot import HELD_OUT, draw_losses
from mmchat.training.run_folder import Measurement, SampleAnswer, Status

Metrics = Sequence[Mapping[str, Any]]

WIDEST, TALLEST = 100, 30
HIGHEST_CURVE, GOOD_CURVE, LOWEST_CURVE = 13, 8, 6
NARROWEST_CURVE = 16
TRAINING_COLOR, HELD_OUT_COLOR = "cyan", "yellow"
HINT = "Ctrl-C saves a checkpoint and shows how to resume."
DRAWN_EVERY = 0.1
"""The fewest seconds from one drawing to the next."""
SHARE = 0.02
"""The largest share of the time that is spent on drawing."""
LINE_EVERY = 5.0
"""Seconds between two plain lines about the same thing; measurements are always printed."""


class Watcher(ABC):
    """Shows the progress of a run; a context manager that calls `close` at its end."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Shows a remark, which stays on the screen."""

    @abstractmethod
    def show(self, status: Status, metrics: Metrics) -> None:
        """Shows the run's status; `metrics` are all lines so far."""

    @abstractmethod
    def close(self) -> None:
        """Shows the last status and releases the terminal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def watch(as_json: bool = False) -> Watcher:
    """The live panel if stderr is a terminal that can show it, else plain lines."""
    plain = as_json or os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    encoding = (getattr(sys.stderr, "encoding", None) or "").lower().replace("-", "")
    if plain or not sys.stderr.isatty() or not encoding.startswith("utf"):
        return LogLines()
    return TrainingPanel()


class LogLines(Watcher):
    """A line every few seconds, one for every measurement, and all remarks."""

    def __init__(self) -> None:
        self._logged = 0
        self._shown: tuple[str, str] = ("", "")
        self._sentence = ""
        self._next = 0.0

    def say(self, text: str) -> None:
        note(text)

    def show(self, status: Status, metrics: Metrics) -> None:
        if status.state == "failed":
            return  # the command prints the reason at its end
        sentence = status_format.sentence(status)
        # The same sentence with other numbers is a count in progress.
        shown = (status.state, re.sub(r"\d+", "", sentence))
        if shown != self._shown or (sentence != self._sentence and self._due()):
            self._shown, self._sentence = shown, sentence
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
            where = status_format.where(status) or [status_format.heading(status)]
            note("  ".join([*where, *status_format.figures(status)]))

    def _due(self) -> bool:
        return time.monotonic() >= self._next

    def _wait(self) -> None:
        self._next = time.monotonic() + LINE_EVERY

    def close(self) -> None:
        """Does nothing."""


class TrainingPanel(Watcher):
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


def draw(status: Status, metrics: Metrics, width: int, height: int) -> list[Text]:
    """At most `height` lines of at most `width` cells.

    If there is not enough room, answers are left out first and the curve gets smaller; then the
    curve is left out, then the figures. The sentence and the table stay longest. No part is cut.
    """
    top = _title(status, width)
    sentence = status_format.sentence(status) or (HINT if status.state == "training" else "")
    last = [Text(line, _tone(status)) for line in _folded(sentence, width)]
    last = [Text(), *last] if last else []
    room = height - len(top) - len(last)
    parts = {"table": _table(status.rows, width), "figures": _figures(status, width)}
    for name, lines in parts.items():
        if len(lines) > room:
            parts[name] = []
        room -= len(parts[name])
    spare = room - 2 - GOOD_CURVE
    answers = _answers(status.samples, width, spare if spare > 2 else room - 2 - LOWEST_CURVE)
    drawn = _curve(metrics, width, room - len(answers))
    if not drawn:
        answers = _answers(status.samples, width, room)
    lines = [*top, *parts["figures"], *parts["table"], *drawn, *answers, *last]
    return lines[: max(height, 1)]


def table_lines(rows: Sequence[Measurement], width: int) -> list[str]:
    """The table of before and after: in columns or, if it is narrow, below each other."""
    if not rows:
        return []
    table = [status_format.TABLE_HEADER, *status_format.table(rows)]
    widths = [max(cell_len(row[n]) for row in table) for n in range(4)]
    if sum(widths) + 3 * GAP <= width:
        return [
            (" " * GAP)
            .join(
                (
                    set_cell_size(what, widths[0]),
                    n.rjust(widths[1]),
                    set_cell_size(before, widths[2]),
                    after,
                )
            )
            .rstrip()
            for what, n, before, after in table
        ]
    lines = []
    for what, n, before, after in table[1:]:
        lines += [f"{what} (n = {n})", f"  before {before}", f"  after  {after}"]
    return [cut(line, width) for line in lines]


def _title(status: Status, width: int) -> list[Text]:
    """The name, the state and the percentage; the bar; the step."""
    finished = status.state == "finished"
    right = "" if finished else status_format.percent(status)
    room = width - cell_len(right) - 1
    line = Text().append(cut(one_line(status.name, 100), room), "bold")
    about = status_format.heading(status)
    if line.cell_len + 2 + cell_len(about) <= room:
        line.append("  ").append(about, "dim")
    line.append(" " * (width - line.cell_len - cell_len(right))).append(right, "bold")
    if finished:
        return [line]
    done = int(status_format.fraction(status) * width)
    bar = Text().append("━" * done, "cyan").append("━" * (width - done), "bright_black")
    return [
        line,
        bar,
        *(Text(part, "bold") for part in wrapped(status_format.where(status), width)),
    ]


def _tone(status: Status) -> str:
    return {"failed": "red", "finished": "green", "paused": "yellow"}.get(status.state, "dim")


def _figures(status: Status, width: int) -> list[Text]:
    if status.state == "finished":
        return []
    return [Text(line) for line in wrapped(status_format.figures(status), width)]


def _table(rows: Sequence[Measurement], width: int) -> list[Text]:
    lines = [Text(line) for line in table_lines(rows, width)]
    return [Text(), *lines] if lines else []


def _curve(metrics: Metrics, width: int, height: int) -> list[Text]:
    """A blank line, a legend and the curve; nothing if the room is too small to read it."""
    if height < 2 + LOWEST_CURVE:
        return []
    shown = curves(metrics)
    lines = loss_curve(shown, width, min(height - 2, HIGHEST_CURVE))
    if not lines:
        return []
    legend = Text().append("loss", TRAINING_COLOR)
    held_out = f"   {HELD_OUT} held-out"
    if shown.held_out and legend.cell_len + cell_len(held_out) <= width:
        legend.append(held_out, HELD_OUT_COLOR)
    return [Text(), legend, *lines]


def loss_curve(losses: Curves, width: int, height: int) -> list[Text]:
    """`height` lines of `width` cells; none if there is nothing to draw, or no room for it."""
    if width < NARROWEST_CURVE or height < 3 or not (losses.training or losses.held_out):
        return []
    import plotext

    draw_losses(plotext, losses, width, height, "cyan", "orange")  # plotext's name for yellow
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    plotext.ticks_color("gray")
    return list(Text.from_ansi(plotext.build()).split("\n"))


def _answers(samples: Sequence[SampleAnswer], width: int, height: int) -> list[Text]:
    """A heading, and as many whole answers as there is room for."""
    lines: list[Text] = []
    for block in (_answer(sample, width) for sample in samples):
        if 2 + len(lines) + len(block) > height:
            break
        lines += block
    heading = Text(cut("its answers now", width), "dim")
    return [Text(), heading, *lines] if lines else []


def _answer(sample: SampleAnswer, width: int) -> list[Text]:
    """Right or wrong, the question, the wanted and the given answer, in one or more lines."""
    answer = status_format.check_answer(sample)
    line = Text().append("✓ " if answer.right else "✗ ", "green" if answer.right else "red")
    together = ", ".join(answer.parts)
    if line.cell_len + cell_len(answer.question) + GAP + cell_len(together) <= width:
        return [line.append(answer.question, "dim").append(" " * GAP).append(together)]
    below = [Text("  " + part) for part in wrapped(answer.parts, width - 2)]
    return [line.append(cut(answer.question, width - 2), "dim"), *below]


def _folded(text: str, width: int) -> list[str]:
    """A sentence in lines, broken between words if possible."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, max(width, 2))
    return lines
