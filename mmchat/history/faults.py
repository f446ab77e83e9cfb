"""Errors of SQLite and of the file system as sentences that a person can act on."""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mmchat.errors import HistoryError


class MissingError(HistoryError):
    """What was asked for is not there, or not any more: another window may have deleted it."""


_SENTENCES = {
    sqlite3.SQLITE_FULL: "The disk is full: {path} could not grow, and what was there stays. "
    "Free some space and try again.",
    sqlite3.SQLITE_CORRUPT: "The history file {path} is damaged: move it away (with its -wal and "
    "-shm files) and put a backup in its place, or start anew without it.",
    sqlite3.SQLITE_NOTADB: "{path} is not a database: move it away to start a new history, "
    "or put a backup in its place.",
    sqlite3.SQLITE_READONLY: "The history file {path} cannot be written: make the file and its "
    "folder writable for you, or set MMCHAT_HOME to a folder that is.",
    sqlite3.SQLITE_CANTOPEN: "The history file {path} cannot be opened: make the file and its "
    "folder readable and writable for you, or set MMCHAT_HOME to a folder that is.",
    sqlite3.SQLITE_BUSY: "The history file {path} is locked by another program: end that program "
    "(a backup or a database browser, perhaps) and try again.",
    sqlite3.SQLITE_LOCKED: "The history file {path} is locked by another program: end that "
    "program and try again.",
    sqlite3.SQLITE_TOOBIG: "That is too large for the history ({path}): it takes up to 1 GB in "
    "one piece. Make it smaller.",
    sqlite3.SQLITE_IOERR: "The disk reported an error on {path} ({name}), and what was there "
    "stays: check the disk and its free space, and try again.",
}


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what a person can mend into HistoryError; let bugs pass as they are."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)  # absent on errors of the Python module
        sentence = None if code is None else _SENTENCES.get(code & 0xFF)
        if sentence is None:
            raise
        raise HistoryError(sentence.format(path=path, name=error.sqlite_errorname)) from error
    except OverflowError as error:  # a number past 64 bits, which only a person can have typed
        raise HistoryError("There is nothing with such a number in the history.") from error
    except OSError as error:
        raise HistoryError(_of_system(error, path)) from error


def _of_system(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _SENTENCES[sqlite3.SQLITE_FULL].format(path=path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _SENTENCES[sqlite3.SQLITE_READONLY].format(path=path)
    return f"The history file {path} cannot be used ({error.strerror}): check its folder."
