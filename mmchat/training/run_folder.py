"""What a training process tells of itself, and what it can be told, through files. Free of torch.

    RUN/status.json      a `Status`, replaced whole at every change
    RUN/recipe.toml      what is trained and how, from when the data and the model are read
    RUN/metrics.jsonl    one line a logged step: stage, step, of, and its figures
    RUN/checkpoints/     what `--resume` goes on from
    RUN/lock             held while a process works on the run

Training is a process of its own: whoever watches it (the terminal, the app) reads these files,
and so finds it again after having been closed. Two signals steer it: SIGINT or SIGTERM saves a
checkpoint and ends it, to go on later; SIGUSR1 ends the training early and keeps what it has
learned.
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
    """One held-out question, and what the model says to it now."""

    question: str
    wanted: str
    given: str


class Row(msgspec.Struct, frozen=True):
    """One line of the table of before and after, shares from 0 to 1."""

    what: str
    """ "held-out answers", "old skills" …"""
    n: int
    before: float
    before_interval: tuple[float, float]
    after: float
    after_interval: tuple[float, float]


class Status(msgspec.Struct, frozen=True):
    """Where a run stands."""

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
    rows: tuple[Row, ...] = ()
    """What was measured before and after, when the run has finished."""
    said: str = ""
    """One sentence: what is being done, why it failed, or how to go on."""
    adapter: str = ""
    """The finished adapter's name."""
    command: tuple[str, ...] = ()
    """What goes on with the run: the arguments of `mmchat`."""
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0


class RunFolder:
    """The folder of one run. Reading it never fails: a run that tells nothing yet has no status."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def status(self) -> Status | None:
        """The last status; "paused" where it says that somebody works and nobody does."""
        try:
            status = msgspec.json.decode((self.folder / "status.json").read_bytes(), type=Status)
        except (OSError, ValueError):
            return None
        working = status.state in ("preparing", "training", "measuring")
        if working and not self.is_running():
            said = "It was ended from outside; what its last checkpoint holds is whole."
            return msgspec.structs.replace(status, state="paused", said=said)
        return status

    def tell(self, status: Status) -> None:
        """Replaces the status."""
        status = msgspec.structs.replace(status, pid=os.getpid(), updated=time.time())
        file = self.folder / "status.json"
        with writing(file):  # not synced: it is written again in half a second
            write_file(file, msgspec.json.encode(status), private=False)

    def log(self, **figures: Any) -> None:
        """Adds a line to the metrics."""
        with writing(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of the metrics, in order; the last of a step counts after a resume."""
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

    def is_begun(self) -> bool:
        """Whether it is worked on, or has learned something that is not finished."""
        status = self.status()
        if status is None:  # or it cannot be read: then it does not say that it is finished
            return self.kept_steps() > 0
        return status.state != "finished" and (self.is_running() or self.kept_steps() > 0)

    def kept_steps(self) -> int:
        """The steps in the newest checkpoint; 0 where there is none."""
        found = (self.folder / "checkpoints").glob("step-*")
        steps = [folder.name.removeprefix("step-") for folder in found]
        return max((int(step) for step in steps if step.isdecimal()), default=0)

    def can_go_on(self) -> bool:
        """Whether `--resume` finds the recipe that it goes on with."""
        return (self.folder / RECIPE).is_file()

    def signal(self, number: signal.Signals) -> bool:
        """Sends PAUSE or KEEP to the process that works on the run; False where none does."""
        status = self.status()
        if status is None or not status.pid or not self.is_running():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(status.pid, number)
            return True
        return False


def run_folder(name: str) -> RunFolder:
    """Where the run that makes the adapter `name` has its files."""
    return RunFolder(paths().data / "runs" / name)


def list_runs() -> list[RunFolder]:
    """Every run of this person that tells of itself, the newest first."""
    with contextlib.suppress(OSError):
        found = [RunFolder(f) for f in (paths().data / "runs").iterdir()]
        told = [(status.updated, run) for run in found if (status := run.status()) is not None]
        return [run for _, run in sorted(told, key=lambda pair: pair[0], reverse=True)]
    return []


@contextlib.contextmanager
def writing(what: Path) -> Iterator[None]:
    """Raises RecipeError where `what` cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk is either, by who meets it
        why = getattr(error, "strerror", None) or _why(what, error)
        raise RecipeError(
            f"{what} cannot be written ({why}): make room or mend its permissions, and go on with "
            "--resume, or choose another folder."
        ) from error


def _why(what: Path, error: Exception) -> str:
    """numpy and safetensors tell of a full disk by numbers of bytes."""
    with contextlib.suppress(OSError):
        folder = next(parent for parent in what.absolute().parents if parent.is_dir())
        if shutil.disk_usage(folder).free < _FULL_DISK_BYTES:
            return "No space left on device"
    return str(error)
