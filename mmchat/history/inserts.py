"""Inserts rows within the caller's transaction."""

import enum
import sqlite3
import time
from typing import Literal

from mmchat.history import rows
from mmchat.history.errors import MissingError
from mmchat.history.text import UNSPACED
from mmchat.history.types import MessageState, Role
from mmchat.sanitize import replace_surrogates


class _Head(enum.Enum):
    HEAD = "the conversation's head"


HEAD = _Head.HEAD
"""The default parent: the conversation's head at that moment."""

_TITLE_LENGTH = 60

Parent = int | Literal[_Head.HEAD] | None


def add_conversation(connection: sqlite3.Connection, title: str, system: str) -> int:
    now = time.time()
    cursor = connection.execute(
        "INSERT INTO conversation (title, system, created, updated) VALUES (?, ?, ?, ?)",
        (replace_surrogates(title), replace_surrogates(system), now, now),
    )
    return _new_id(cursor.lastrowid)


def add_message(
    connection: sqlite3.Connection,
    conversation_id: int,
    parent: Parent,
    role: Role,
    state: MessageState = "complete",
    text: str = "",
    error: str = "",
    writer: str | None = None,
) -> int:
    """Adds a message; it becomes the head, and the first user text becomes the title."""
    conversation = rows.conversation(connection, conversation_id)
    parent_id = conversation.head_id if parent is HEAD else parent
    if parent_id is not None and parent_id != conversation.head_id:
        require_message(connection, conversation_id, parent_id)
    now = time.time()
    text = replace_surrogates(text)
    cursor = connection.execute(
        "INSERT INTO message"
        " (conversation_id, parent_id, role, state, created, writer, unspaced, error, text)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            conversation_id,
            parent_id,
            role,
            state,
            now,
            writer,
            UNSPACED.search(text) is not None,
            replace_surrogates(error),
            text,
        ),
    )
    message_id = _new_id(cursor.lastrowid)
    title = _title_of(text) if role == "user" and not conversation.title else conversation.title
    connection.execute(
        "UPDATE conversation SET head_id = ?, updated = ?, title = ? WHERE id = ?",
        (message_id, now, title, conversation_id),
    )
    return message_id


def _title_of(text: str) -> str:
    """A title of up to 60 characters in one line, cut between words if that keeps most of it."""
    # Ten times the length is enough, however long the text is.
    line = " ".join(text[: 10 * _TITLE_LENGTH].split())
    if len(line) <= _TITLE_LENGTH:
        return line
    cut = line[:_TITLE_LENGTH]
    word = cut.rpartition(" ")[0]
    return (word if len(word) > _TITLE_LENGTH // 2 else cut).rstrip() + "…"


def require_message(connection: sqlite3.Connection, conversation_id: int, message_id: int) -> None:
    """Raises MissingError if the message is not in this conversation."""
    row = connection.execute(
        "SELECT 1 FROM message WHERE id = ? AND conversation_id = ?",
        (message_id, conversation_id),
    ).fetchone()
    if row is None:
        raise MissingError(
            f"There is no message {message_id} in conversation {conversation_id}: "
            "it may have been deleted."
        )


def _new_id(lastrowid: int | None) -> int:
    assert lastrowid is not None  # of an INSERT that succeeded
    return lastrowid
