"""Where the engine is found: its lock, its socket, its endpoint file.

Three files in the runtime folder, all 0600 in a folder of 0700:

    engine.lock   locked by the engine for its whole life; the lock, never a
                  file's existence, says whether an engine lives
    engine.json   how to reach it (`Endpoint`), written when it listens
    <hash>.sock   the Unix socket; in a private folder under the temporary
                  folder where the path would exceed what the system takes
"""

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from mmchat.errors import EngineError
from mmchat.settings import paths, private_dir

if sys.platform != "win32":
    import fcntl

ALREADY_RUNNING = 75
"""The exit status of an engine that found another one alive."""
MAX_SOCKET_PATH = 100
"""sun_path holds 104 bytes on macOS and 108 on Linux, the closing NUL included."""


class Endpoint(Struct, frozen=True):
    """How a running engine is reached."""

    transport: Literal["unix", "tcp"]
    pid: int
    socket: str = ""
    port: int = 0
    token: str = ""
    """Asked of every request over TCP; a new one each start."""


def runtime_dir() -> Path:
    """The runtime folder, created and verified to be nobody else's."""
    folder = private_dir(paths().runtime)
    temporary = Path(tempfile.gettempdir())
    for parent in folder.parents:  # whoever owns a parent can put another folder in ours' place
        if temporary in parent.parents:
            _verified(parent, private=False)
    return _verified(folder)


def lock_file() -> Path:
    return paths().runtime / "engine.lock"


def endpoint_file() -> Path:
    return paths().runtime / "engine.json"


def log_file() -> Path:
    return paths().logs / "engine.log"


def socket_path() -> Path:
    """The engine's Unix socket: a short hashed name, its folder created and private."""
    folder = runtime_dir()
    key = f"{folder}\0{paths().data}".encode(errors="surrogateescape")
    name = f"{hashlib.sha256(key).hexdigest()[:12]}.sock"
    path = folder / name
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    owner = str(os.getuid()) if sys.platform != "win32" else "user"
    folder = Path(tempfile.gettempdir()) / f"mmchat-{owner}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = _verified(folder) / name
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise EngineError(
            f"The path {path} is too long for a Unix socket: set TMPDIR to a shorter folder, "
            "or engine.transport to tcp."
        )
    return path


def _verified(folder: Path, private: bool = True) -> Path:
    """`folder` if it is a real folder of ours; made one that nobody else can enter."""
    if sys.platform == "win32":
        return folder
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise EngineError(
            f"{folder} is a link or belongs to somebody else, so no private socket can lie there: "
            "remove it, or set MMCHAT_HOME to a folder of yours."
        )
    if private and stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder


def read_endpoint() -> Endpoint | None:
    """How to reach the living engine; None where none lives or it does not listen yet."""
    if not engine_lives():
        return None
    try:
        return msgspec.json.decode(endpoint_file().read_bytes(), type=Endpoint)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    except OSError as error:
        raise EngineError(
            f"{endpoint_file()} cannot be read ({error.strerror}): mend its permissions."
        ) from error


def write_endpoint(endpoint: Endpoint) -> None:
    """Tells how the engine is reached, in one step and readable by this person only."""
    file = endpoint_file()
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
        target.write(msgspec.json.encode(endpoint))
    scratch.replace(file)


class EngineLock:
    """The lock that makes the engine the only one; the system frees it when the process ends."""

    def __init__(self) -> None:
        runtime_dir()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._handle = os.open(lock_file(), flags, 0o600)

    def take(self) -> bool:
        """Takes the lock for life; False where another engine has it."""
        if not _try_lock(self._handle, shared=False):
            return False
        os.ftruncate(self._handle, 0)
        os.write(self._handle, str(os.getpid()).encode())
        return True

    def close(self) -> None:
        """Frees the lock, as the end of the process does."""
        os.close(self._handle)


def lock_holder() -> int | None:
    """The process id that the lock file tells; of use only while the engine lives."""
    try:
        return int(lock_file().read_bytes())
    except (OSError, ValueError):
        return None


def engine_lives() -> bool:
    """Whether a process holds the engine's lock."""
    try:
        handle = os.open(lock_file(), os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise EngineError(
            f"{lock_file()} cannot be opened ({error.strerror}): mend its permissions."
        ) from error
    try:
        return not _try_lock(handle, shared=True)
    finally:
        os.close(handle)


def _try_lock(handle: int, shared: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
