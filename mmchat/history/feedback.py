"""Ratings, corrections and tags, and the training examples from them."""

import sqlite3
import time
import unicodedata
from collections.abc import Collection, Iterable
from typing import Literal

from mmchat.errors import HistoryError
from mmchat.history import inserts, lock, rows
from mmchat.history.database import Database
from mmchat.history.training_examples import training_examples
from mmchat.history.types import Conversation, Message, Rating, TrainingExample
from mmchat.sanitize import clean, replace_surrogates

_TAG_LENGTH = 40
_JOINERS = str.maketrans("", "", "\u200c\u200d")  # parts of words and of emoji


class Feedback:
    """The part of `History` for feedback; its methods raise the same errors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rate(self, message_id: int, rating: Rating | None) -> Message:
        """Stores the rating of an answer; None removes it.

        Raises:
            HistoryError: it is not an answer, or is still being written.
        """
        with self._database.write() as connection:
            _rate(connection, self._read(connection, message_id), rating)
            return self._read(connection, message_id)

    def correct(self, message_id: int, text: str) -> Message:
        """Stores `text` as the correction of an answer: a sibling of the answer, and the new head.

        The answer itself is not changed. If `text` equals the answer, nothing is stored, and the
        answer is returned.

        Raises:
            HistoryError: it is not an answer, or is still being written, or `text` is empty.
        """
        with self._database.write() as connection:
            message = self._read(connection, message_id)
            return self._read(connection, _correct(connection, message, text))

    def tag(self, conversation_id: int, name: str) -> Conversation:
        """Adds a tag to a conversation: one word, stored in lower case.

        Raises:
            HistoryError: `name` is not a tag.
        """
        with self._database.write() as connection:
            rows.conversation(connection, conversation_id)
            connection.execute(
                "INSERT OR IGNORE INTO tag (conversation_id, name) VALUES (?, ?)",
                (conversation_id, tag_name(name)),
            )
            return rows.conversation(connection, conversation_id)

    def untag(self, conversation_id: int, name: str) -> Conversation:
        """Removes a tag, if the conversation has it."""
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM tag WHERE conversation_id = ? AND name = ?",
                (conversation_id, tag_name(name)),
            )
            return rows.conversation(connection, conversation_id)

    def set_tags(self, conversation_id: int, names: Iterable[str]) -> Conversation:
        """Replaces the tags of a conversation, in one transaction."""
        tags = {tag_name(name) for name in names}
        with self._database.write() as connection:
            rows.conversation(connection, conversation_id)
            connection.execute("DELETE FROM tag WHERE conversation_id = ?", (conversation_id,))
            connection.executemany(
                "INSERT INTO tag (conversation_id, name) VALUES (?, ?)",
                ((conversation_id, name) for name in tags),
            )
            return rows.conversation(connection, conversation_id)

    def tags(self) -> dict[str, int]:
        """The number of conversations with each tag, the most used first."""
        with self._database.read() as connection:
            return rows.tags(connection)

    def training_examples(
        self,
        *,
        ratings: Collection[Literal["good", "corrected"]] = ("good", "corrected"),
        since: float | None = None,
        until: float | None = None,
        conversations: Collection[int] = (),
        tags: Collection[str] = (),
    ) -> list[TrainingExample]:
        """The answers to train on, in the order of their conversations (training_examples.py).

        since, until: the range of the time of the rating or correction, whichever is later; `until`
        is exclusive. conversations, tags: only these conversations, and only those with one of
        these tags; all if empty.

        Raises:
            HistoryError: a tag is not valid.
        """
        with self._database.read() as connection:
            return training_examples(
                connection,
                self._is_gone,
                ratings,
                float("-inf") if since is None else since,
                float("inf") if until is None else until,
                conversations,
                [tag_name(name) for name in tags],
            )

    # Within a transaction

    def _read(self, connection: sqlite3.Connection, message_id: int) -> Message:
        return rows.message(connection, message_id, self._is_gone)

    def _is_gone(self, writer: str) -> bool:
        return lock.writer_is_gone(self._database.path, writer)


def _rate(connection: sqlite3.Connection, message: Message, rating: Rating | None) -> None:
    """Raises HistoryError if it is not an answer, or is still being written."""
    _require_answer(message)
    if rating is None:
        connection.execute("DELETE FROM rating WHERE message_id = ?", (message.id,))
    else:
        connection.execute(
            "INSERT OR REPLACE INTO rating (message_id, rating, rated) VALUES (?, ?, ?)",
            (message.id, rating, time.time()),
        )


def _correct(connection: sqlite3.Connection, message: Message, text: str) -> int:
    """Adds the correction of `message` as the head; returns its id.

    If nothing changes, returns the id of `message`. Raises HistoryError if it is not an answer or
    is still being written, or if `text` is empty.
    """
    _require_answer(message)
    text = replace_surrogates(text).strip("\r\n").rstrip()
    if not text.strip():
        raise HistoryError(
            "The correction is empty: write what the answer should have been, or rate it as bad."
        )
    if text == message.text.strip("\r\n").rstrip():
        return message.id
    corrected = inserts.add_message(
        connection, message.conversation_id, message.parent_id, "assistant", text=text
    )
    connection.execute(
        "INSERT INTO correction (message_id, corrects) VALUES (?, ?)", (corrected, message.id)
    )
    return corrected


def _require_answer(message: Message) -> None:
    if message.role != "assistant":
        raise HistoryError(
            f"Message {message.id} is your own: only answers can be rated or corrected."
        )
    if message.state == "streaming":
        raise HistoryError(
            f"Answer {message.id} is still being written: stop it or wait until it is complete, "
            "then rate or correct it."
        )


def tag_name(name: str) -> str:
    """Normalizes a tag: one word in lower case, without a leading #.

    Raises HistoryError if it is not a tag.
    """
    word = unicodedata.normalize("NFC", clean(name, keep_newlines=False).lstrip("# ").lower())
    visible = word.translate(_JOINERS)
    if (
        not visible
        or len(word) > _TAG_LENGTH
        or not visible.isprintable()
        or set(word) & set(" ,;")
    ):
        raise HistoryError(
            f"“{clean(name[:60], keep_newlines=False)}” is not a tag. A tag is one word of up to "
            f"{_TAG_LENGTH} letters, such as birds or red-kites."
        )
    return word
