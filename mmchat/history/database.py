"""Two connections to the database file: one to read, one to write. Only its owner can read it.

In two cases, there is one connection for both. A file that cannot be written (on a read-only disk,
in another user's folder) is opened for reading only. On a full disk, where SQLite has no space for
the index of its log (-shm), this process opens the file exclusively.
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

BUSY_SECONDS = 10.0  # to wait for another writer
RESERVE = 256_000  # bytes on the disk that are reserved for `Database.write(closing=True)`
_LOW_SPACE = 4_000_000  # bytes: with less on the disk, the log is checkpointed before each write
_SMALLEST = 512  # bytes: a SQLite file has at least one page


class Database:
    """A connection to read and one to write, each used by one thread at a time.

    With write-ahead logging, readers never wait for a writer: while one thread waits for another
    program that locks the file, others can still read.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, single: bool) -> None:
        """Writes through `connection`, and also reads through it if `single`."""
        self.path = path
        self._writer = _Connection(path, connection)
        self._reader = _Connection(path, None, fallback=self._writer)
        if not single:
            try:
                self._reader.connection = _connect(path)
            except BaseException:
                connection.close()
                raise

    @classmethod
    def open(cls, path: Path) -> "Database":
        """Opens the history at `path`; creates or migrates it if needed.

        Raises:
            HistoryError: the file cannot be used, or a newer mmchat wrote it.
        """
        with translate_errors(path):
            opened = _open_current(path)
            if opened is None:
                if path.exists() and is_read_only(path):
                    raise HistoryError(
                        f"{path} was written by an older mmchat and must be migrated, but cannot be "
                        "written: copy it to a folder that you can write to."
                    )
                with exclusive(path.with_name(path.name + ".lock")):
                    opened = _open_current(path) or (_create_or_migrate(path), False)
            connection, single = opened
            return cls(path, connection, single=single)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()  # last, because it checkpoints the log

    def shrink(self) -> None:
        """Returns the space of deleted rows to the disk."""
        self._writer.run(_SHRINK)

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A read transaction, in which every statement sees the same state."""
        return self._reader.transaction("BEGIN")

    def write(
        self, *, closing: bool = False
    ) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """A write transaction, committed when the block ends and rolled back on an error.

        It takes the write lock at once: a deferred transaction that reads first would fail,
        instead of waiting, if there is another writer.

        closing: whether it deletes or ends something, so that it may use the `RESERVE`.

        Raises DiskFullError if there is less space than that.
        """
        if free_space(self.path) < _LOW_SPACE:
            # The content of the log will need space in the file, so it must not fill the disk first.
            # A checkpoint also frees the space of the log.
            with contextlib.suppress(HistoryError):
                self._writer.run("PRAGMA wal_checkpoint(TRUNCATE)")
            if not closing and free_space(self.path) < RESERVE:
                raise disk_full(self.path)
        return self._writer.transaction("BEGIN IMMEDIATE")

    @contextlib.contextmanager
    def write_in_place(self) -> Iterator[sqlite3.Connection]:
        """A transaction that needs no space on the disk, to delete something when it is full.

        It overwrites pages in the file and keeps their old content in memory. A crash in these
        milliseconds could damage the file, so nothing else uses it. Shrinks the file at the end.

        Raises DiskFullError if another process has the file open, or if there is no space to
        checkpoint the log.
        """
        with self._reader._lock, self._writer._lock, translate_errors(self.path):
            self.close()
            try:
                with contextlib.closing(_connect(self.path, exclusive_mode=True)) as connection:
                    Path(f"{self.path}-shm").unlink(missing_ok=True)  # frees some space
                    connection.execute("PRAGMA journal_mode = MEMORY")
                    schema.set_merging(connection, on=False)  # because it needs space
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
                        f"The disk of {self.path} is so full that nothing can be deleted: free some "
                        "space and try again."
                    ) from error
                raise
            finally:
                self._writer.connection, single = _open(self.path)
                self._reader.connection = None if single else _connect(self.path)


class _Connection:
    """A connection with a lock, so that one thread at a time uses it."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection | None,
        fallback: "_Connection | None" = None,
    ) -> None:
        """`fallback` is used while there is no `connection`."""
        self.connection = connection
        self._lock = threading.RLock()
        self._path = path
        self._fallback = fallback

    def close(self) -> None:
        with self._lock, translate_errors(self._path):
            if self.connection is not None:
                self.connection.close()

    def run(self, script: str) -> None:
        with self._lock, translate_errors(self._path):
            assert self.connection is not None
            self.connection.executescript(script)

    @contextlib.contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self.connection is None:
                assert self._fallback is not None
                with self._fallback.transaction(begin) as connection:
                    yield connection
            else:
                with (
                    translate_errors(self._path),
                    _transaction(self.connection, begin) as connection,
                ):
                    yield connection


# Needs `executescript`: `execute` takes one step, which frees one page.
_SHRINK = "PRAGMA incremental_vacuum"


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    connection.execute(begin)
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors, such as a full disk, end it
            connection.execute("ROLLBACK")
        raise


def _open_current(path: Path) -> tuple[sqlite3.Connection, bool] | None:
    """A connection to an up-to-date file, and whether it must be the only one.

    None if the file does not exist or must be migrated. Raises HistoryError.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise HistoryError(f"{path} is not a file: move it away to start a history there.")
    if status.st_size == 0:
        return None
    if status.st_size < _SMALLEST:  # SQLite would treat it as an empty database
        raise damaged(path)
    _make_private(path)
    connection, single = _open(path)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        ours = connection.execute("PRAGMA application_id").fetchone()[0] == schema.APPLICATION_ID
        if not ours:
            raise HistoryError(
                f"{path} is another program's database: move it away to start a history there."
            )
        if version > schema.VERSION:
            raise HistoryError(
                f"{path} was written by a newer mmchat (schema version {version}, this program "
                f"supports {schema.VERSION}): upgrade mmchat."
            )
    except BaseException:
        connection.close()
        raise
    if version == schema.VERSION:
        return connection, single
    connection.close()
    return None


def _create_or_migrate(path: Path) -> sqlite3.Connection:
    """Creates the file, or migrates the existing one; the caller holds the lock file.

    A new file is created under another name and renamed when it is complete, so that no other
    process sees it without tables or before write-ahead logging is on.
    """
    if not path.exists() or path.stat().st_size == 0:
        new = path.with_name(path.name + ".new")
        for leftover in (new, Path(f"{new}-wal"), Path(f"{new}-shm")):
            leftover.unlink(missing_ok=True)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(fd, 0o600)  # -wal and -shm get the same mode
        os.close(fd)
        connection = _connect(new)
        try:
            # Before the first table, so that the space of deleted pictures can be freed.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            schema.migrate(connection)
        finally:
            connection.close()
        new.rename(path)
        return _connect(path)
    connection = _connect(path)
    try:
        schema.migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection to an existing file, and whether it must be the only one."""
    if is_read_only(path):
        return _connect_read_only(path), True
    try:
        return _connect(path), False
    except sqlite3.Error as error:
        if not is_full(error, path):
            raise
        return _connect(path, exclusive_mode=True), True


def is_read_only(path: Path) -> bool:
    """Whether the file, or the folder for its log, cannot be written."""
    return not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK)


def _connect(path: Path, *, exclusive_mode: bool = False) -> sqlite3.Connection:
    """Opens an existing file (never creates one, because its mode would depend on the umask).

    exclusive_mode: no other process can open the file until this connection is closed, and the
    index of the log is kept in memory. Fails with SQLITE_BUSY if another process has the file
    open.
    """
    timeout = 1.0 if exclusive_mode else BUSY_SECONDS
    connection = _sqlite_connection(f"{path.absolute().as_uri()}?mode=rw", timeout)
    try:
        if exclusive_mode:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA foreign_keys = ON")
        # After a commit the operating system has the data, so a killed process loses nothing.
        # NORMAL does not wait for the disk, which matters only in a power cut (store.py).
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA user_version").fetchone()  # the first access to the file
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    """Opens a file that cannot be written.

    Normal access with locks works only if another process that can write has the file open. If
    none has, the file does not change, so it is read without locks, with a leftover log if there
    is one.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    log = Path(f"{path}-wal")
    modes = ["", "&vfs=unix-none" if log.exists() and log.stat().st_size else "&immutable=1"]
    for mode in modes:
        connection = _sqlite_connection(uri + mode, BUSY_SECONDS)
        try:
            if mode == "&vfs=unix-none":  # keep the log's index in memory
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA user_version").fetchone()
            return connection
        except BaseException as error:
            connection.close()
            code = error.sqlite_errorcode & 0xFF if isinstance(error, sqlite3.Error) else 0
            if mode or code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
    raise AssertionError("the second mode returns or raises")


def _sqlite_connection(uri: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    return connection


def _make_private(path: Path) -> None:
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        with contextlib.suppress(OSError):  # missing, another user's, or on a read-only disk
            if stat.S_IMODE(file.stat().st_mode) & 0o077:
                file.chmod(0o600)
