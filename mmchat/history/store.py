"""The history, and its guarantees:

- When a method returns, its change is committed. Killing the process (`kill -9`, out of memory)
  loses nothing that was acknowledged; a streaming answer is read as interrupted, with every chunk
  whose `append` returned.
- A power cut or an operating system crash may lose the last changes (`synchronous=NORMAL` with
  write-ahead logging), but never the file. Otherwise every chunk would have to wait for the disk.
- On a full disk a method raises; existing data is kept and can be read, and deleting works.
- Several windows and processes may read and write at the same time. One that dies is detected by
  its lock file (lock.py), so the answer of a living one is never treated as abandoned.

Only the owner can read the file. Deleting something frees its space on the disk.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mmchat.errors import HistoryError
from mmchat.history import inserts, lock, pictures, rows
from mmchat.history.answer import Answer, join_chunks, put_origin
from mmchat.history.database import Database
from mmchat.history.errors import DiskFullError, MissingError, translate_errors
from mmchat.history.feedback import Feedback, tag_name
from mmchat.history.inserts import HEAD, Parent
from mmchat.history.search import search
from mmchat.history.types import (
    Conversation,
    Hit,
    Message,
    MessageState,
    Origin,
    Role,
    StoredImage,
)
from mmchat.sanitize import replace_surrogates


class History(Feedback):
    """All conversations and pictures; each window opens it once and closes it at the end.

    It is thread-safe. Methods raise HistoryError for what a user can fix: no such conversation, a
    full disk, a damaged or locked file.
    """

    def __init__(self, database: Database) -> None:
        """Use `open`, which prepares the file."""
        super().__init__(database)
        self._writer: lock.WriterLock | None = None
        self._answers: set[Answer] = set()

    @classmethod
    def open(cls, path: Path | None = None) -> "History":
        """Opens the history at `path`, by default the user's own; creates it if there is none.

        Raises:
            HistoryError: the file cannot be used, or a newer mmchat wrote it.
            SettingsError: its folder cannot be created.
        """
        from mmchat.settings import paths, private_dir

        path = paths().history_db if path is None else path
        if not os.path.exists(path):  # noqa: PTH110 - False also for a folder that cannot be entered
            private_dir(path.parent)
        history = cls(Database.open(path))
        # This may fail on a full disk or a read-only file, but abandoned answers are read as
        # interrupted anyway.
        with contextlib.suppress(HistoryError):
            history._interrupt_abandoned()
        return history

    @property
    def file(self) -> Path:
        """The database file."""
        return self._database.path

    def close(self) -> None:
        """Ends streaming answers as interrupted, and closes the file."""
        for answer in tuple(self._answers):
            try:
                answer.interrupt()
            except MissingError:  # deleted by another window
                continue
            except HistoryError:  # full disk or locked: they are read as interrupted anyway
                break
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        self._database.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Conversations

    def new_conversation(self, title: str = "", system: str = "") -> Conversation:
        with self._database.write() as connection:
            return rows.conversation(
                connection, inserts.add_conversation(connection, title, system)
            )

    def conversations(
        self, limit: int = 200, before: float | None = None, tag: str | None = None
    ) -> list[Conversation]:
        """The newest `limit` conversations, or those with the `tag`.

        before: the `updated` of the last conversation of the previous page.
        """
        where = "c.updated < ?"
        values: list[object] = [float("inf") if before is None else before]
        if tag is not None:
            where += " AND c.id IN (SELECT conversation_id FROM tag WHERE name = ?)"
            values.append(tag_name(tag))
        with self._database.read() as connection:
            return rows.conversations(
                connection,
                f"WHERE {where} ORDER BY c.updated DESC, c.id DESC LIMIT ?",
                (*values, limit),
            )

    def conversation(self, conversation_id: int) -> Conversation:
        with self._database.read() as connection:
            return rows.conversation(connection, conversation_id)

    def latest(self) -> Conversation | None:
        """The most recently used conversation; None if there is none."""
        return next(iter(self.conversations(limit=1)), None)

    def rename(self, conversation_id: int, title: str) -> Conversation:
        return self._change(conversation_id, "title", title)

    def set_system(self, conversation_id: int, text: str) -> Conversation:
        return self._change(conversation_id, "system", text)

    def delete(self, conversation_id: int) -> None:
        """Deletes a conversation, its messages and the pictures that only it uses."""
        try:
            with self._database.write(closing=True) as connection:
                _delete(connection, conversation_id)
        except DiskFullError:  # the log of a deletion needs space, too
            with self._database.write_in_place() as connection:
                _delete(connection, conversation_id)
            return
        # It is deleted; if the file is busy, the space is freed another time.
        with contextlib.suppress(HistoryError):
            try:
                self._database.shrink()
            except DiskFullError:
                with self._database.write_in_place():
                    pass  # this shrinks the file

    def set_head(self, conversation_id: int, message_id: int) -> Conversation:
        """Switches to the branch with `message_id`, down to the newest message under it."""
        with self._database.write() as connection:
            inserts.require_message(connection, conversation_id, message_id)
            # A child is newer than its parent, so the newest has no child.
            connection.execute(
                """
                UPDATE conversation SET head_id = (
                  WITH RECURSIVE under(id) AS (
                    SELECT ? UNION ALL
                    SELECT m.id FROM message m JOIN under u ON m.parent_id = u.id
                  ) SELECT max(id) FROM under)
                WHERE id = ?
                """,
                (message_id, conversation_id),
            )
            return rows.conversation(connection, conversation_id)

    # Pictures

    def add_image(
        self, data: bytes, *, mime: str, width: int, height: int, name: str
    ) -> StoredImage:
        """Stores a picture's bytes, only once; messages refer to its sha256."""
        image = StoredImage(hashlib.sha256(data).hexdigest(), mime, width, height, len(data), name)
        with self._database.write() as connection:
            pictures.put(connection, image, data)
        return image

    def image_data(self, sha256: str) -> bytes:
        """The original bytes of a picture."""
        with self._database.read() as connection:
            return pictures.data(connection, sha256)

    # Messages

    def add_message(
        self,
        conversation_id: int,
        role: Role,
        text: str,
        *,
        parent_id: Parent = HEAD,
        images: Sequence[str] = (),
        state: MessageState = "complete",
        error: str = "",
        origin: Origin | None = None,
    ) -> Message:
        """Adds a complete message; it becomes the head.

        parent_id: if it has a child already, the message becomes a sibling; None adds a sibling of
        the conversation's first message. images: sha256 hashes from `add_image`, in order.

        The first user text becomes the title of a conversation without one.
        """
        if state == "streaming":
            raise ValueError("use begin_answer for a streaming answer")
        with self._database.write() as connection:
            message_id = inserts.add_message(
                connection, conversation_id, parent_id, role, state, text, error
            )
            pictures.attach(connection, message_id, images)
            if origin is not None:
                put_origin(connection, message_id, origin)
            return self._read(connection, message_id)

    def begin_answer(
        self, conversation_id: int, *, parent_id: Parent = HEAD, origin: Origin
    ) -> Answer:
        """Begins a streaming answer; it becomes the head. All readers see its chunks."""
        with translate_errors(self._database.path), self._database.write() as connection:
            begun = self._insert_answer(connection, conversation_id, parent_id, origin)
        return self._track(begun)

    def say(
        self,
        conversation_id: int | None,
        text: str,
        *,
        images: Sequence[tuple[StoredImage, bytes]] = (),
        parent_id: Parent = HEAD,
        origin: Origin,
        system: str = "",
    ) -> tuple[Message, Answer]:
        """Stores a user message with its pictures and begins its answer, in one transaction.

        Without a `conversation_id`, begins a conversation with the system prompt `system`.
        """
        with translate_errors(self._database.path), self._database.write() as connection:
            if conversation_id is None:
                conversation_id = inserts.add_conversation(connection, "", system)
            # The pictures first, because one that is newer than its last message counts as unsent.
            for image, data in images:
                pictures.put(connection, image, data)
            user_id = inserts.add_message(connection, conversation_id, parent_id, "user", text=text)
            pictures.attach(connection, user_id, [image.sha256 for image, _ in images])
            begun = self._insert_answer(connection, conversation_id, user_id, origin)
            message = self._read(connection, user_id)
        return message, self._track(begun)

    def message(self, message_id: int) -> Message:
        with self._database.read() as connection:
            return self._read(connection, message_id)

    def branch(self, conversation_id: int) -> list[Message]:
        """The current branch, from the first message to the head."""
        with self._database.read() as connection:
            head_id = rows.conversation(connection, conversation_id).head_id
            return rows.messages(connection, rows.BRANCH, (head_id,), self._is_gone)

    def path_to(self, message_id: int) -> list[Message]:
        """The messages from the first one to this one, in any branch."""
        with self._database.read() as connection:
            self._read(connection, message_id)
            return rows.messages(connection, rows.BRANCH, (message_id,), self._is_gone)

    def siblings(self, message_id: int) -> list[Message]:
        """The messages with the same parent, including this one, oldest first."""
        with self._database.read() as connection:
            one = self._read(connection, message_id)
            return rows.messages(
                connection,
                "m.conversation_id = ? AND m.parent_id IS ?",
                (one.conversation_id, one.parent_id),
                self._is_gone,
            )

    # The whole history

    def search(self, query: str, limit: int = 20) -> list[Hit]:
        """The messages with the words of `query`, best first (search.py)."""
        with self._database.read() as connection:
            return search(connection, query, limit)

    def stats(self) -> dict[str, Any]:
        """Counts and sizes in bytes, as `history stats` prints them."""
        with self._database.read() as connection:
            figures = rows.stats(connection)
            return {**figures, "file": str(self.file), "file_bytes": self.file.stat().st_size}

    # Within a transaction

    def _insert_answer(
        self,
        connection: sqlite3.Connection,
        conversation_id: int,
        parent_id: Parent,
        origin: Origin,
    ) -> Message:
        if self._writer is None:
            self._writer = lock.WriterLock(self._database.path)
        message_id = inserts.add_message(
            connection,
            conversation_id,
            parent_id,
            "assistant",
            "streaming",
            writer=self._writer.token,
        )
        put_origin(connection, message_id, origin)
        return self._read(connection, message_id)

    def _track(self, begun: Message) -> Answer:
        """The writer for an answer that was inserted and committed; `close` ends it."""
        answer = Answer(self._database, begun, self._is_gone, self._answers.discard)
        self._answers.add(answer)
        return answer

    def _change(self, conversation_id: int, column: str, value: str) -> Conversation:
        with self._database.write() as connection:
            connection.execute(
                f"UPDATE conversation SET {column} = ? WHERE id = ?",
                (replace_surrogates(value), conversation_id),
            )
            return rows.conversation(connection, conversation_id)

    def _interrupt_abandoned(self) -> None:
        """Ends the answers of writers that died, and removes their lock files."""
        select = "SELECT id, writer FROM message WHERE state = 'streaming'"
        with self._database.read() as connection:
            streaming = connection.execute(select).fetchone()
        if streaming:
            with self._database.write() as connection:
                for row in connection.execute(select).fetchall():
                    if self._is_gone(row["writer"]):
                        join_chunks(connection, row["id"], "interrupted")
        lock.sweep_writers(self._database.path)


def _delete(connection: sqlite3.Connection, conversation_id: int) -> None:
    rows.conversation(connection, conversation_id)
    uses = pictures.last_uses(connection, conversation_id)
    connection.execute("UPDATE conversation SET head_id = NULL WHERE id = ?", (conversation_id,))
    connection.execute("DELETE FROM message WHERE conversation_id = ?", (conversation_id,))
    connection.execute("DELETE FROM conversation WHERE id = ?", (conversation_id,))
    pictures.collect_unused(connection, uses)
