"""Training runs as the app has them: planned, started, found again, watched. No widgets here.

A run is a process of its own (`mmchat train`) that outlives the app; what it tells lies in the
files of its `RunFolder`. All that reads or writes files here is to be called in a thread.
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

# -P: the folder that we are in must not be where Python looks for modules.
MMCHAT = (sys.executable, "-P", "-m", "mmchat")
LOG, SEEN = "log", "seen"
STARTING = "Starting…"
INTERRUPTED = 130
"""The exit status of `mmchat train` after a pause."""
NOTHING = Curves()


class Plan(msgspec.Struct, frozen=True):
    """What `mmchat train --dry-run --json` says: what would be learned from, and what it would take."""

    form: str = ""
    examples: int | None = None
    pictures: int | None = None
    corrected: int | None = None
    good: int | None = None
    problems: Any = None
    """Their number, or one entry each."""
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
class Seen:
    """A run at one moment."""

    run: RunFolder
    status: Status
    curves: Curves = NOTHING
    can_resume: bool = False
    """Whether it can be resumed."""

    @property
    def works(self) -> bool:
        return self.status.state in WORKING


class Runs:
    """The runs of this person, those that this app has started among them."""

    def __init__(self) -> None:
        self._children: dict[str, tuple[subprocess.Popen[bytes], float, str]] = {}
        """By name: the process, when it was started, the model."""
        self.used: tuple[str, tuple[str, str]] | None = None
        """The adapter that was put on from here, and the model and adapter before it."""
        atexit.register(self._let_go)

    def _let_go(self) -> None:
        """Training outlives us by design; Popen would warn about it."""
        for child, _, _ in self._children.values():
            if child.poll() is None:
                child.returncode = 0

    # Looking

    def all(self) -> list[Seen]:
        """Every run that tells of itself or was started just now, the newest first."""
        told = [self.look(run) for run in list_runs()]
        names = {seen.run.folder.name for seen in told if seen is not None}
        new = [self.look(run_folder(name)) for name in list(self._children) if name not in names]
        found = [seen for seen in (*told, *new) if seen is not None]
        return sorted(found, key=lambda seen: (seen.works, seen.status.updated), reverse=True)

    def first(self) -> Seen | None:
        """What there is to see: what runs, else the newest that ended unseen or is paused."""
        found = self.all()
        open_ = [one for one in found if one.works or not is_seen(one)]
        if open_:
            return open_[0]
        current = self.used[0] if self.used else ""
        for one in found:
            if one.status.state == "paused" or (current and one.status.adapter == current):
                return one
        return None

    def look(self, run: RunFolder) -> Seen | None:
        """The run as it is now; None where there is nothing (any more)."""
        name = run.folder.name
        child, started, model = self._children.get(name, (None, 0.0, ""))
        can_resume = run.can_resume()
        code = child.poll() if child is not None else None  # before it is read what it told last
        status = run.status()
        if child is None:
            return Seen(run, status, can_resume=can_resume) if status is not None else None
        if status is not None and status.updated >= started:
            broken = code is not None and code > 0 and code != INTERRUPTED
            if broken and status.state == "paused":
                # Not paused: it broke down, and could not tell.
                said = _last_words(run) or f"It ended unexpectedly (exit status {code})."
                status = msgspec.structs.replace(status, state="failed", message=said)
            elif code is not None:
                self._children.pop(name, None)
            return Seen(run, status, can_resume=can_resume)
        # It has told nothing since it was started, and what is there is of an earlier one.
        now = Status(name=name, model=model, state="preparing", message=STARTING, updated=started)
        if code is not None:
            said = _last_words(run) or f"It ended at once (exit status {code})."
            now = msgspec.structs.replace(now, state="failed", message=said)
        return Seen(run, now, can_resume=can_resume)

    # Acting

    def start(self, name: str, source: Sequence[str], model: str) -> RunFolder:
        """Starts a run that makes the adapter `name` for `model`.

        Raises RecipeError where the name cannot be used or no process can be started.
        """
        problem = name_problem(name)
        if problem:
            raise RecipeError(problem)
        return self._spawn(name, ["train", *source, "--model", model, "--name", name], model)

    def resume(self, seen: Seen) -> RunFolder:
        """Has a paused or failed run go on from its last checkpoint. Raises RecipeError."""
        name = seen.run.folder.name
        told = list(seen.status.command)
        command = told if told[:1] == ["train"] else ["train", "--resume", "--name", name]
        return self._spawn(name, command, seen.status.model)

    def _spawn(self, name: str, arguments: Sequence[str], model: str) -> RunFolder:
        busy = next((one for one in self.all() if one.works), None)
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
            before[0].returncode = 0  # it is ending, and outlives what we know of it
        self._children[name] = (child, started, model)
        return run


class Watch:
    """Looks at one run again and again, and reads of its metrics only what is new."""

    def __init__(self, runs: Runs, run: RunFolder) -> None:
        self.run = run
        self._runs = runs
        self._tail = MetricsTail(run.metrics_file)
        self._curves = Curves()

    def read(self) -> Seen | None:
        """The run with its curves; None where it is gone."""
        seen = self._runs.look(self.run)
        if self._tail.read():
            self._curves = curves(self._tail.lines)
        return replace(seen, curves=self._curves) if seen is not None else None


def is_seen(seen: Seen) -> bool:
    """Whether the person has looked at it since it last told something."""
    try:
        return float((seen.run.folder / SEEN).read_text()) >= seen.status.updated
    except (OSError, ValueError):
        return False


def mark_seen(seen: Seen) -> None:
    with contextlib.suppress(OSError):
        (seen.run.folder / SEEN).write_text(repr(seen.status.updated))


def notice(seen: Seen | None) -> str:
    """The few words in the chat's last line; empty where there is nothing to say."""
    if seen is None or (not seen.works and is_seen(seen)):
        return ""
    name = one_line(seen.status.name, 16)
    return {
        "preparing": f"preparing {name}",
        "training": f"training {name} {percent(seen.status)}",
        "measuring": f"measuring {name}",
        "paused": f"{name} is paused: /train",
        "finished": f"{name} is trained: /train",
        "failed": f"{name} failed: /train",
    }[seen.status.state]


def name_problem(name: str) -> str:
    """Why an adapter to be trained cannot have this name; empty where it can. Reads files."""
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
    """A name like `wanted` that can be used: `birds`, `birds-2` … Reads files."""
    plain = name_from_text(wanted, default="mine")
    return next(
        name
        for number in range(1, 1_000_000)
        if not name_problem(name := plain if number == 1 else f"{plain}-{number}")
    )


def source_arguments(folder: Path | None) -> list[str]:
    """What `mmchat train` is called with to learn from `folder`; None is one's own history."""
    return ["--from-history"] if folder is None else [str(folder.absolute())]


async def ask_plan(
    source: Sequence[str], model: str, tell: Callable[[str], None] = lambda line: None
) -> Plan | str:
    """What training would take, from a dry run in a process of its own; or why it cannot be done.

    `tell` gets what the process says meanwhile.
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
        out, err = await asyncio.gather(process.stdout.read(), _said(process.stderr, tell))
        await process.wait()
    finally:
        if process.returncode is None:  # nobody wants to know any more
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        with contextlib.suppress(ValueError):
            return msgspec.json.decode(out.strip().split(b"\n")[-1], type=Plan)
    said = next((line for line in reversed(err) if line.startswith("mmchat: ")), "")
    last = said.removeprefix("mmchat: ") or (err[-1] if err else "it said nothing")
    return (
        one_line(last, 600)
        if said
        else f"The training could not be planned ({one_line(last, 400)})."
    )


async def _said(stream: asyncio.StreamReader, tell: Callable[[str], None]) -> list[str]:
    """All lines of a stream; each is told as it comes."""
    text = ""
    told = 0
    while chunk := await stream.read(65_536):
        text += chunk.decode(errors="replace")
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole[told:]:
            tell(one_line(line, 200))
        told = len(whole)
    return text.strip().splitlines()


def _last_words(run: RunFolder) -> str:
    """The last line of a run's log, with its name where it is no sentence of mmchat's."""
    file = run.folder / LOG
    lines: list[str] = []
    with contextlib.suppress(OSError), file.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - 65_536))
        lines = log.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if last.startswith("mmchat: ") or not last:
        return one_line(last.removeprefix("mmchat: "), 600)
    return f"{one_line(last, 300)} (its log: {file})"
