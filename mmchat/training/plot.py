"""Draws the losses of a run: with characters for the terminal and the app, and as `loss.png`. Free of torch."""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmchat.files import write_file
from mmchat.sanitize import clean
from mmchat.training.curves import Curves, Point, curves, smoothed, thinned
from mmchat.training.run_folder import writing

WIDTH, HEIGHT, DPI = 8.0, 4.5, 120
"""Inches, inches, pixels an inch."""
HELD_OUT = "●"
TERMINAL_POINTS = 400
_RAW, _SMOOTH, _HELD_OUT, _AXES = "#9fc5e8", "#0b6bbf", "#d9541e", "#555555"


def draw_losses(
    plt: Any, losses: Curves, width: int, height: int, training_color: Any, held_out_color: Any
) -> None:
    """Draws `losses` on `plt`, a plotext figure or the module plotext, which has `width` by `height` cells.

    The training loss is a smoothed line, the held-out loss a line with dots. The axis is
    logarithmic if the losses have a wide range.
    """
    plt.clear_figure()
    plt.xaxes(True, False)
    plt.yaxes(True, False)

    def scaled(loss: float) -> float:
        # Plotext's own logarithmic axis labels exponents only.
        return math.log10(loss) if losses.logarithmic else loss

    training = thinned(smoothed(losses.training, losses.logarithmic), TERMINAL_POINTS)
    held_out = thinned(losses.held_out, TERMINAL_POINTS)
    for points, color in ((training, training_color), (held_out, held_out_color)):
        if points:
            steps, values = zip(*points, strict=True)
            plt.plot(steps, list(map(scaled, values)), color=color, marker="braille")
    if held_out:
        steps, values = zip(*held_out, strict=True)
        plt.scatter(steps, list(map(scaled, values)), color=held_out_color, marker=HELD_OUT)
    if training or held_out:
        _label(plt, [*training, *held_out], scaled, losses.logarithmic, width, height)


def _label(
    plt: Any,
    points: Sequence[Point],
    scaled: Callable[[float], float],
    logarithmic: bool,
    width: int,
    height: int,
) -> None:
    """A few labels, on whole steps and evenly on the axis of the losses."""
    steps = [step for step, _ in points]
    first, last = min(steps), max(steps)
    marks = max(2, min(6, width // 16))
    ticks = sorted({round(first + (last - first) * n / (marks - 1)) for n in range(marks)})
    plt.xticks(ticks, [f"{step:,}" for step in ticks[:-1]] + [f"step {ticks[-1]:,}"])
    losses = [scaled(loss) for _, loss in points]
    low, high = min(losses), max(losses)
    marks = 3 if height < 14 else 5
    places = [low + (high - low) * n / (marks - 1) for n in range(marks)] if high > low else [low]
    values = [10.0**place if logarithmic else place for place in places]
    plt.yticks(places, [_loss_label(value) for value in values])


def _loss_label(loss: float) -> str:
    return f"{loss:.2f}" if 0.1 <= abs(loss) < 1000.5 or not loss else f"{loss:.2g}"


def plot_losses(metrics: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Draws the lines of a metrics file into the PNG `file`, which is replaced whole.

    The training loss is drawn raw and smoothed, the held-out loss with points, and a line where each
    stage starts. If there is no loss yet, the picture says so. Raises RecipeError if `file` cannot be written.
    """
    data = _draw(metrics)
    with writing(file):
        write_file(file, data, private=False)


def _draw(metrics: Iterable[Mapping[str, Any]]) -> bytes:
    # Not pyplot: no global state, no window, nothing to close.
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
            "no loss has been logged yet",
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
        # A stage's name may have letters that are not in the font: they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(drawn, format="png")
    return drawn.getvalue()
