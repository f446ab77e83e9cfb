"""Searches the titles of conversations, which are not in the word index.

Words match in titles as in messages (search.py). There are few titles, so all of them are read,
newest first.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Collection, Sequence

from mmchat.history.query import Word
from mmchat.history.text import composed, fold_text
from mmchat.history.types import Hit


def search_titles(
    connection: sqlite3.Connection, words: Sequence[Word], known: Collection[int], limit: int
) -> list[Hit]:
    """The conversations not in `known` whose title has the words; each hit is their head."""
    anywhere = any(word.unspaced for word in words)
    patterns = [re.compile(word.pattern(anywhere=anywhere)) for word in words]
    hits: list[Hit] = []
    for conversation_id, title, head_id in connection.execute(
        "SELECT id, title, head_id FROM conversation WHERE head_id IS NOT NULL"
        " ORDER BY updated DESC"
    ):
        text = fold_text(title)
        if all(one.search(text) for one in patterns) and conversation_id not in known:
            marks = {match.span() for one in patterns for match in one.finditer(text)}
            hits.append(
                _hit(connection, conversation_id, title, head_id, _merge_overlaps(sorted(marks)))
            )
            if len(hits) == limit:
                break
    return hits


def _hit(
    connection: sqlite3.Connection,
    conversation_id: int,
    title: str,
    head_id: int,
    marks: tuple[tuple[int, int], ...],
) -> Hit:
    role, created = connection.execute(
        "SELECT role, created FROM message WHERE id = ?", (head_id,)
    ).fetchone()
    # Character by character, so that the positions stay correct.
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in composed(title))
    return Hit(
        message_id=head_id,
        conversation_id=conversation_id,
        title=title,
        role=role,
        snippet=line,
        marks=marks,
        created=created,
    )


def _merge_overlaps(marks: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Merges marks that overlap."""
    joined: list[tuple[int, int]] = []
    for start, end in marks:
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
