"""Starts and ends the engine's process.

The process is detached: it has its own session, no terminal, and inherits no files. Whether an
engine runs is known by its lock, not by a process id.
"""

import asyncio
import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from typing import BinaryIO

from mmchat.client.endpoint import (
    engine_lives,
    log_file,
    open_log,
    read_endpoint,
    runtime_dir,
)
from mmchat.client.wire import absolute_name
from mmchat.errors import EngineError
from mmchat.settings import Settings, folder_environment, private_dir

END_TIMEOUT = 5.0
"""Seconds to wait for an engine to end."""
_INFO_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO) ")
"""The beginning of a log line that is not an error (`engine.process` sets the format)."""
_children: list[subprocess.Popen[bytes]] = []
"""Engines that this process has started; polled, so that none becomes a zombie."""


@atexit.register
def _detach_children() -> None:
    """Prevents Popen's warning about running children: engines outlive us on purpose."""
    for child in _children:
        if child.poll() is None:
            child.returncode = 0


def _log() -> BinaryIO:
    """Opens the engine's log for appending. Raises EngineError if it cannot be written."""
    try:
        return os.fdopen(open_log(), "ab")
    except OSError as error:
        raise EngineError(
            f"The engine's log {log_file()} cannot be written ({error.strerror}): "
            "check its permissions, or remove it."
        ) from error


class EngineProcess:
    """An engine process that was started, and may not respond yet."""

    def __init__(self, settings: Settings) -> None:
        """Starts the process. Raises EngineError if that fails."""
        runtime = runtime_dir()
        private_dir(log_file().parent)
        with _log() as log:
            self._log_start = os.fstat(log.fileno()).st_size
            # -P: Python must not import modules from the current folder.
            command = [sys.executable, "-P", "-m", "mmchat.engine", *_flags(settings)]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=runtime,
                    env=os.environ | folder_environment(),
                    start_new_session=True,
                    close_fds=True,
                )
            except OSError as error:
                raise EngineError(
                    f"The engine's process cannot be started ({error.strerror}): "
                    "free some memory, or close other programs."
                ) from error
        _children[:] = [child for child in _children if child.poll() is None]
        _children.append(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """The exit status; None while the process runs."""
        return self._process.poll()

    def failure(self) -> EngineError:
        """Why it ended before it responded: the signal, or the last line of its log."""
        status = self._process.poll()
        if status is not None and status < 0:
            return EngineError(_ended_by_signal(-status))
        lines: list[str] = []
        with contextlib.suppress(OSError), log_file().open("rb") as log:  # it may have been removed
            size = os.fstat(log.fileno()).st_size
            log.seek(max(self._log_start if self._log_start <= size else 0, size - 65_536))
            lines = log.read().decode(errors="replace").splitlines()
        errors = [line.strip() for line in lines if line.strip() and not _INFO_LINE.match(line)]
        last = errors[-1] if errors else f"it printed nothing, exit status {status}"
        return EngineError(
            f"The engine could not start: {last.removeprefix('mmchat: ')} (its log: {log_file()})"
        )


def _ended_by_signal(number: int) -> str:
    sentence = f"The engine was killed by signal {number} while it started"
    if number == signal.SIGKILL:
        return (
            f"{sentence}: if that was not you, the system ran out of memory, so close other "
            "programs and try again."
        )
    return f"{sentence} (its log: {log_file()})"


def _flags(settings: Settings) -> list[str]:
    chosen = {
        "model.name": absolute_name(settings.model.name),
        "model.adapter": absolute_name(settings.model.adapter),
        "model.quantization": settings.model.quantization,
        "model.device": settings.model.device,
        "engine.idle_seconds": settings.engine.idle_seconds,
        "engine.transport": settings.engine.transport,
    }
    return [part for name, value in chosen.items() for part in ("--set", f"{name}={value}")]


async def end_process(pid: int) -> None:
    """Waits until the engine has ended; sends SIGTERM, then SIGKILL, after `END_TIMEOUT` each.

    Raises EngineError if even that does not end it.
    """
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None and is_engine(pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if await engine_gone(END_TIMEOUT):
            return
        endpoint = read_endpoint()
        if endpoint is not None and endpoint.pid != pid:
            return  # another engine has started since
    raise EngineError(f"The engine (process {pid}) does not end: kill it with `kill -9 {pid}`.")


async def engine_gone(seconds: float) -> bool:
    """Waits up to `seconds` until no engine runs; returns whether that is so."""
    deadline = time.monotonic() + seconds
    while engine_lives():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def is_engine(pid: int) -> bool:
    """Whether the process is an engine; after a crash, its id may belong to another program."""
    import psutil

    try:
        return "mmchat.engine" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False
