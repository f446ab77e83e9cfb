"""Files that more than one process uses: written whole or not at all, and locked while in use.

The locks are `flock` and not the `filelock` package, which has only exclusive locks on files: there, two
windows that look at the same moment whether an engine or a run is alive would each take the other
for the holder. (Its read-write lock is an SQLite file of its own, which a look would create.)
"""

import contextlib
import fcntl
import os
import secrets
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LOOK_SECONDS = 0.2
"""A process that looks whether a file is locked may hold it for a moment: how long to try again."""
_POLL_SECONDS = 0.01


@contextlib.contextmanager
def partial_file(file: Path, *, private: bool = True) -> Iterator[Path]:
    """A new empty file beside `file`, to be renamed to it; removed at the end if it was not.

    private: only this person can read it (mode 0600), otherwise the umask decides. Raises OSError
    if it cannot be created.
    """
    partial = file.with_name(f".{file.name[:40]}.{secrets.token_hex(6)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(partial, flags, 0o600 if private else 0o666))
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_synced(file: Path) -> Iterator[BinaryIO]:
    """Opens `file` for writing; when the block ends, the disk has its content. Raises OSError."""
    with file.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def write_file(
    file: Path, content: bytes | str, *, private: bool = True, synced: bool = False
) -> None:
    """Replaces the whole of `file`, or leaves it as it was; text is written as UTF-8.

    private: as in `partial_file`. synced: waits until the disk has the content, so that it survives
    a power cut. Raises OSError if it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with partial_file(file, private=private) as partial:
        if synced:
            with open_synced(partial) as stream:
                stream.write(data)
        else:
            partial.write_bytes(data)
        partial.replace(file)


def sync(path: Path) -> None:
    """Waits until the disk has a file's content, or a folder's names. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileLock:
    """A lock on a file that one process can hold, and that ends with it, however it ends.

    A process id is not enough: it is reused after a crash, and means nothing in another container
    that shares the folder. A forked child does not inherit the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        _locks.add(self)

    def acquire(self, seconds: float = LOOK_SECONDS) -> bool:
        """Creates and locks the file; False if another process still holds it after `seconds`.

        Raises OSError if the file cannot be opened, also if it is a link.
        """
        deadline = time.monotonic() + seconds
        while not self._try_acquire():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _try_acquire(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        handle = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock, the previous holder may have removed the file: a lock on a file
            # without a name excludes nobody.
            if self.path.stat().st_ino == os.fstat(handle).st_ino:
                self._handle = handle
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return False

    def release(self, *, remove: bool = False) -> None:
        """Ends the lock; does nothing if it is not held.

        remove: removes the file first, so that nobody finds it unlocked.
        """
        if self._handle is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        handle, self._handle = self._handle, None
        os.close(handle)

    def _forget(self) -> None:
        """In a forked child, which would otherwise hold the lock for as long as it lives."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_locks: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _forget_locks() -> None:
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_locks)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on `path`; False if there is no such file.

    Raises OSError if the file cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # Shared: those who look see the holder, and not each other.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
