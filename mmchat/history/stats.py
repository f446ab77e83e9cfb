"""Statistics of the history."""

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from mmchat.history import feedback


def read_stats(connection: sqlite3.Connection, path: Path) -> dict[str, Any]:
    """Counts and sizes in bytes, as `history stats` prints them."""
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
        "tags": feedback.tags(connection),
        "models": msgspec.convert(dict(map(tuple, models)), dict[str, int]),
        "file": str(path),
        "file_bytes": path.stat().st_size,
    }
