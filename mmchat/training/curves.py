"""The losses in `metrics.jsonl` as curves. Free of torch and of drawing libraries."""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

Point = tuple[float, float]
"""(step, loss)."""
LOGARITHMIC_RATIO = 20.0
"""Losses whose largest and smallest differ by this factor get a logarithmic axis."""
MAX_POINTS = 2_000
MAX_LOSS = 1e30
"""Larger losses, and what is not a number, are not drawn."""


@dataclass(frozen=True, slots=True)
class Curves:
    """The losses of a run; its steps are counted over all stages."""

    training: tuple[Point, ...] = ()
    held_out: tuple[Point, ...] = ()
    stages: tuple[tuple[float, str], ...] = ()
    """Where each stage begins, and its name."""

    @property
    def logarithmic(self) -> bool:
        """Whether the losses need a logarithmic axis to be readable."""
        losses = [loss for _, loss in (*self.training, *self.held_out)]
        low, high = min(losses, default=0.0), max(losses, default=0.0)
        return low > 0 and high / low > LOGARITHMIC_RATIO


def curves(metrics: Iterable[Mapping[str, Any]]) -> Curves:
    """The losses (`loss`, `held_out_loss`) by step.

    A run that was resumed does some steps again: a line with a smaller step than the line before
    replaces everything from that step on. `step` may count over all stages or start again in each.
    Other lines are ignored.
    """
    training: list[Point] = []
    held_out: list[Point] = []
    begins: dict[str, float] = {}
    offsets: dict[str, float] = {}
    last = end = 0.0
    for line in metrics:
        step = _number(line.get("step"))
        if step is None:
            continue
        stage = str(line.get("stage", ""))
        if stage not in begins:
            offsets[stage] = 0.0 if step > last else end
            begins[stage] = last
        at = offsets[stage] + step
        if at < last:
            for points in (training, held_out):
                while points and points[-1][0] >= at:
                    points.pop()
            for later in [name for name, begin in begins.items() if begin >= at and name != stage]:
                del begins[later], offsets[later]
        last = at
        end = max(at, offsets[stage] + (_number(line.get("of")) or 0.0))
        for points, name in ((training, "loss"), (held_out, "held_out_loss")):
            loss = _number(line.get(name))
            if loss is not None:
                if points and points[-1][0] == at:
                    points.pop()
                points.append((at, loss))
    return Curves(
        tuple(training), tuple(held_out), tuple((begin, name) for name, begin in begins.items())
    )


def smoothed(points: Sequence[Point], logarithmic: bool = False) -> list[Point]:
    """The curve, smoothed: at each point, a straight line fitted to a twentieth of the points around it.

    Unlike a running mean it does not lag behind a falling loss, and is right at both ends.
    `logarithmic` fits the logarithms of the losses.
    """
    reach = len(points) // 40
    if reach < 1:
        return list(points)
    values = [math.log(loss) if logarithmic else loss for _, loss in points]
    sums = list(itertools.accumulate(values, initial=0.0))
    moments = list(itertools.accumulate((n * y for n, y in enumerate(values)), initial=0.0))
    smooth = []
    for place, (step, _) in enumerate(points):
        first, end = max(0, place - reach), min(len(points), place + reach + 1)
        count, middle = end - first, (first + end - 1) / 2
        total = sums[end] - sums[first]
        slope = (moments[end] - moments[first] - middle * total) / ((count**3 - count) / 12)
        fitted = total / count + slope * (place - middle)
        smooth.append((step, math.exp(fitted) if logarithmic else fitted))
    return smooth


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """About `most` of the points at even distances, including the last."""
    stride = math.ceil(len(points) / max(most, 1)) or 1
    return list(points[::-1][::stride])[::-1]


class MetricsTail:
    """Reads the lines that were added to a metrics file since the last read. Reading never fails."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self._identity: tuple[int, int] = (0, 0)
        self.lines: list[dict[str, Any]] = []
        """All complete lines so far, in order."""

    def read(self) -> bool:
        """Reads the complete lines that were added; returns whether `lines` changed.

        A file that was replaced or truncated is read again from its start; a removed file is empty.
        """
        try:
            with self._file.open("rb") as stream:
                stat = os.fstat(stream.fileno())
                if (stat.st_dev, stat.st_ino) != self._identity or stat.st_size < self._at:
                    self._identity, self._at = (stat.st_dev, stat.st_ino), 0
                    self.lines = []
                stream.seek(self._at)
                added = stream.read()
        except OSError:
            changed = bool(self.lines)
            self._at, self._identity, self.lines = 0, (0, 0), []
            return changed
        whole = added.rpartition(b"\n")[0]
        if not whole:
            return False
        self._at += len(whole) + 1
        self.lines = self.lines + list(_decoded(whole.split(b"\n")))
        return True


def _decoded(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    for line in lines:
        try:
            yield decoder.decode(line)
        except (ValueError, RecursionError):
            continue


def _number(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= MAX_LOSS else None
