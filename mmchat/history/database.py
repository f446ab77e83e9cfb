"""Two connections to the file, opened privately: one to read, one to write."""

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from mmchat.errors import HistoryError
from mmchat.history import schema
from mmchat.history.faults import told
from mmchat.history.lock import exclusive

BUSY_SECONDS = 10.0  # to wait for another program that writes


class Database:
    """A connection to read and one to write, each used by one thread at a time.

    With write-ahead logging a reader waits for no writer: while one thread waits
    for another program that holds the file, everything that is there still reads.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Takes `connection` to write and opens another to read."""
        self.path = path
        self._writer = _Connection(connection, path)
        try:
            self._reader = _Connection(_connect(path), path)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Open the history at `path`; make it, or bring it up to date, first.

        Raises:
            HistoryError: the file cannot be used, or a newer mmchat wrote it.
        """
        with told(path):
            connection = _current(path)
            if connection is None:
                with exclusive(path.with_name(path.name + ".lock")):
                    connection = _current(path) or _prepared(path)
            return cls(connection, path)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()  # the last one: it folds the log into the file

    def shrink(self) -> None:
        """Give the space of what was deleted back to the disk."""
        # `execute` would take one step of it, which frees one page.
        self._writer.run("PRAGMA incremental_vacuum")

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Every statement inside sees the same moment."""
        return self._reader.transaction("BEGIN")

    def write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """All of it or nothing; committed when the block ends.

        It begins as a writer at once: a deferred transaction that reads first
        could not wait for another writer, it would fail.
        """
        return self._writer.transaction("BEGIN IMMEDIATE")


class _Connection:
    """One connection with its lock: threads take turns."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._turn = threading.RLock()

    def close(self) -> None:
        with self._turn, told(self._path):
            self._connection.close()

    def run(self, script: str) -> None:
        with self._turn, told(self._path):
            self._connection.executescript(script)

    @contextlib.contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._turn, told(self._path):
            self._connection.execute(begin)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it already
                    self._connection.execute("ROLLBACK")
                raise


def _current(path: Path) -> sqlite3.Connection | None:
    """A connection to a file that needs no preparation, or None."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise HistoryError(f"{path} is no file: move it away to start a history there.")
    if status.st_size == 0:
        return None
    _make_private(path)
    connection = _connect(path)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == schema.APPLICATION_ID
        if not ours:
            raise HistoryError(
                f"{path} is a database of another program: move it away to start a history there."
            )
        if version > schema.VERSION:
            raise HistoryError(
                f"{path} was written by a newer mmchat (version {version} of its tables, this "
                f"program knows {schema.VERSION}): upgrade mmchat."
            )
    except BaseException:
        connection.close()
        raise
    if version == schema.VERSION:
        return connection
    connection.close()
    return None


def _prepared(path: Path) -> sqlite3.Connection:
    """Make the file, or migrate the one that is there; the lock file is held.

    A new file is made beside its place and moved there when it is whole: no
    other process ever sees one without tables, or takes part in the change to
    write-ahead logging, which is set once and stays.
    """
    if not path.exists() or path.stat().st_size == 0:
        fresh = path.with_name(path.name + ".new")
        for leftover in (fresh, Path(f"{fresh}-wal"), Path(f"{fresh}-shm")):
            leftover.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(fd, 0o600)  # -wal and -shm take their mode from it
        os.close(fd)
        connection = _connect(fresh)
        try:
            # Before the first table: lets deleted pictures give their space back.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            schema.migrate(connection)
        finally:
            connection.close()
        fresh.rename(path)
        return _connect(path)
    connection = _connect(path)
    try:
        schema.migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    """Open an existing file (never make one: its mode would be the umask's)."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        # A commit is in the operating system's hands when it returns, so a
        # killed process loses none; NORMAL leaves out the wait for the disk,
        # which only a power cut could make use of (store.py says what then).
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -16000")
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


def _make_private(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # of another user: leave it
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                file.chmod(0o600)
