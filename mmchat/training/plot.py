"""`loss.png`: the losses of a run as a picture. Free of torch."""

import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmchat.files import write_file
from mmchat.sanitize import clean
from mmchat.training.curves import curves, smoothed, thinned
from mmchat.training.run_folder import writing

WIDTH, HEIGHT, DPI = 8.0, 4.5, 120
"""Inches, inches, pixels an inch."""
_RAW, _SMOOTH, _HELD_OUT, _AXES = "#9fc5e8", "#0b6bbf", "#d9541e", "#555555"


def plot_losses(metrics: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Draws the lines of a metrics file into the PNG `file`, which is replaced whole.

    Training: raw and light, and smoothed; held-out: with points; a line where each stage
    begins. Without a single loss it says so. Raises RecipeError if `file` cannot be written.
    """
    data = _draw(metrics)
    with writing(file):
        write_file(file, data, private=False)


def _draw(metrics: Iterable[Mapping[str, Any]]) -> bytes:
    # Not pyplot: no global state, no window, nothing that would have to be closed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = curves(metrics)
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if shown.training:
        raw = thinned(shown.training)
        smooth = thinned(smoothed(shown.training, shown.logarithmic))
        single = "o" if len(raw) == 1 else ""
        axes.plot(*zip(*raw, strict=True), color=_RAW, linewidth=0.8)
        axes.plot(
            *zip(*smooth, strict=True),
            color=_SMOOTH,
            linewidth=1.8,
            marker=single,
            markersize=4,
            label="training",
        )
    if shown.held_out:
        points = thinned(shown.held_out)
        axes.plot(
            *zip(*points, strict=True),
            color=_HELD_OUT,
            linewidth=1.4,
            marker="o",
            markersize=4,
            label="held-out",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if shown.logarithmic:
        axes.set_yscale("log")
        axes.set_ylabel("loss (logarithmic)")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(True, which="both", alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if shown.training or shown.held_out:
        axes.legend(frameon=False)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(
            0.5,
            0.5,
            "no loss has been told yet",
            ha="center",
            color=_AXES,
            transform=axes.transAxes,
        )
    if len(shown.stages) > 1:
        for begin, name in shown.stages:
            axes.axvline(begin, color=_AXES, linewidth=0.8, linestyle=":")
            axes.text(
                begin,
                1.0,
                f" {clean(name, keep_newlines=False)[:40]}",
                color=_AXES,
                fontsize="small",
                va="bottom",
                transform=axes.get_xaxis_transform(),
                parse_math=False,  # a stage may be called "$x"
            )
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        # A stage's name may hold letters that the font has not: a box stands for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(drawn, format="png")
    return drawn.getvalue()
