"""Translates errors of SQLite and the file system into sentences for users."""

import contextlib
import errno
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mmchat.errors import HistoryError
from mmchat.history import schema


class MissingError(HistoryError):
    """There is no such row, maybe because another window deleted it."""


class DiskFullError(HistoryError):
    """The disk is full; existing data is kept."""


_DAMAGED = (
    "The history file {path} is damaged: move it away (with its -wal and -shm files) and put a "
    "backup in its place, or start again without it."
)
_FULL = (
    "The disk is full: {path} could not grow. Nothing that was saved is lost. Free some space, or "
    "delete conversations, and try again."
)
_UNWRITABLE = (
    "The history file {path} cannot be written: make the file and its folder writable for you, or "
    "set MMCHAT_HOME to a folder that is."
)
_SENTENCES = {
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: "{path} is not a database: move it away to start a new history, "
    "or put a backup in its place.",
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: "The history file {path} cannot be opened: make the file and its "
    "folder readable and writable for you, or set MMCHAT_HOME to a folder that is.",
    sqlite3.SQLITE_BUSY: "The history file {path} is locked by another program: end that program "
    "(maybe a backup or a database browser) and try again.",
    sqlite3.SQLITE_LOCKED: "The history file {path} is locked by another program: end that "
    "program and try again.",
    sqlite3.SQLITE_TOOBIG: "That is too large for the history ({path}): the limit is 1 GB. Make it "
    "smaller.",
    sqlite3.SQLITE_IOERR: "The disk reported an error on {path} ({name}). Nothing that was "
    "saved is lost: check the disk and try again.",
}


_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class DamagedError(Exception):
    """Rows are inconsistent; `translate_errors` turns it into a HistoryError."""


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turns errors that a user can fix into HistoryError; others are bugs and pass through."""
    try:
        yield
    except sqlite3.Error as error:
        if is_full(error, path):
            raise disk_full(path) from error
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # raised by Python's module, not by SQLite
            if isinstance(error, sqlite3.OperationalError):  # a text is not valid UTF-8
                raise damaged(path) from error
            raise
        sentence = _SENTENCES.get(code & 0xFF)
        if sentence is None:
            if _is_damaged(path):
                raise damaged(path) from error
            raise
        raise HistoryError(sentence.format(path=path, name=error.sqlite_errorname)) from error
    except (
        DamagedError,
        UnicodeDecodeError,
        json.JSONDecodeError,
        msgspec.ValidationError,
    ) as error:
        raise damaged(path) from error
    except OverflowError as error:  # a number over 64 bits, which a user typed
        raise HistoryError("There is nothing with this number in the history.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise HistoryError(_UNWRITABLE.format(path=path)) from error
        raise HistoryError(
            f"The history file {path} cannot be used ({error.strerror}): check its folder."
        ) from error


def _is_damaged(path: Path) -> bool:
    """Whether a damaged file caused an error that could also be a bug in our SQL."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            intact = connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
            orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
            if not intact or orphan is not None or not schema.is_intact(connection):
                return True
            schema.check_indexes(connection)  # in a transaction that is never committed
            return False
    except UnicodeDecodeError:
        return True
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)  # a text that is not valid UTF-8 has none
        return code is None or code & 0xFF in _DAMAGE_CODES


def damaged(path: Path) -> HistoryError:
    return HistoryError(_DAMAGED.format(path=path))


def disk_full(path: Path) -> DiskFullError:
    return DiskFullError(_FULL.format(path=path))


def is_full(error: sqlite3.Error, path: Path) -> bool:
    """Whether a full disk caused the error: for its log and index, SQLite reports other errors."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
        return True
    return code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and not free_space(path)


def free_space(path: Path) -> int:
    """Free bytes on the disk of `path`; 0 if no file can be created."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return sys.maxsize  # a later write reports the error
    can_create = disk.f_files == 0 or disk.f_favail > 0
    return disk.f_bavail * disk.f_frsize if can_create else 0
