"""The panel of `mmchat train` as lines of text, at any size."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

from mmchat.display.text import GAP, cut, one_line, wrapped
from mmchat.training import status_format
from mmchat.training.curves import Curves, curves
from mmchat.training.plot import HELD_OUT, draw_losses
from mmchat.training.run_folder import Row, SampleAnswer, Status

HIGHEST_CURVE, GOOD_CURVE, LOWEST_CURVE = 13, 8, 6
NARROWEST_CURVE = 16
TRAINING_COLOR, HELD_OUT_COLOR = "cyan", "yellow"
HINT = "Ctrl-C saves a checkpoint and shows how to resume."


def draw(
    status: Status, metrics: Sequence[Mapping[str, Any]], width: int, height: int
) -> list[Text]:
    """At most `height` lines of at most `width` cells.

    If there is not enough room, answers are left out first and the curve gets smaller; then the
    curve is left out, then the figures. The sentence and the table stay longest. No part is cut.
    """
    top = _title(status, width)
    sentence = status_format.sentence(status) or (HINT if status.state == "training" else "")
    said = [Text(line, _tone(status)) for line in _folded(sentence, width)]
    said = [Text(), *said] if said else []
    room = height - len(top) - len(said)
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
    lines = [*top, *parts["figures"], *parts["table"], *drawn, *answers, *said]
    return lines[: max(height, 1)]


def table_lines(rows: Sequence[Row], width: int) -> list[str]:
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


def _table(rows: Sequence[Row], width: int) -> list[Text]:
    lines = [Text(line) for line in table_lines(rows, width)]
    return [Text(), *lines] if lines else []


def _curve(metrics: Sequence[Mapping[str, Any]], width: int, height: int) -> list[Text]:
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

    plotext.theme("clear")
    draw_losses(plotext, losses, width, height, "cyan", "orange")  # plotext's name for yellow
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
    told = status_format.answer(sample)
    line = Text().append("✓ " if told.right else "✗ ", "green" if told.right else "red")
    together = ", ".join(told.parts)
    if line.cell_len + cell_len(told.question) + GAP + cell_len(together) <= width:
        return [line.append(told.question, "dim").append(" " * GAP).append(together)]
    below = [Text("  " + part) for part in wrapped(told.parts, width - 2)]
    return [line.append(cut(told.question, width - 2), "dim"), *below]


def _folded(text: str, width: int) -> list[str]:
    """A sentence in lines, broken between words if possible."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, max(width, 2))
    return lines
