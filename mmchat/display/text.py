"""Foreign text in one line, and texts that have to fit into a number of cells."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from mmchat.sanitize import clean

GAP = 3
"""Cells between things that are side by side."""


def one_line(text: str, limit: int = 200) -> str:
    """Foreign text for a title, a row or a label: clean, one line, cut at `limit` characters."""
    text = clean(text[: limit * 4], keep_newlines=False)
    return text if len(text) <= limit else text[: max(limit - 1, 0)].rstrip() + "…"


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, with an ellipsis if it was longer."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + ("…" if width > 0 else "")


def wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Parts side by side as long as there is room; a part is never broken."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + GAP + cell_len(part) <= width:
            lines[-1] += " " * GAP + part
        else:
            lines.append(cut(part, width))
    return lines


def columns(rows: Sequence[Sequence[str]], width: int = 0) -> list[str]:
    """Rows of foreign text as left-aligned columns; `width` cuts the last column, 0 cuts nothing."""
    lines = [[clean(cell, keep_newlines=False) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)][:-1]
    left = width - sum(widths) - 2 * len(widths)
    made = []
    for line in lines:
        cells = [set_cell_size(cell, room) for cell, room in zip(line, widths, strict=False)]
        last = cut(line[-1], left) if left > 8 else line[-1]
        made.append("  ".join([*cells, last]).rstrip())
    return made


def bar(fraction: float, width: int) -> tuple[str, str]:
    """A progress bar of `width` cells, as its done and its open part; `fraction` is from 0 to 1."""
    fraction = min(max(fraction, 0.0), 1.0)
    done = int(fraction * width * 2 + 0.5)
    full, half = divmod(done, 2)
    return "━" * full + "╸" * half, "━" * (width - full - half)
