"""The locks of the history: one for whoever prepares the database, one for each writer."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from mmchat.errors import HistoryError
from mmchat.files import FileLock, is_locked


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float = 30.0) -> Iterator[None]:
    """Holds the lock file `path`; waits up to `seconds` for another holder.

    Raises HistoryError after that time, and OSError if the file cannot be opened.
    """
    lock = FileLock(path)
    if not lock.acquire(seconds):
        raise HistoryError(
            f"Another mmchat has been preparing the history for {seconds:.0f} s and holds "
            f"{path}: wait for it to end, or end it, and start again."
        )
    try:
        yield
    finally:
        lock.release()


class WriterLock:
    """Tells every other process that the writer called `token` is alive.

    It is a file beside the database, locked from before the writer's first row until the writer
    closes or dies.
    """

    def __init__(self, database: Path) -> None:
        """Raises OSError if no file can be created beside `database`."""
        while True:  # a sweep may remove the file before it is locked
            self.token = secrets.token_hex(8)
            self._lock = FileLock(writer_file(database, self.token))
            if self._lock.acquire(0):
                return

    def release(self) -> None:
        """Releases the lock and removes its file."""
        self._lock.release(remove=True)


def writer_file(database: Path, token: str) -> Path:
    """The lock file of the writer `token` of `database`."""
    return database.with_name(f"{database.name}.writer-{token}")


def writer_is_gone(database: Path, token: str) -> bool:
    """Whether no process holds the lock of this writer any more."""
    try:
        return not is_locked(writer_file(database, token))
    except OSError:
        return False  # not readable, perhaps another user's: leave its answers alone


def sweep_writers(database: Path) -> None:
    """Removes the lock files of writers that died."""
    for path in database.parent.glob(f"{database.name}.writer-*"):
        with contextlib.suppress(OSError):
            lock = FileLock(path)
            if lock.acquire(0):
                lock.release(remove=True)
