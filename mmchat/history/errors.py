"""Errors of SQLite and of the file system, as sentences that a person can act on."""

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
    """What was asked for does not exist, or not any more: another window may have deleted it."""


class DiskFullError(HistoryError):
    """There is no room on the disk; what was there before stays."""


_DAMAGED = (
    "The history file {path} is damaged: move it away (with its -wal and -shm files) and put a "
    "backup in its place, or start again without it."
)
_FULL = (
    "The disk is full: {path} could not grow, and what was there stays. Free some space, or "
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
    "(a backup or a database browser, perhaps) and try again.",
    sqlite3.SQLITE_LOCKED: "The history file {path} is locked by another program: end that "
    "program and try again.",
    sqlite3.SQLITE_TOOBIG: "That is too large for the history ({path}): it takes up to 1 GB in "
    "one piece. Make it smaller.",
    sqlite3.SQLITE_IOERR: "The disk reported an error on {path} ({name}), and what was there "
    "stays: check the disk and try again.",
}


_OF_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


class DamagedError(Exception):
    """Rows contradict each other; becomes a HistoryError in `translate_errors`."""


@contextlib.contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turns errors that a person can act on into HistoryError; others are bugs and pass."""
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
    except OverflowError as error:  # a number past 64 bits, which only a person can have typed
        raise HistoryError("There is nothing with that number in the history.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise HistoryError(_UNWRITABLE.format(path=path)) from error
        raise HistoryError(
            f"The history file {path} cannot be used ({error.strerror}): check its folder."
        ) from error


def _is_damaged(path: Path) -> bool:
    """Whether the file is the reason of an error that could also be a mistake in our statements."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            whole = connection.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
            orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
            if not whole or orphan is not None or not schema.is_whole(connection):
                return True
            schema.check_indexes(connection)  # in a transaction that is never committed
            return False
    except UnicodeDecodeError:
        return True
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)  # a text that is not valid UTF-8 has none
        return code is None or code & 0xFF in _OF_DAMAGE


def damaged(path: Path) -> HistoryError:
    return HistoryError(_DAMAGED.format(path=path))


def disk_full(path: Path) -> DiskFullError:
    return DiskFullError(_FULL.format(path=path))


def is_full(error: sqlite3.Error, path: Path) -> bool:
    """Whether a full disk is the reason: for its log and index SQLite reports other errors."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE):
        return True
    return code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and not free_space(path)


def free_space(path: Path) -> int:
    """Bytes that the disk of `path` has left for us; 0 if it takes no more files."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return sys.maxsize  # whoever writes gets the error that says why
    takes_files = disk.f_files == 0 or disk.f_favail > 0
    return disk.f_bavail * disk.f_frsize if takes_files else 0
