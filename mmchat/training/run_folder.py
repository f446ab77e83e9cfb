"""The folder of a training run: what it publishes, and how other processes control it. Free of torch.

    RUN/status.json      a `Status`, replaced whole at every change
    RUN/recipe.toml      what is trained and how; written before the first step
    RUN/metrics.jsonl    one line for each logged step: stage, step, of, and its figures
    RUN/checkpoints/     what `--resume` continues from
    RUN/lock             held while a process works on the run

Training is a process of its own. The terminal and the app read these files, so they find a run again
after a restart. Two signals control it: SIGINT or SIGTERM saves a checkpoint and ends the process,
so that it can be resumed; SIGUSR1 ends the training early and keeps the result.
"""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from safetensors import SafetensorError

from mmchat.errors import RecipeError
from mmchat.files import FileLock, is_locked, write_file
from mmchat.settings import paths

State = Literal["preparing", "training", "measuring", "paused", "finished", "failed"]
PAUSE, KEEP = signal.SIGTERM, signal.SIGUSR1
RECIPE = "recipe.toml"
_FULL_DISK_BYTES = 1_000_000
"""A disk with less free space is full."""


class SampleAnswer(msgspec.Struct, frozen=True):
    """One held-out question, and the model's answer now."""

    question: str
    wanted: str
    given: str


class Measurement(msgspec.Struct, frozen=True):
    """The shares of right answers before and after, from 0 to 1: one line of the table."""

    name: str
    """ "held-out answers", "base model skills" …"""
    n: int
    before: float
    before_interval: tuple[float, float]
    after: float
    after_interval: tuple[float, float]


class Status(msgspec.Struct, frozen=True):
    """The state of a run."""

    name: str
    model: str
    state: State
    stage: str = ""
    step: int = 0
    steps: int = 0
    """Of all stages together, as `step` is."""
    loss: float | None = None
    held_out_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    samples_per_second: float | None = None
    memory_bytes: int = 0
    waiting: float = 0.0
    """The share of time in which the model waited for data, from 0 to 1."""
    seconds_left: float | None = None
    samples: tuple[SampleAnswer, ...] = ()
    rows: tuple[Measurement, ...] = ()
    """Measured before and after; empty until the run has finished."""
    message: str = ""
    """One sentence: what is being done, why it failed, or how to resume."""
    adapter: str = ""
    """The finished adapter's name."""
    command: tuple[str, ...] = ()
    """The arguments of `mmchat` that resume the run."""
    pid: int = 0
    updated: float = 0.0


class RunFolder:
    """The folder of one run. Reading never fails: a run that has written nothing yet has no status."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def status(self) -> Status | None:
        """The last status; "paused" if it says that a process works on the run and none does."""
        try:
            status = msgspec.json.decode((self.folder / "status.json").read_bytes(), type=Status)
        except (OSError, ValueError):
            return None
        working = status.state in ("preparing", "training", "measuring")
        if working and not self.is_running():
            kept = self.checkpoint_step()
            last = (
                f"its newest checkpoint is at step {kept:,}" if kept else "it had no checkpoint yet"
            )
            message = f"It was killed; {last}."
            return msgspec.structs.replace(status, state="paused", message=message)
        return status

    def write_status(self, status: Status) -> None:
        """Replaces the status. Raises RecipeError if it cannot be written."""
        status = msgspec.structs.replace(status, pid=os.getpid(), updated=time.time())
        file = self.folder / "status.json"
        with writing(file):  # not synced: it is written again in half a second
            write_file(file, msgspec.json.encode(status), private=False)

    def log(self, **figures: Any) -> None:
        """Adds a line to the metrics. Raises RecipeError if it cannot be written."""
        with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line of the metrics, in order; after a resume the last line of a step counts."""
        try:
            lines = self.metrics_file.read_bytes().split(b"\n")[:-1]
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(msgspec.json.decode(line, type=dict[str, Any]))
        return found

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Held by the process that works on the run. Raises RecipeError if another one works on it."""
        lock = FileLock(self.folder / "lock")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            acquired = lock.acquire()
        if not acquired:
            raise RecipeError(
                f"Another process works on {self.folder}: wait for it, or give this run "
                "another --name."
            )
        try:
            yield
        finally:
            lock.release()

    def is_running(self) -> bool:
        """Whether a process works on the run."""
        try:
            return is_locked(self.folder / "lock")
        except OSError:
            return False

    def is_unfinished(self) -> bool:
        """Whether a process works on the run, or it has a checkpoint and is not finished."""
        status = self.status()
        if status is None:  # or unreadable, so it does not say that the run is finished
            return self.checkpoint_step() > 0
        return status.state != "finished" and (self.is_running() or self.checkpoint_step() > 0)

    def checkpoint_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        found = (self.folder / "checkpoints").glob("step-*")
        steps = [folder.name.removeprefix("step-") for folder in found]
        return max((int(step) for step in steps if step.isdecimal()), default=0)

    def can_resume(self) -> bool:
        """Whether there is a recipe to resume with."""
        return (self.folder / RECIPE).is_file()

    def signal(self, number: signal.Signals) -> bool:
        """Sends PAUSE or KEEP to the process that works on the run; False if none does."""
        status = self.status()
        if status is None or not status.pid or not self.is_running():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(status.pid, number)
            return True
        return False


def run_folder(name: str) -> RunFolder:
    """The folder of the run that makes the adapter `name`."""
    return RunFolder(paths().data / "runs" / name)


def list_runs() -> list[RunFolder]:
    """Every run of this person that has a status, the newest first."""
    with contextlib.suppress(OSError):
        found = [RunFolder(f) for f in (paths().data / "runs").iterdir()]
        runs = [(status.updated, run) for run in found if (status := run.status()) is not None]
        return [run for _, run in sorted(runs, key=lambda pair: pair[0], reverse=True)]
    return []


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Raises RecipeError if `what` cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk can be either
        why = getattr(error, "strerror", None) or _why(what, error)
        raise RecipeError(
            f"{what} cannot be written ({why}): free some space or correct its permissions, and continue "
            "with --resume, or choose another folder."
        ) from error


def _why(what: Path, error: Exception) -> str:
    """numpy and safetensors report a full disk as a number of bytes, so the disk is asked."""
    with contextlib.suppress(OSError):
        folder = next(parent for parent in what.absolute().parents if parent.is_dir())
        if shutil.disk_usage(folder).free < _FULL_DISK_BYTES:
            return "No space left on device"
    return str(error)
