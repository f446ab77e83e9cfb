"""What a run that makes an adapter tells while it goes on: its status, metrics, trackers, plot."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import torch

from mmchat.training.loop import StepFigures
from mmchat.training.pace import Pace, memory_of
from mmchat.training.plot import plot_losses
from mmchat.training.progress import RunFolder, SampleAnswer, Status
from mmchat.training.trackers import Trackers

TOLD_EVERY = 0.5
"""Seconds between two tellings of a status."""
LOGGED_STEPS = 400
"""So many of a run's steps become lines of the metrics, or a few more."""

Show = Callable[[Status, Sequence[dict[str, Any]]], None]


class Telling:
    """Of several processes the first one tells; the others only know where the run stands."""

    def __init__(self, folder: RunFolder, status: Status, show: Show, *, main: bool) -> None:
        """`status` is what the run tells of itself so far; `show` is given every new one, and all
        lines of the metrics."""
        self.status = status
        self.trackers: Trackers | None = None
        self._folder = folder
        self._given_to = show
        self._main = main
        self._told = 0.0
        self._lines = folder.metrics()

    def preparing(self, words: str) -> None:
        """What is done before the first step."""
        self.status = msgspec.structs.replace(self.status, state="preparing", said=words)
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._show()

    def step(
        self,
        place: dict[str, Any],
        figures: StepFigures,
        rate: float,
        pace: Pace,
        device: torch.device,
        *,
        last: bool,
    ) -> None:
        """A step was done. `place` is its `stage`, `step` and `of`; `last`: of its stage."""
        if not self._main:
            return
        told = {
            "loss": figures.loss,
            "learning_rate": rate,
            "tokens_per_second": pace.tokens_per_second,
            "samples_per_second": pace.samples_per_second,
            "waiting": pace.waiting,
        }
        if last or place["step"] % max(1, place["of"] // LOGGED_STEPS) == 0:
            self._log({**place, **told, "norm": figures.norm})
        self.status = msgspec.structs.replace(
            self.status,
            state="training",
            said="",
            stage=place["stage"],
            step=place["step"],
            steps=place["of"],
            memory_bytes=memory_of(device),
            seconds_left=pace.seconds_left,
            **told,
        )
        if last or time.monotonic() - self._told >= TOLD_EVERY:
            self._show()

    def held_out(
        self, place: dict[str, Any], loss: float, right: float, samples: tuple[SampleAnswer, ...]
    ) -> None:
        """The held-out samples were looked at: their loss, the share answered right, a few answers."""
        self.status = msgspec.structs.replace(self.status, held_out_loss=loss, samples=samples)
        self._log({**place, "held_out_loss": loss, "held_out_right": right})
        self._show()
        plot_losses(self._folder.metrics(), self._folder.folder / "loss.png")

    def _log(self, figures: dict[str, Any]) -> None:
        self._folder.log(**figures)
        self._lines.append(figures)
        if self.trackers is not None:
            self.trackers.log(figures["step"], figures)

    def _show(self) -> None:
        if self._main:
            self._told = time.monotonic()
            self._folder.tell(self.status)
            self._given_to(self.status, self._lines)
