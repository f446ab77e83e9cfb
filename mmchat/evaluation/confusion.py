"""Confusion matrices as a picture: what was wanted down, what was said across."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from mmchat.evaluation.classes import ELSE, Classes
from mmchat.sanitize import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS: Final = 12
_NUMBERED: Final = 25  # classes up to which every cell says its number
_LABEL: Final = 22  # characters


def draw_confusion(classes: Sequence[Classes]) -> bytes:
    """A PNG with a panel for each (of more than `MOST_PANELS` the first ones, at least one).

    A cell's colour is its share of its row, its number the answers. The last column is of
    answers that are no class, where there are any.
    """
    from matplotlib.figure import Figure

    shown = classes[:MOST_PANELS]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    side = [2.6 + 0.34 * max(len(one.labels) for one in shown)] * 2
    figure = Figure(figsize=(columns * (side[0] + 0.6), rows * side[1]), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, one in zip(panels, shown, strict=False):
        _draw(panel, one)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; that is no news for a person.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _draw(panel: "Axes", one: Classes) -> None:
    labels = [_label(label) for label in one.labels]
    matrix, across = one.matrix, [*labels, ELSE]
    if not matrix[:, -1].any():
        matrix, across = matrix[:, :-1], labels
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # Labels are foreign: a dollar sign would begin a formula.
    panel.set_xticks(range(len(across)), across, rotation=60, ha="right", parse_math=False)
    panel.set_yticks(range(len(labels)), labels, parse_math=False)
    panel.tick_params(labelsize=8)
    panel.set_xlabel("answered")
    panel.set_ylabel("wanted")
    share = f"{100 * one.accuracy.share:.1f} % of {one.accuracy.n:,}"
    name = f"{_label(one.name)}: " if one.name else ""
    panel.set_title(f"{name}right {share}", fontsize=9, parse_math=False)
    if len(labels) > _NUMBERED:
        return
    for (row, column), number in np.ndenumerate(matrix):
        if number:
            colour = "white" if shares[row, column] > 0.55 else "black"
            panel.text(column, row, str(number), ha="center", va="center", size=7, color=colour)


def _label(text: str) -> str:
    text = clean(text, keep_newlines=False)
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"
