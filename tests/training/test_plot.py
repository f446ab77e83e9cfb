"""The curves out of a metrics file, and the picture of them."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmchat.errors import RecipeError
from mmchat.training.curves import Curves, MetricsTail, curves, smoothed, thinned
from mmchat.training.plot import plot_losses
from mmchat.training.run_folder import RunFolder

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["stage", "step", "of", "loss", "held_out_loss"])


def _line(step: float, stage: str = "lora", of: int = 9, **figures: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "of": of, **figures}


def test_losses_by_step() -> None:
    found = curves([_line(1, loss=3.0), _line(2, loss=2.0), _line(2, held_out_loss=2.5)])
    assert found == Curves(((1, 3.0), (2, 2.0)), ((2, 2.5),), ((0, "lora"),))


def test_after_a_resume_the_later_line_counts() -> None:
    before = [_line(n, loss=float(n)) for n in range(1, 7)] + [_line(6, held_out_loss=6.0)]
    again = [_line(n, loss=10.0 + n) for n in (4, 5)]
    assert curves(before + again).training == ((1, 1), (2, 2), (3, 3), (4, 14), (5, 15))
    assert curves(before + again).held_out == ()
    # A step that is told twice in a row is the same step.
    assert curves([*before, _line(6, loss=16.0)]).training[-1] == (6, 16)
    assert curves([*before, _line(6, loss=16.0)]).held_out == ((6, 6.0),)


@pytest.mark.parametrize("offset", [0, 4], ids=["each stage from 1", "all stages together"])
def test_steps_go_on_over_the_stages(offset: int) -> None:
    first = [_line(n, "projector", 4, loss=1.0) for n in range(1, 5)]
    second = [_line(n + offset, "lora", 3, loss=2.0) for n in range(1, 4)]
    found = curves(first + second)
    assert [step for step, _ in found.training] == [1, 2, 3, 4, 5, 6, 7]
    assert found.stages == ((0, "projector"), (4, "lora"))
    back = curves([*first, *second, _line(3, "projector", 4, loss=5.0)])
    assert back.training == ((1, 1), (2, 1), (3, 5))
    assert back.stages == ((0, "projector"),)


def test_what_is_no_number_is_not_drawn() -> None:
    strange = [math.nan, math.inf, 10**400, 1e40, True, "2", None, [1]]
    assert curves(_line(n, loss=value) for n, value in enumerate(strange)) == Curves(
        stages=((0, "lora"),)
    )
    assert curves([{}, {"step": "x", "loss": 1.0}, {"loss": 1.0}]) == Curves()


@given(st.lists(st.dictionaries(NAMES, ANYTHING), max_size=8))
def test_whatever_stands_in_the_file(metrics: list[dict[str, Any]]) -> None:
    found = curves(metrics)
    for points in (found.training, found.held_out):
        assert all(math.isfinite(step) and math.isfinite(loss) for step, loss in points)
        assert list(points) == sorted(points, key=lambda point: point[0])
    assert isinstance(found.logarithmic, bool)


@given(
    st.floats(-5, 5),
    st.floats(-50, 50),
    st.integers(1, 300),
)
def test_a_straight_curve_is_smooth_already(slope: float, start: float, count: int) -> None:
    line = [(float(n), start + slope * n) for n in range(count)]
    for (step, loss), (same, smooth) in zip(line, smoothed(line), strict=True):
        assert step == same
        assert smooth == pytest.approx(loss, abs=1e-6)


def test_smoothing_takes_the_noise_away() -> None:
    noisy = [(float(n), 2.0 + (-1) ** n) for n in range(400)]
    assert all(abs(loss - 2) < 0.15 for _, loss in smoothed(noisy)[20:-20])
    assert all(1 < loss < 3 for _, loss in smoothed(noisy, logarithmic=True))


@given(st.integers(0, 500), st.integers(1, 100))
def test_thinning_keeps_the_last(count: int, most: int) -> None:
    points = [(float(n), 0.0) for n in range(count)]
    thin = thinned(points, most)
    assert len(thin) <= most
    assert thin[-1:] == points[-1:]
    assert thin == sorted(thin)


def _pixels(file: Path) -> Image.Image:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def _has(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    counted = image.getcolors(1 << 24)
    assert counted is not None
    return any(
        all(abs(a - b) < 12 for a, b in zip(found, colour, strict=True))
        for _, found in counted
        if isinstance(found, tuple)
    )


def test_the_picture_has_both_curves(tmp_path: Path) -> None:
    metrics = [_line(n, of=80, loss=3 * math.exp(-n / 20) + n % 3 / 10) for n in range(1, 81)]
    file = tmp_path / "loss.png"
    plot_losses(metrics, file)
    training = _pixels(file)
    assert training.size == (960, 540)
    assert _has(training, (0x0B, 0x6B, 0xBF)) and _has(training, (0x9F, 0xC5, 0xE8))
    assert not _has(training, (0xD9, 0x54, 0x1E))
    plot_losses([*metrics, _line(80, of=80, held_out_loss=0.4)], file)
    assert _has(_pixels(file), (0xD9, 0x54, 0x1E))
    assert [one.name for one in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [_line(1, loss=2.0)],
        [_line(1, held_out_loss=2.0)],
        [_line(n, loss=10.0 ** (3 - n)) for n in range(1, 9)],
        [_line(n, loss=1e30) for n in range(1, 60)],
        [_line(1, "$x^{", loss=1.0), _line(2, "漢\x1b[31m", loss=1.0)],
        [_line(1, loss=math.nan)],
    ],
    ids=["nothing", "one", "one held out", "logarithmic", "huge", "names", "not a number"],
)
def test_every_run_can_be_drawn(metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    plot_losses(metrics, tmp_path / "loss.png")
    assert _pixels(tmp_path / "loss.png").size == (960, 540)


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"loss\.png cannot be written .*: free some space"):
        plot_losses([], tmp_path / "nowhere" / "loss.png")


def test_drawing_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mmchat.training.plot import plot_losses; "
        "plot_losses([], Path(sys.argv[1])); print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "loss.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


def test_the_tail_reads_what_was_added(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    tail = MetricsTail(run.metrics_file)
    assert not tail.read()
    run.log(step=1, loss=2.0)
    assert tail.read()
    assert not tail.read()
    with run.metrics_file.open("ab") as file:
        file.write(b'{"step": 2, "lo')
        file.flush()
        assert not tail.read()
        file.write(b's": 1.5}\nno json\n[1]\n\xff\n{"step": 3}\n')
    assert tail.read()
    assert tail.lines == [{"step": 1, "loss": 2.0}, {"step": 2, "los": 1.5}, {"step": 3}]


def test_the_tail_follows_a_file_that_is_replaced_or_gone(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = MetricsTail(file)
    file.write_text('{"step": 1}\n{"step": 2}\n')
    assert tail.read()
    file.write_text('{"step": 9}\n')
    assert tail.read()
    assert tail.lines == [{"step": 9}]
    other = tmp_path / "other"
    other.write_text("".join(json.dumps({"step": n}) + "\n" for n in range(9)))
    other.replace(file)
    assert tail.read()
    assert len(tail.lines) == 9
    file.unlink()
    assert tail.read()
    assert tail.lines == []
    assert not tail.read()
