"""Operating-system locks on files, which end with their holder, however it ends.

A process id is not enough: it is reused after a crash, and means nothing in another container
that shares the folder.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from mmchat.errors import HistoryError


def _take(path: Path, *, create: bool) -> int | None:
    """A locked file descriptor, or None if another process has the lock or there is no file.

    Raises OSError if the file cannot be opened.
    """
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        if create:
            raise
        return None
    except OSError as error:
        if create or error.errno not in (errno.EACCES, errno.EROFS):
            raise
        fd = os.open(path, os.O_RDONLY)  # enough for a lock, but not on every network disk
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and lock, the previous holder may have unlinked the file: a lock on a file
        # without a name excludes nobody.
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float = 30.0) -> Iterator[None]:
    """Holds the lock file `path`; waits up to `seconds` for another holder.

    Raises HistoryError after that time.
    """
    deadline = time.monotonic() + seconds
    while (fd := _take(path, create=True)) is None:
        if time.monotonic() > deadline:
            raise HistoryError(
                f"Another mmchat has been preparing the history for {seconds:.0f} s and holds "
                f"{path}: wait for it to end, or end it, and start again."
            )
        time.sleep(0.01)
    try:
        yield
    finally:
        os.close(fd)


class WriterLock:
    """Tells every other process that the writer called `token` is alive.

    It is a file beside the database, locked from before the writer's first row until the writer
    closes or dies.
    """

    def __init__(self, database: Path) -> None:
        """Raises OSError if no file can be created beside `database`."""
        fd = None
        while fd is None:  # a sweep may unlink the file before it is locked
            self.token = secrets.token_hex(8)
            self._path = writer_file(database, self.token)
            fd = _take(self._path, create=True)
        self._fd = fd

    def release(self) -> None:
        """Releases the lock; the file is removed first, so that nobody finds it unlocked."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def writer_file(database: Path, token: str) -> Path:
    """The lock file of the writer `token` of `database`."""
    return database.with_name(f"{database.name}.writer-{token}")


def writer_is_gone(database: Path, token: str) -> bool:
    """Whether no process holds the lock of this writer any more."""
    path = writer_file(database, token)
    try:
        fd = _take(path, create=False)
    except OSError:
        return False  # not readable, perhaps another user's: leave its answers alone
    if fd is None:
        return not path.exists()
    os.close(fd)
    return True


def sweep_writers(database: Path) -> None:
    """Removes the lock files of writers that died."""
    for path in database.parent.glob(f"{database.name}.writer-*"):
        with contextlib.suppress(OSError):
            fd = _take(path, create=False)
            if fd is not None:
                path.unlink(missing_ok=True)
                os.close(fd)
