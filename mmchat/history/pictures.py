"""Stores pictures: the bytes once, by sha256, and a name for each message."""

import sqlite3
import time
from collections.abc import Sequence

from mmchat.errors import HistoryError
from mmchat.history.types import StoredImage
from mmchat.sanitize import replace_surrogates

_UNSENT_SECONDS = 24 * 3600.0


def put(connection: sqlite3.Connection, image: StoredImage, data: bytes) -> None:
    """Stores `data`; if it exists already, updates its name and time."""
    connection.execute(
        """
        INSERT INTO image (sha256, mime, width, height, size, name, added, data)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (sha256) DO UPDATE SET name = excluded.name, added = excluded.added
        """,
        (
            image.sha256,
            replace_surrogates(image.mime),
            image.width,
            image.height,
            image.size,
            replace_surrogates(image.name),
            time.time(),
            data,
        ),
    )


def data(connection: sqlite3.Connection, sha256: str) -> bytes:
    select = "SELECT data FROM image WHERE sha256 = ?"
    row = connection.execute(select, (replace_surrogates(sha256),)).fetchone()
    if row is None:
        raise _missing(sha256)
    return bytes(row["data"])


def attach(connection: sqlite3.Connection, message_id: int, hashes: Sequence[str]) -> None:
    """Attaches pictures to a message, in order, under their current names."""
    for position, sha256 in enumerate(hashes):
        attached = connection.execute(
            "INSERT INTO message_image (message_id, position, sha256, name)"
            " SELECT ?, ?, sha256, name FROM image WHERE sha256 = ?",
            (message_id, position, replace_surrogates(sha256)),
        ).rowcount
        if attached != 1:
            raise _missing(sha256)


def collect_unused(connection: sqlite3.Connection, last_uses: dict[str, float]) -> None:
    """Removes unused pictures: those in `last_uses`, and old ones that were never sent.

    A picture that was added again after its last use is about to be sent from another window, and
    is kept.
    """
    unused = "NOT EXISTS (SELECT 1 FROM message_image a WHERE a.sha256 = image.sha256)"
    connection.executemany(
        f"DELETE FROM image WHERE sha256 = ? AND added <= ? AND {unused}", last_uses.items()
    )
    connection.execute(
        f"DELETE FROM image WHERE added < ? AND {unused}", (time.time() - _UNSENT_SECONDS,)
    )


def last_uses(connection: sqlite3.Connection, conversation_id: int) -> dict[str, float]:
    """The sha256 of each picture of a conversation, and when it was last attached there."""
    found = connection.execute(
        "SELECT a.sha256, max(m.created) FROM message m JOIN message_image a"
        " ON a.message_id = m.id WHERE m.conversation_id = ? GROUP BY a.sha256",
        (conversation_id,),
    )
    return dict(map(tuple, found))


def _missing(sha256: str) -> HistoryError:
    return HistoryError(
        f"The history has no picture {replace_surrogates(sha256)[:12]}: attach it again from its file."
    )
