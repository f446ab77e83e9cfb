"""Draws curves with characters: the training loss in braille dots, the held-out loss as ●."""

import math
from collections.abc import Callable, Sequence

from mmchat.training.curves import Point, is_logarithmic

HELD_OUT = "●"
NARROWEST, LOWEST = 16, 3
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character by row and column."""
_BLANK = 0x2800


def curve(points: Sequence[Point], held_out: Sequence[Point], width: int, height: int) -> list[str]:
    """`height` lines of `width` characters: labelled axes, (step, loss) as a line and as dots.

    Empty if there is nothing to draw, or no room for it. The axis of the loss is logarithmic if
    the losses have a wide range.
    """
    drawn = [*points, *held_out]
    if not drawn or width < NARROWEST or height < LOWEST:
        return []
    losses = [loss for _, loss in drawn]
    logarithmic = is_logarithmic(losses)
    low, high = min(losses), max(losses)
    if low == high:
        low, high = low - max(0.5, abs(low) / 2), high + max(0.5, abs(high) / 2)
    rows = height - 1
    labels = _labels(low, high, rows, logarithmic)
    margin = max(map(len, labels)) + 1
    columns = width - margin
    first, last = min(step for step, _ in drawn), max(step for step, _ in drawn)

    def scaled(value: float) -> float:
        return math.log(value) if logarithmic else value

    def at(across: int, down: int) -> Callable[[Point], tuple[int, int]]:
        """Maps a point to a grid of `across` by `down` places, from its upper left corner."""

        def place(point: Point) -> tuple[int, int]:
            step, loss = point
            x = (step - first) / (last - first) if last > first else 0.5
            y = (scaled(high) - scaled(loss)) / (scaled(high) - scaled(low))
            return round(x * (across - 1)), round(min(max(y, 0.0), 1.0) * (down - 1))

        return place

    cells = [[_BLANK] * columns for _ in range(rows)]
    places = [at(2 * columns, 4 * rows)(point) for point in points]
    for start, end in zip(places, places[1:] or places, strict=False):
        for x, y in _line(start, end):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    lines = [[chr(cell) if cell != _BLANK else " " for cell in row] for row in cells]
    for x, y in map(at(columns, rows), held_out):
        lines[y][x] = HELD_OUT
    made = [
        f"{label:>{margin - 1}}{'┤' if label else '│'}{''.join(line)}"
        for label, line in zip(labels, lines, strict=True)
    ]
    left, right = f"{first:.0f}", f"step {last:.0f}"
    gap = columns - len(left) - len(right)
    axis = left + " " * gap + right if gap > 0 else right.rjust(columns)
    return [*made, " " * margin + axis[:columns]]


def _labels(low: float, high: float, rows: int, logarithmic: bool) -> list[str]:
    """The losses at the first, middle and last row; "" in the others."""
    labels = [""] * rows
    marked = {0, rows - 1} if rows < 5 else {0, rows // 2, rows - 1}
    for row in marked:
        share = row / (rows - 1)
        if logarithmic:
            value = math.exp(math.log(high) * (1 - share) + math.log(low) * share)
        else:
            value = high * (1 - share) + low * share
        labels[row] = f"{value:.2f}" if 0.1 <= abs(value) < 1000 or not value else f"{value:.2g}"
    return labels


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from `start` to `end`, including both."""
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [
        (x0 + round((x1 - x0) * n / steps), y0 + round((y1 - y0) * n / steps))
        for n in range(steps + 1)
    ]
