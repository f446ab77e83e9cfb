"""An answer while it is being written, and what happens to one whose writer died."""

import json
import sqlite3
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from mmchat.history import rows
from mmchat.history.database import Database
from mmchat.history.errors import MissingError
from mmchat.history.text import UNSPACED, storable
from mmchat.history.types import Message, Origin, State


class Answer:
    """A message that grows: `append`, then once `finish`, `fail` or `interrupt`.

    Each `append` is one row and one commit: once it has returned, killing the process does not
    lose it. Rewriting the message each time would cost fifty times as much, and would index every
    word of it for the search again and again.

    As a context manager it fails, with the error's sentence, if an exception leaves the block,
    and is stopped if the block does not end it.
    """

    def __init__(
        self,
        database: Database,
        begun: Message,
        is_gone: Callable[[str], bool],
        on_end: Callable[["Answer"], None],
    ) -> None:
        self.id = begun.id
        """The message's id; `History.message` reads it at any time."""
        self.begun = begun
        """The message as it was stored, still empty."""
        self._database = database
        self._is_gone = is_gone
        self._on_end = on_end
        self._chunks = 0

    def append(self, text: str) -> None:
        """Adds `text` to the end; empty text does nothing.

        Raises:
            HistoryError: the disk is full; what was appended before stays.
            MissingError: the answer was finished, or deleted by another window.
        """
        if not text:
            return
        with self._database.write() as connection:
            # One statement checks and writes, so that a finished answer never gets a row.
            inserted = connection.execute(
                "INSERT INTO chunk (message_id, number, text)"
                " SELECT id, ?, ? FROM message WHERE id = ? AND state = 'streaming'",
                (self._chunks, storable(text), self.id),
            ).rowcount
            if inserted != 1:
                raise _is_over(self.id)
        self._chunks += 1

    def finish(
        self,
        state: Literal["complete", "stopped", "length"] = "complete",
        origin: Origin | None = None,
    ) -> Message:
        """Folds the chunks into the message, in one transaction; `origin` brings the figures.

        Raises:
            HistoryError: as `append`; it can be tried again.
            MissingError: as `append`.
        """
        return self._end(state, "", origin)

    def fail(self, sentence: str, origin: Origin | None = None) -> Message:
        """Ends the answer as failed; keeps what was written, with `sentence` beside it."""
        return self._end("failed", sentence, origin)

    def interrupt(self) -> Message:
        """Ends the answer as interrupted: the program closes before it is complete."""
        return self._end("interrupted", "", None)

    def _end(self, state: State, error: str, origin: Origin | None) -> Message:
        with self._database.write(closing=True) as connection:
            if not fold(connection, self.id, state, error):
                raise _is_over(self.id)
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
            streams = connection.execute(
                "SELECT 1 FROM message WHERE id = ? AND state = 'streaming'", (self.id,)
            ).fetchone()
        if not streams:
            return
        if isinstance(error, Exception):
            self.fail(str(error))
        else:
            self.finish("stopped")


def fold(connection: sqlite3.Connection, message_id: int, state: State, error: str = "") -> bool:
    """Makes the chunks the message's text, and `state` its state; False if it does not stream."""
    text = rows.chunks(connection, message_id)
    changed = connection.execute(
        "UPDATE message SET text = ?, unspaced = ?, state = ?, error = ?, writer = NULL"
        " WHERE id = ? AND state = 'streaming'",
        (text, UNSPACED.search(text) is not None, state, storable(error), message_id),
    ).rowcount
    connection.execute("DELETE FROM chunk WHERE message_id = ?", (message_id,))
    return changed == 1


def fold_abandoned(connection: sqlite3.Connection, is_gone: Callable[[str], bool]) -> int:
    """Marks the answers of writers that died as interrupted; returns how many."""
    select = "SELECT id, writer FROM message WHERE state = 'streaming'"
    abandoned = [row["id"] for row in connection.execute(select) if is_gone(row["writer"])]
    return sum(fold(connection, message_id, "interrupted") for message_id in abandoned)


def put_origin(connection: sqlite3.Connection, message_id: int, origin: Origin) -> None:
    """Stores how the message was made, in place of what was known before."""
    values = [
        json.dumps(value) if isinstance(value, dict) else value
        for value in (getattr(origin, column) for column in rows.ORIGIN_COLUMNS)
    ]
    values = [storable(value) if isinstance(value, str) else value for value in values]
    connection.execute(
        f"INSERT OR REPLACE INTO origin (message_id, {', '.join(rows.ORIGIN_COLUMNS)})"
        f" VALUES (?{', ?' * len(values)})",
        (message_id, *values),
    )


def _is_over(message_id: int) -> MissingError:
    return MissingError(
        f"Answer {message_id} cannot grow any more: it was finished, or its conversation was "
        "deleted in another window. Ask again."
    )
