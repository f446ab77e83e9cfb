"""Reads rows and converts them to the types that the history returns.

The types are checked, because a damaged file can contain anything.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import msgspec

from mmchat.history.errors import DamagedError, MissingError
from mmchat.history.types import Conversation, Message, Origin

ORIGIN_COLUMNS = tuple(field.name for field in fields(Origin))

_CONVERSATIONS = """
SELECT c.id, c.title, c.created, c.updated, c.system, c.head_id,
  (SELECT count(*) FROM message m WHERE m.conversation_id = c.id) AS messages,
  coalesce(CASE h.state WHEN 'streaming'
    THEN (SELECT substr(k.text, 1, 200) FROM chunk k WHERE k.message_id = h.id AND k.number = 0)
    ELSE substr(h.text, 1, 200) END, '') AS last_text,
  (SELECT json_group_array(name) FROM
    (SELECT name FROM tag WHERE conversation_id = c.id ORDER BY name)) AS tags
FROM conversation c LEFT JOIN message h ON h.id = c.head_id
"""

_MESSAGES = f"""
SELECT m.id, m.conversation_id, m.parent_id, m.role, m.text, m.created, m.state, m.error, m.writer,
  (SELECT count(*) FROM message s WHERE s.conversation_id = m.conversation_id
     AND s.parent_id IS m.parent_id AND s.id <= m.id) AS sibling,
  (SELECT count(*) FROM message s WHERE s.conversation_id = m.conversation_id
     AND s.parent_id IS m.parent_id) AS siblings,
  r.rating, r.rated, k.corrects,
  {", ".join(f"o.{column} AS {column}" for column in ORIGIN_COLUMNS)}
FROM message m LEFT JOIN origin o ON o.message_id = m.id
  LEFT JOIN rating r ON r.message_id = m.id LEFT JOIN correction k ON k.message_id = m.id
"""

BRANCH = """
m.id IN (
  WITH RECURSIVE branch(id, parent_id) AS (
    SELECT id, parent_id FROM message WHERE id = ?
    UNION ALL
    SELECT p.id, p.parent_id FROM message p JOIN branch b ON p.id = b.parent_id
  ) SELECT id FROM branch)
"""


def conversations(
    connection: sqlite3.Connection, rest: str, values: Iterable[object]
) -> list[Conversation]:
    """The conversations (alias `c`) for the SQL in `rest`, a WHERE or ORDER BY."""
    found = connection.execute(_CONVERSATIONS + rest, tuple(values))
    return [
        msgspec.convert({**dict(row), "tags": _from_json(row["tags"])}, Conversation)
        for row in found
    ]


def conversation(connection: sqlite3.Connection, conversation_id: int) -> Conversation:
    found = conversations(connection, "WHERE c.id = ?", (conversation_id,))
    if not found:
        raise MissingError(
            f"There is no conversation {conversation_id}: `mmchat history list` lists them."
        )
    return found[0]


def messages(
    connection: sqlite3.Connection,
    where: str,
    values: Iterable[object],
    is_gone: Callable[[str], bool],
) -> list[Message]:
    """The messages (alias `m`) for the condition `where`, parents before children.

    A streaming answer has the text of its chunks; if its writer `is_gone`, it is interrupted, even
    if the file does not say so yet.
    """
    rows = connection.execute(f"{_MESSAGES} WHERE {where} ORDER BY m.id", tuple(values)).fetchall()
    pictures = _pictures(connection, [row["id"] for row in rows])
    return [
        msgspec.convert(
            {
                **dict(row),
                "text": chunks(connection, row["id"])
                if row["state"] == "streaming"
                else row["text"],
                "images": pictures.get(row["id"], ()),
                "state": "interrupted"
                if row["state"] == "streaming" and is_gone(row["writer"])
                else row["state"],
                "origin": _origin(row),
            },
            Message,
        )
        for row in rows
    ]


def message(
    connection: sqlite3.Connection, message_id: int, is_gone: Callable[[str], bool]
) -> Message:
    found = messages(connection, "m.id = ?", (message_id,), is_gone)
    if not found:
        raise MissingError(f"There is no message {message_id}: it may have been deleted.")
    return found[0]


def tags(connection: sqlite3.Connection) -> dict[str, int]:
    """The number of conversations with each tag, the most used first."""
    counts = connection.execute(
        "SELECT name, count(*) FROM tag GROUP BY name ORDER BY count(*) DESC, name"
    )
    return msgspec.convert(dict(map(tuple, counts)), dict[str, int])


def stats(connection: sqlite3.Connection) -> dict[str, Any]:
    """Counts of rows, bytes of pictures, and how often each tag and model was used."""
    row = connection.execute(
        """
        SELECT (SELECT count(*) FROM conversation) AS conversations,
          (SELECT count(*) FROM message) AS messages,
          (SELECT count(*) FROM message WHERE role = 'assistant') AS answers,
          (SELECT count(*) FROM rating WHERE rating = 'good') AS good,
          (SELECT count(*) FROM rating WHERE rating = 'bad') AS bad,
          (SELECT count(*) FROM correction) AS corrected,
          (SELECT count(*) FROM image) AS images,
          (SELECT coalesce(sum(size), 0) FROM image) AS image_bytes,
          (SELECT min(created) FROM conversation) AS first,
          (SELECT user_version FROM pragma_user_version) AS version
        """
    ).fetchone()
    models = connection.execute(
        "SELECT model, count(*) FROM origin GROUP BY model ORDER BY count(*) DESC, model"
    )
    return {
        **dict(row),
        "tags": tags(connection),
        "models": msgspec.convert(dict(map(tuple, models)), dict[str, int]),
    }


def chunks(connection: sqlite3.Connection, message_id: int) -> str:
    """The text of a streaming answer so far."""
    select = "SELECT text FROM chunk WHERE message_id = ? ORDER BY number"
    return "".join(row["text"] for row in connection.execute(select, (message_id,)))


def _pictures(
    connection: sqlite3.Connection, message_ids: list[int]
) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    select = """
        SELECT a.message_id, i.sha256, i.mime, i.width, i.height, i.size, a.name
        FROM message_image a JOIN image i USING (sha256)
        WHERE a.message_id IN (SELECT value FROM json_each(?))
        ORDER BY a.message_id, a.position
    """
    for row in connection.execute(select, (json.dumps(message_ids),)):
        found.setdefault(row["message_id"], []).append(dict(row))
    return found


def _origin(row: sqlite3.Row) -> dict[str, Any] | None:
    if row["model"] is None:
        return None
    values = {column: row[column] for column in ORIGIN_COLUMNS}
    return {**values, "parameters": _from_json(values["parameters"])}


def _from_json(text: object) -> Any:
    if not isinstance(text, str):
        raise DamagedError
    return json.loads(text)
