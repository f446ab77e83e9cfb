"""Two connections to the file, which only its owner can read: one to read, one to write.

There are two exceptions, each with one connection for both. A file that cannot be written (on a
read-only disk, in another user's folder) is opened only for reading. On a full disk, where SQLite
has no room for the index of its log (-shm), this process opens the file exclusively.
"""

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from mmchat.errors import HistoryError
from mmchat.history import schema
from mmchat.history.errors import (
    DiskFullError,
    damaged,
    disk_full,
    free_space,
    is_full,
    translate_errors,
)
from mmchat.history.lock import exclusive

BUSY_SECONDS = 10.0  # to wait for another program that writes
RESERVE = 256_000  # bytes of the disk that are left free for `Database.write(closing=True)`
_LITTLE = 4_000_000  # bytes: on a disk with less, the log is folded into the file before each write
_SMALLEST = 512  # bytes: a SQLite file has at least one page


class Database:
    """A connection to read and one to write, each used by one thread at a time.

    With write-ahead logging a reader never waits for a writer: while one thread waits for another
    program that holds the file, everything in it can still be read.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, alone: bool) -> None:
        """Writes with `connection` and, unless it has to be `alone`, opens another one to read."""
        self.path = path
        self._writer = _Connection(path, connection)
        self._reader = _Connection(path, None, instead=self._writer)
        if not alone:
            try:
                self._reader.connection = _connect(path)
            except BaseException:
                connection.close()
                raise

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Opens the history at `path`, after creating it or bringing it up to date.

        Raises:
            HistoryError: the file cannot be used, or a newer mmchat wrote it.
        """
        with translate_errors(path):
            found = _current(path)
            if found is None:
                if path.exists() and is_read_only(path):
                    raise HistoryError(
                        f"{path} was written by an older mmchat and has to be brought up to date, "
                        "but cannot be written: copy it to a folder that you can write to."
                    )
                with exclusive(path.with_name(path.name + ".lock")):
                    found = _current(path) or (_prepared(path), False)
            connection, alone = found
            return cls(path, connection, alone=alone)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()  # last, because it folds the log into the file

    def shrink(self) -> None:
        """Gives the space of what was deleted back to the disk."""
        self._writer.run(_SHRINK)

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A transaction in which every statement sees the same state."""
        return self._reader.transaction("BEGIN")

    def write(
        self, *, closing: bool = False
    ) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A transaction that is committed when the block ends, or rolled back on an error.

        It starts as a writer: a deferred transaction that reads first fails, instead of waiting,
        if there is another writer.

        closing: it deletes or ends something, and may use the last room on the disk (`RESERVE`).

        Raises DiskFullError at once if there is less room than that.
        """
        if free_space(self.path) < _LITTLE:
            # The content of the log needs room in the file, which must not be missing once the log
            # has filled the disk. Folding it in also frees the room of the log.
            with contextlib.suppress(HistoryError):
                self._writer.run("PRAGMA wal_checkpoint(TRUNCATE)")
            if not closing and free_space(self.path) < RESERVE:
                raise disk_full(self.path)
        return self._writer.transaction("BEGIN IMMEDIATE")

    @contextlib.contextmanager
    def write_in_place(self) -> Iterator[sqlite3.Connection]:
        """A transaction that needs no room on the disk, to delete something when it is full.

        It overwrites pages in the file itself and keeps their old content in memory. A crash in
        these milliseconds could damage the file, so nothing else uses it. At its end it shrinks
        the file.

        Raises DiskFullError if another process has the file open, or if there is no room to fold
        the log into the file.
        """
        with self._reader._turn, self._writer._turn, translate_errors(self.path):
            self.close()
            try:
                with contextlib.closing(_connect(self.path, alone=True)) as connection:
                    Path(f"{self.path}-shm").unlink(missing_ok=True)  # frees some room
                    connection.execute("PRAGMA journal_mode = MEMORY")
                    schema.set_merging(connection, on=False)  # because it needs room
                    try:
                        with _transaction(connection, "BEGIN IMMEDIATE"):
                            yield connection
                    finally:
                        schema.set_merging(connection, on=True)
                    connection.executescript(_SHRINK)
                    connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    raise DiskFullError(
                        f"The disk is full, and another mmchat has {self.path} open, so nothing "
                        "can be deleted: close it and try again, or free some space."
                    ) from error
                if is_full(error, self.path):
                    raise DiskFullError(
                        f"The disk of {self.path} is so full that nothing can be deleted: free "
                        "some space and try again."
                    ) from error
                raise
            finally:
                self._writer.connection, alone = _open(self.path)
                self._reader.connection = None if alone else _connect(self.path)


class _Connection:
    """A connection with a lock: threads take turns."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection | None,
        instead: "_Connection | None" = None,
    ) -> None:
        """`instead` is used while there is no `connection`."""
        self.connection = connection
        self._turn = threading.RLock()
        self._path = path
        self._instead = instead

    def close(self) -> None:
        with self._turn, translate_errors(self._path):
            if self.connection is not None:
                self.connection.close()

    def run(self, script: str) -> None:
        with self._turn, translate_errors(self._path):
            assert self.connection is not None
            self.connection.executescript(script)

    @contextlib.contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._turn:
            if self.connection is None:
                assert self._instead is not None
                with self._instead.transaction(begin) as connection:
                    yield connection
            else:
                with (
                    translate_errors(self._path),
                    _transaction(self.connection, begin) as connection,
                ):
                    yield connection


# `execute` would take one step of it, which frees one page.
_SHRINK = "PRAGMA incremental_vacuum"


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    connection.execute(begin)
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # an error such as a full disk may have ended it
            connection.execute("ROLLBACK")
        raise


def _current(path: Path) -> tuple[sqlite3.Connection, bool] | None:
    """A connection to an up-to-date file, and whether it has to be the only one; else None."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise HistoryError(f"{path} is not a file: move it away to start a history there.")
    if status.st_size == 0:
        return None
    if status.st_size < _SMALLEST:  # SQLite would take it for an empty database
        raise damaged(path)
    _make_private(path)
    connection, alone = _open(path)
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
        return connection, alone
    connection.close()
    return None


def _prepared(path: Path) -> sqlite3.Connection:
    """Creates the file, or migrates the existing one; the caller holds the lock file.

    A new file is created under another name and renamed when it is complete: no other process
    ever sees one without tables, or is there at the change to write-ahead logging, which is made
    once.
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
            # Before the first table: with it, deleted pictures give their space back.
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


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection to an existing file, and whether it has to be the only one."""
    if is_read_only(path):
        return _connect_to_read(path), True
    try:
        return _connect(path), False
    except sqlite3.Error as error:
        if not is_full(error, path):
            raise
        return _connect(path, alone=True), True


def is_read_only(path: Path) -> bool:
    """Whether the file, or the folder that has to hold its log, cannot be written."""
    return not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK)


def _connect(path: Path, *, alone: bool = False) -> sqlite3.Connection:
    """Opens an existing file (it never creates one, whose mode would depend on the umask).

    alone: no other process can open the file until this connection is closed, and the index of
    the log is in memory, not on the disk. Fails with SQLITE_BUSY if another process has the file
    open.
    """
    connection = _connection(f"{path.absolute().as_uri()}?mode=rw", 1.0 if alone else BUSY_SECONDS)
    try:
        if alone:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA foreign_keys = ON")
        # When a commit returns, the operating system has the data, so a killed process loses
        # nothing. NORMAL does not wait for the disk, which matters only for a power cut (store.py).
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA user_version").fetchone()  # the first look at the file itself
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Opens a file that cannot be written.

    The ordinary way, with locks, works only if another process that can write has the file open.
    If none has, the file does not change, and it is read without locks, together with a log that
    was left behind.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    log = Path(f"{path}-wal")
    ways = ["", "&vfs=unix-none" if log.exists() and log.stat().st_size else "&immutable=1"]
    for way in ways:
        connection = _connection(uri + way, BUSY_SECONDS)
        try:
            if way == "&vfs=unix-none":  # keeps the log's index in memory
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA user_version").fetchone()
            return connection
        except BaseException as error:
            connection.close()
            code = error.sqlite_errorcode & 0xFF if isinstance(error, sqlite3.Error) else 0
            if way or code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
    raise AssertionError("the second way returns or raises")


def _connection(uri: str, seconds: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=seconds, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _make_private(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with contextlib.suppress(OSError):  # not there, another user's, on a read-only disk
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                file.chmod(0o600)
