"""Measures the speed of a run and publishes its progress: status, metrics, trackers and plot."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psutil
import torch

from mmchat.training.plot import plot_losses
from mmchat.training.run_folder import RunFolder, SampleAnswer, Status
from mmchat.training.trackers import Trackers
from mmchat.training.train_step import StepResult
from mmchat.training.validation import ValidationResult

STATUS_INTERVAL = 0.5
"""Seconds between two updates of the status."""
LOGGED_STEPS = 400
"""About this many steps of a run become lines of the metrics."""

Show = Callable[[Status, Sequence[dict[str, Any]]], None]


class Throughput:
    """The speed of a run over its last steps."""

    WINDOW = 20

    def __init__(self, steps_left: int) -> None:
        self._steps_left = steps_left
        self._last: deque[StepResult] = deque(maxlen=self.WINDOW)

    def add(self, result: StepResult) -> None:
        self._steps_left -= 1
        self._last.append(result)

    @property
    def _seconds(self) -> float:
        return max(sum(one.seconds + one.wait_seconds for one in self._last), 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self._last) / self._seconds

    @property
    def samples_per_second(self) -> float:
        return sum(one.samples for one in self._last) / self._seconds

    @property
    def waiting(self) -> float:
        """The share of the time that the model waited for data."""
        return sum(one.wait_seconds for one in self._last) / self._seconds

    @property
    def seconds_left(self) -> float:
        return self._steps_left * self._seconds / max(len(self._last), 1)


def process_memory(device: torch.device) -> int:
    """Bytes that the process uses: peak GPU memory on CUDA, else its resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class RunLogger:
    """Publishes the progress of a run; of several processes only the main one publishes."""

    def __init__(self, folder: RunFolder, status: Status, show: Show, *, main: bool) -> None:
        """`status` is the run's status so far; `show` gets every new one, with all lines of the metrics."""
        self.status = status
        self.trackers: Trackers | None = None
        self._folder = folder
        self._show = show
        self._main = main
        self._published = 0.0
        self._lines = folder.metrics()

    def preparing(self, message: str) -> None:
        """Publishes what is done before the first step."""
        self.status = msgspec.structs.replace(self.status, state="preparing", message=message)
        self._publish()

    def step(
        self,
        position: dict[str, Any],
        result: StepResult,
        learning_rate: float,
        throughput: Throughput,
        device: torch.device,
        *,
        last: bool,
    ) -> None:
        """Publishes a step. `position` is its `stage`, `step` and `of`; `last`: it is the last of its stage."""
        if not self._main:
            return
        figures = {
            "loss": result.loss,
            "learning_rate": learning_rate,
            "tokens_per_second": throughput.tokens_per_second,
            "samples_per_second": throughput.samples_per_second,
            "waiting": throughput.waiting,
        }
        if last or position["step"] % max(1, position["of"] // LOGGED_STEPS) == 0:
            self._log({**position, **figures, "norm": result.grad_norm})
        self.status = msgspec.structs.replace(
            self.status,
            state="training",
            message="",
            stage=position["stage"],
            step=position["step"],
            steps=position["of"],
            memory_bytes=process_memory(device),
            seconds_left=throughput.seconds_left,
            **figures,
        )
        self._publish(now=last)

    def validation(
        self, position: dict[str, Any], result: ValidationResult, samples: tuple[SampleAnswer, ...]
    ) -> None:
        """Publishes a validation on the held-out samples; `samples` are a few answers."""
        self.status = msgspec.structs.replace(
            self.status, held_out_loss=result.loss, samples=samples
        )
        figures = {"held_out_loss": result.loss, "held_out_right": result.accuracy}
        by_type = {"held_out_right_by_type": result.accuracy_by_type}
        self._log({**position, **figures, **(by_type if len(result.accuracy_by_type) > 1 else {})})
        self._publish(now=True)
        plot_losses(self._folder.metrics(), self._folder.folder / "loss.png")

    def _log(self, figures: dict[str, Any]) -> None:
        self._folder.log(**figures)
        self._lines.append(figures)
        if self.trackers is not None:
            self.trackers.log(figures["step"], figures)

    def _publish(self, *, now: bool = False) -> None:
        if not self._main or (not now and time.monotonic() - self._published < STATUS_INTERVAL):
            return
        self._published = time.monotonic()
        self._folder.write_status(self.status)
        with contextlib.suppress(OSError):  # a closed terminal does not end the training
            self._show(self.status, self._lines)
