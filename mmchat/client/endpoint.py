"""Where the engine is found: its lock, its socket, its endpoint file.

Three files in the runtime folder, with mode 0600 in a folder with mode 0700:

    engine.lock   locked by the engine while it runs; the lock, not the existence of a file, tells
                  whether an engine runs
    engine.json   how to reach it (`Endpoint`), written when it listens
    <hash>.sock   the Unix socket; if its path would be too long for the system, it is in a private
                  folder under the temporary folder
"""

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from mmchat.errors import EngineError
from mmchat.files import FileLock, is_locked, write_file
from mmchat.settings import paths, private_dir

ALREADY_RUNNING = 75
"""The exit status of an engine that found another one running."""
MAX_SOCKET_PATH = 100
"""Bytes; sun_path has 104 on macOS and 108 on Linux, including the final NUL."""


class Endpoint(Struct, frozen=True):
    """How to reach a running engine."""

    transport: Literal["unix", "tcp"]
    pid: int
    socket: str = ""
    port: int = 0
    token: str = ""
    """Required in every request over TCP; new at each start."""


def runtime_dir() -> Path:
    """The runtime folder, created and verified to belong to this person only."""
    folder = private_dir(paths().runtime)
    temporary = Path(tempfile.gettempdir())
    for parent in folder.parents:  # the owner of a parent folder could replace ours
        if temporary in parent.parents:
            _verified(parent, private=False)
    return _verified(folder)


def lock_file() -> Path:
    return paths().runtime / "engine.lock"


def endpoint_file() -> Path:
    return paths().runtime / "engine.json"


def log_file() -> Path:
    return paths().logs / "engine.log"


def open_log() -> int:
    """Opens the log, which only its owner can read, for appending; returns a file descriptor."""
    return os.open(log_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def socket_path() -> Path:
    """The path of the engine's Unix socket, a short hashed name in a private folder.

    Raises EngineError if the path is too long, or its folder belongs to somebody else.
    """
    folder = runtime_dir()
    key = f"{folder}\0{paths().data}".encode(errors="surrogateescape")
    name = f"{hashlib.sha256(key).hexdigest()[:12]}.sock"
    path = folder / name
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    folder = Path(tempfile.gettempdir()) / f"mmchat-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = _verified(folder) / name
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise EngineError(
            f"The path {path} is too long for a Unix socket: set TMPDIR to a shorter folder, "
            "or engine.transport to tcp."
        )
    return path


def _verified(folder: Path, private: bool = True) -> Path:
    """`folder`, if it is a real folder of ours; `private` makes it closed to others.

    Raises EngineError otherwise.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EngineError(
            f"{folder} is a link or belongs to somebody else, so the engine's private socket cannot "
            "be there: remove it, or set MMCHAT_HOME to a folder of yours."
        )
    if private and stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder


def read_endpoint() -> Endpoint | None:
    """How to reach the running engine; None if none runs, or it does not listen yet.

    Raises EngineError if the file cannot be read.
    """
    if not engine_lives():
        return None
    try:
        return msgspec.json.decode(endpoint_file().read_bytes(), type=Endpoint)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise EngineError(
            f"{endpoint_file()} cannot be read ({error.strerror}): check its permissions."
        ) from error


def write_endpoint(endpoint: Endpoint) -> None:
    """Writes how to reach the engine, atomically and readable by this person only."""
    write_file(endpoint_file(), msgspec.json.encode(endpoint))


def take_engine_lock() -> FileLock | None:
    """Takes the lock that only one engine can hold; None if another engine has it.

    The system frees it when the process ends.
    """
    runtime_dir()
    lock = FileLock(lock_file())
    if not lock.acquire():
        return None
    lock_file().write_text(str(os.getpid()))
    return lock


def lock_holder() -> int | None:
    """The process id in the lock file; valid only while the engine runs."""
    try:
        return int(lock_file().read_bytes())
    except (OSError, ValueError):
        return None


def engine_lives() -> bool:
    """Whether an engine runs, that is, whether a process holds its lock.

    Raises EngineError if the lock file cannot be opened.
    """
    try:
        return is_locked(lock_file())
    except OSError as error:
        raise EngineError(
            f"{lock_file()} cannot be opened ({error.strerror}): check its permissions."
        ) from error
