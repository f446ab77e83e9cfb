"""Writes a streaming answer, and where an answer came from."""

import json
import sqlite3
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from mmchat.history import rows
from mmchat.history.database import Database
from mmchat.history.errors import MissingError
from mmchat.history.text import UNSPACED
from mmchat.history.types import Message, MessageState, Origin
from mmchat.sanitize import replace_surrogates


class Answer:
    """A streaming message: call `append`, then once `finish`, `fail` or `interrupt`.

    Each `append` is one row and one commit, so that killing the process does not lose it.
    Rewriting the message each time would cost fifty times as much, and would index all of its
    words again.

    As a context manager it calls `fail` with the message of an exception that leaves the block,
    and finishes as stopped if the block did not end it.
    """

    def __init__(
        self,
        database: Database,
        message: Message,
        is_gone: Callable[[str], bool],
        on_end: Callable[["Answer"], None],
    ) -> None:
        self.id = message.id
        """The message's id, for `History.message`."""
        self.begun = message
        """The message as it was first stored, still empty."""
        self._database = database
        self._is_gone = is_gone
        self._on_end = on_end
        self._chunks = 0

    def append(self, text: str) -> None:
        """Adds `text` at the end; does nothing if it is empty.

        Raises:
            HistoryError: the disk is full; earlier chunks are kept.
            MissingError: the answer was finished, or deleted by another window.
        """
        if not text:
            return
        with self._database.write() as connection:
            # One statement checks and writes, so that a finished answer never gets a row.
            inserted = connection.execute(
                "INSERT INTO chunk (message_id, number, text)"
                " SELECT id, ?, ? FROM message WHERE id = ? AND state = 'streaming'",
                (self._chunks, replace_surrogates(text), self.id),
            ).rowcount
            if inserted != 1:
                raise _cannot_grow(self.id)
        self._chunks += 1

    def finish(
        self,
        state: Literal["complete", "stopped", "length"] = "complete",
        origin: Origin | None = None,
    ) -> Message:
        """Joins the chunks into the message, in one transaction; `origin` holds the statistics.

        Raises:
            HistoryError: like `append`; it can be tried again.
            MissingError: like `append`.
        """
        return self._end(state, "", origin)

    def fail(self, sentence: str, origin: Origin | None = None) -> Message:
        """Ends the answer as failed; keeps the text so far, and `sentence` as its error."""
        return self._end("failed", sentence, origin)

    def interrupt(self) -> Message:
        """Ends the answer as interrupted, because the program closes."""
        return self._end("interrupted", "", None)

    def _end(self, state: MessageState, error: str, origin: Origin | None) -> Message:
        with self._database.write(closing=True) as connection:
            if not join_chunks(connection, self.id, state, error):
                raise _cannot_grow(self.id)
            if origin is not None:
                put_origin(connection, self.id, origin)
            message = rows.message(connection, self.id, self._is_gone)
        self._on_end(self)
        return message

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._database.read() as connection:
            streaming = connection.execute(
                "SELECT 1 FROM message WHERE id = ? AND state = 'streaming'", (self.id,)
            ).fetchone()
        if not streaming:
            return
        if isinstance(error, Exception):
            self.fail(str(error))
        else:
            self.finish("stopped")


def join_chunks(
    connection: sqlite3.Connection, message_id: int, state: MessageState, error: str = ""
) -> bool:
    """Moves the chunks into the message and sets its state; False if it is not streaming."""
    text = rows.chunks(connection, message_id)
    changed = connection.execute(
        "UPDATE message SET text = ?, unspaced = ?, state = ?, error = ?, writer = NULL"
        " WHERE id = ? AND state = 'streaming'",
        (text, UNSPACED.search(text) is not None, state, replace_surrogates(error), message_id),
    ).rowcount
    connection.execute("DELETE FROM chunk WHERE message_id = ?", (message_id,))
    return changed == 1


def put_origin(connection: sqlite3.Connection, message_id: int, origin: Origin) -> None:
    """Stores the message's origin, or replaces it."""
    values = [
        json.dumps(value) if isinstance(value, dict) else value
        for value in (getattr(origin, column) for column in rows.ORIGIN_COLUMNS)
    ]
    values = [replace_surrogates(value) if isinstance(value, str) else value for value in values]
    connection.execute(
        f"INSERT OR REPLACE INTO origin (message_id, {', '.join(rows.ORIGIN_COLUMNS)})"
        f" VALUES (?{', ?' * len(values)})",
        (message_id, *values),
    )


def _cannot_grow(message_id: int) -> MissingError:
    return MissingError(
        f"Answer {message_id} cannot be continued: it is complete, or its conversation was "
        "deleted in another window. Ask again."
    )
