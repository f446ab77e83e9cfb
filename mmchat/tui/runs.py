"""Training runs in the app: planned, started, found again, watched. No widgets here.

A run is a process of its own (`mmchat train`) that outlives the app, and reports in the files of
its `RunFolder`. Call what reads or writes files in a thread.
"""

import asyncio
import atexit
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from mmchat.adapters.card import is_name, list_adapters, name_from_text
from mmchat.display.text import one_line
from mmchat.errors import RecipeError
from mmchat.settings import private_dir
from mmchat.training.curves import Curves, MetricsTail, curves
from mmchat.training.run_folder import RunFolder, Status, list_runs, run_folder
from mmchat.training.status_format import WORKING, percent

# -P: Python must not look for modules in the current folder.
MMCHAT = (sys.executable, "-P", "-m", "mmchat")
LOG, VIEWED = "log", "seen"
STARTING = "Starting…"
INTERRUPTED = 130
"""The exit status of `mmchat train` after a pause."""
NOTHING = Curves()


class TrainingPlan(msgspec.Struct, frozen=True):
    """What `mmchat train --dry-run --json` prints: the training data, and the cost of the run."""

    form: str = ""
    examples: int | None = None
    pictures: int | None = None
    corrected: int | None = None
    good: int | None = None
    problems: Any = None
    """Their number, or one entry for each."""
    held_out: float | None = None
    steps: int | None = None
    trainable_parameters: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    replay: float | None = None
    """The share of replay samples."""

    @property
    def left_out(self) -> int:
        """How many samples cannot be used."""
        if isinstance(self.problems, (list, dict)):
            return len(self.problems)
        return self.problems if isinstance(self.problems, int) else 0


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run at one moment."""

    files: RunFolder
    status: Status
    curves: Curves = NOTHING
    resumable: bool = False

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.files.folder.name

    @property
    def active(self) -> bool:
        return self.status.state in WORKING


class Runs:
    """The runs of this person, including those that this app has started."""

    def __init__(self) -> None:
        self._children: dict[str, tuple[subprocess.Popen[bytes], float, str]] = {}
        """By name: the process, the time when it was started, the model."""
        self.used: tuple[str, tuple[str, str]] | None = None
        """The adapter that was selected after its training, and the model and adapter before it."""
        atexit.register(self._release)

    def _release(self) -> None:
        """Training goes on after the app by design; Popen would warn about it."""
        for child, _, _ in self._children.values():
            if child.poll() is None:
                child.returncode = 0

    # Reading

    def all(self) -> list[RunSnapshot]:
        """Every run that has reported or was started just now: active ones first, then the newest."""
        reported = [self.snapshot(run) for run in list_runs()]
        names = {one.name for one in reported if one is not None}
        new = [
            self.snapshot(run_folder(name)) for name in list(self._children) if name not in names
        ]
        found = [one for one in (*reported, *new) if one is not None]
        return sorted(found, key=lambda one: (one.active, one.status.updated), reverse=True)

    def first(self) -> RunSnapshot | None:
        """The run to show: an active one, else the newest that ended and was not viewed, or is paused."""
        found = self.all()
        unviewed = [one for one in found if one.active or not is_viewed(one)]
        if unviewed:
            return unviewed[0]
        current = self.used[0] if self.used else ""
        for one in found:
            if one.status.state == "paused" or (current and one.status.adapter == current):
                return one
        return None

    def snapshot(self, run: RunFolder) -> RunSnapshot | None:
        """The run as it is now; None if it does not exist."""
        name = run.folder.name
        child, started, model = self._children.get(name, (None, 0.0, ""))
        resumable = run.can_resume()
        code = child.poll() if child is not None else None  # before its last report is read
        status = run.status()
        if child is None:
            return RunSnapshot(run, status, resumable=resumable) if status is not None else None
        if status is not None and status.updated >= started:
            crashed = code is not None and code > 0 and code != INTERRUPTED
            if crashed and status.state == "paused":
                # Not paused: it crashed, and could not report it.
                message = _last_line(run) or f"It ended unexpectedly (exit status {code})."
                status = msgspec.structs.replace(status, state="failed", message=message)
            elif code is not None:
                self._children.pop(name, None)
            return RunSnapshot(run, status, resumable=resumable)
        # It has not reported since it was started: the files are those of an earlier process.
        now = Status(name=name, model=model, state="preparing", message=STARTING, updated=started)
        if code is not None:
            message = _last_line(run) or f"It ended at once (exit status {code})."
            now = msgspec.structs.replace(now, state="failed", message=message)
        return RunSnapshot(run, now, resumable=resumable)

    # Acting

    def start(self, name: str, source: Sequence[str], model: str) -> RunFolder:
        """Starts a run that trains the adapter `name` for `model`.

        Raises RecipeError if the name cannot be used or the process cannot be started.
        """
        problem = name_problem(name)
        if problem:
            raise RecipeError(problem)
        return self._spawn(name, ["train", *source, "--model", model, "--name", name], model)

    def resume(self, run: RunSnapshot) -> RunFolder:
        """Resumes a paused or failed run from its last checkpoint. Raises RecipeError."""
        name = run.name
        reported = list(run.status.command)
        command = reported if reported[:1] == ["train"] else ["train", "--resume", "--name", name]
        return self._spawn(name, command, run.status.model)

    def _spawn(self, name: str, arguments: Sequence[str], model: str) -> RunFolder:
        busy = next((one for one in self.all() if one.active), None)
        if busy is not None:
            raise RecipeError(
                f"{one_line(busy.status.name, 100)} is being trained: two at once would take each "
                "other's time and memory. Wait for it, or pause it first."
            )
        run = run_folder(name)
        private_dir(run.folder)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            with os.fdopen(os.open(run.folder / LOG, flags, 0o600), "ab") as log:
                started = time.time()
                child = subprocess.Popen(
                    [*MMCHAT, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            raise RecipeError(
                f"Training cannot be started ({error.strerror}): look at the folder {run.folder} and "
                "at the free memory."
            ) from error
        before = self._children.get(name)
        if before is not None and before[0].poll() is None:
            before[0].returncode = 0  # it is ending, and is no longer watched
        self._children[name] = (child, started, model)
        return run


class RunWatcher:
    """Reads one run again and again, and only what is new in its metrics."""

    def __init__(self, runs: Runs, run: RunFolder) -> None:
        self.run = run
        self._runs = runs
        self._tail = MetricsTail(run.metrics_file)
        self._curves = Curves()

    def read(self) -> RunSnapshot | None:
        """The run with its curves; None if it does not exist any more."""
        snapshot = self._runs.snapshot(self.run)
        if self._tail.read():
            self._curves = curves(self._tail.lines)
        return replace(snapshot, curves=self._curves) if snapshot is not None else None


def is_viewed(run: RunSnapshot) -> bool:
    """Whether the person has looked at a run since its last report."""
    try:
        return float((run.files.folder / VIEWED).read_text()) >= run.status.updated
    except (OSError, ValueError):
        return False


def mark_viewed(run: RunSnapshot) -> None:
    with contextlib.suppress(OSError):
        (run.files.folder / VIEWED).write_text(repr(run.status.updated))


def notice(run: RunSnapshot | None) -> str:
    """A few words about a run for the chat's status line; empty if there is nothing to say."""
    if run is None or (not run.active and is_viewed(run)):
        return ""
    name = one_line(run.status.name, 16)
    return {
        "preparing": f"preparing {name}",
        "training": f"training {name} {percent(run.status)}",
        "measuring": f"measuring {name}",
        "paused": f"{name} is paused: /train",
        "finished": f"{name} is trained: /train",
        "failed": f"{name} failed: /train",
    }[run.status.state]


def name_problem(name: str) -> str:
    """Why an adapter cannot be trained under this name; empty if it can. Reads files."""
    if not name:
        return "Give the adapter a name."
    if not is_name(name):
        return (
            "A name has letters, digits, . _ and -, and starts with a letter or a digit. "
            "“none” is reserved."
        )
    if name in {adapter.name for adapter in list_adapters()}:
        return f"There is an adapter {name} already: choose another name."
    if run_folder(name).is_unfinished():
        return f"There is a run {name} already: resume it (Ctrl+L), or choose another name."
    return ""


def free_name(wanted: str) -> str:
    """A free name like `wanted`: `birds`, `birds-2` … Reads files."""
    plain = name_from_text(wanted, default="mine")
    return next(
        name
        for number in range(1, 1_000_000)
        if not name_problem(name := plain if number == 1 else f"{plain}-{number}")
    )


def source_arguments(folder: Path | None) -> list[str]:
    """The arguments of `mmchat train` for training data; None is the person's own history."""
    return ["--from-history"] if folder is None else [str(folder.absolute())]


async def plan_training(
    source: Sequence[str], model: str, on_line: Callable[[str], None] = lambda line: None
) -> TrainingPlan | str:
    """What a run would cost, from a dry run in another process; or why it is not possible.

    on_line: called with each line of the process's progress.
    """
    process = await asyncio.create_subprocess_exec(
        *MMCHAT,
        *("train", *source, "--model", model, "--dry-run", "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        out, err = await asyncio.gather(process.stdout.read(), _read_lines(process.stderr, on_line))
        await process.wait()
    finally:
        if process.returncode is None:  # cancelled: the plan is not needed any more
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        with contextlib.suppress(ValueError):
            return msgspec.json.decode(out.strip().split(b"\n")[-1], type=TrainingPlan)
    error = next((line for line in reversed(err) if line.startswith("mmchat: ")), "")
    if error:
        return one_line(error.removeprefix("mmchat: "), 600)
    last = err[-1] if err else "it printed no reason"
    return f"The training could not be planned ({one_line(last, 400)})."


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> list[str]:
    """All lines of a stream; `on_line` is called with each as it comes."""
    text = ""
    count = 0
    while chunk := await stream.read(65_536):
        text += chunk.decode(errors="replace")
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole[count:]:
            on_line(one_line(line, 200))
        count = len(whole)
    return text.strip().splitlines()


def _last_line(run: RunFolder) -> str:
    """The last line of a run's log, with the log's name unless it is one of mmchat's sentences."""
    file = run.folder / LOG
    lines: list[str] = []
    with contextlib.suppress(OSError), file.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - 65_536))
        lines = log.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if last.startswith("mmchat: ") or not last:
        return one_line(last.removeprefix("mmchat: "), 600)
    return f"{one_line(last, 300)} (its log: {file})"
