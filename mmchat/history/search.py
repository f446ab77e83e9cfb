"""From what a person typed to the messages that have it.

A message has a query's words if it has all of them: whole, without regard to
case and accents, the last one as a beginning. Where the query has a script
without spaces, each word is looked for as a part of the text (case counts for
nothing, accents do), in the messages that have such a script.

Common words are in most messages, and ranking those costs seconds in a large
history: only the newest 2,000 that match are ranked (bm25), and only those
shown get a snippet.

The title that a person gave is in no message: such conversations come first,
where no message of theirs was found.
"""

import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterable

from mmchat.history.text import UNSPACED, storable
from mmchat.history.titles import of_titles
from mmchat.history.types import Hit

_RANKED = 2_000
_WORDS = 32  # of a query; a pasted page is no search
_AROUND = 120  # characters of a snippet on each side of the first mark

_Marks = tuple[tuple[int, int], ...]


def search(connection: sqlite3.Connection, query: str, limit: int) -> list[Hit]:
    """The best `limit` messages for any string; none where it has no word."""
    words = _words(query)
    if not words or limit < 1:
        return []
    parts = any(UNSPACED.search(word) for word in words)
    hits = (_of_parts if parts else _of_words)(connection, words, limit)
    known = {hit.conversation_id for hit in hits}
    titled = of_titles(connection, words, known, max(1, limit // 2))
    return [*titled, *hits][:limit]


def _words(query: str) -> list[str]:
    """The parts of a query that have a letter or a digit, free of NUL and surrogates."""
    parts = storable(query[:10_000]).replace("\0", " ").split()
    return [part for part in parts if any(map(_is_letter, part))][:_WORDS]


def _is_letter(character: str) -> bool:
    """Whether the tokenizer unicode61 takes it for a part of a word."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def _quoted(words: Iterable[str]) -> str:
    """Phrases in FTS5's language, all of them wanted: what is in one means only itself."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in words)


def _of_words(connection: sqlite3.Connection, words: list[str], limit: int) -> list[Hit]:
    match = _quoted(words) + "*"
    # Marks that no text can contain by accident or on purpose.
    start, end = f"<{secrets.token_hex(8)}>", f"<{secrets.token_hex(8)}>"
    hits = []
    for message_id in _best(connection, "message_words", match, "", (), limit):
        (marked,) = connection.execute(
            "SELECT snippet(message_words, 0, ?, ?, '…', 24) FROM message_words"
            " WHERE message_words MATCH ? AND rowid = ?",
            (start, end, match, message_id),
        ).fetchone()
        hits.append(_hit(connection, message_id, *_unmarked(marked, start, end)))
    return hits


def _of_parts(connection: sqlite3.Connection, words: list[str], limit: int) -> list[Hit]:
    """By the trigram index, which knows nothing under three characters, and by reading.

    Where every word is shorter, the texts are read from the newest on until
    there are enough: quick for what is common, and for what is rare one pass
    over the messages that have such a script.
    """
    long = [word for word in words if len(word) >= 3]
    conditions, values = ["m.unspaced"], []
    for word in words:
        if len(word) < 3:
            spellings = {word, word.lower(), word.upper(), word.title()}
            conditions.append(f"({' OR '.join(['instr(m.text, ?)'] * len(spellings))})")
            values += sorted(spellings)
    where = " AND ".join(conditions)
    if long:
        found = _best(connection, "message_trigrams", _quoted(long), where, values, limit)
    else:
        select = f"SELECT m.id FROM message m WHERE {where} AND m.state <> 'streaming'"
        rows = connection.execute(f"{select} ORDER BY m.id DESC LIMIT ?", (*values, limit))
        found = [row["id"] for row in rows]
    places = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
    hits = []
    for message_id in found:
        (text,) = connection.execute(
            "SELECT text FROM message WHERE id = ?", (message_id,)
        ).fetchone()
        first = places.search(text)
        middle = first.start() if first else 0
        low, high = max(0, middle - _AROUND // 4), middle + _AROUND
        line = ("…" if low else "") + text[low:high] + ("…" if high < len(text) else "")
        marks = tuple(match.span() for match in places.finditer(line))
        hits.append(_hit(connection, message_id, line, marks))
    return hits


def _best(
    connection: sqlite3.Connection,
    table: str,
    match: str,
    where: str,
    values: Iterable[str],
    limit: int,
) -> list[int]:
    """The ids of the best of the newest messages that match and fulfil `where` (alias `m`)."""
    source = f"FROM {table} f WHERE {table} MATCH ?"
    if where:
        source = (
            f"FROM {table} f JOIN message m ON m.id = f.rowid WHERE {table} MATCH ? AND {where}"
        )
    newest = connection.execute(
        f"SELECT f.rowid {source} ORDER BY f.rowid DESC LIMIT ?", (match, *values, _RANKED)
    ).fetchall()
    if not newest:
        return []
    best = connection.execute(
        f"SELECT f.rowid {source} AND f.rowid >= ? ORDER BY bm25({table}), f.rowid DESC LIMIT ?",
        (match, *values, newest[-1][0], limit),
    )
    return [row[0] for row in best]


def _unmarked(marked: str, start: str, end: str) -> tuple[str, _Marks]:
    """The text around the first mark, and the places of the marks in it."""
    text, *pieces = marked.split(start)
    places: list[tuple[int, int]] = []
    for piece in pieces:
        inside, _, after = piece.partition(end)
        places.append((len(text), len(text) + len(inside)))
        text += inside + after
    # A "word" may be megabytes long.
    low = max(0, places[0][0] - _AROUND) if places else 0
    line = text[low : low + 2 * _AROUND]
    return line, tuple((begin - low, stop - low) for begin, stop in places)


def _hit(connection: sqlite3.Connection, message_id: int, line: str, marks: _Marks) -> Hit:
    # Character by character, so that the marks stay right.
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in line).rstrip()
    row = connection.execute(
        "SELECT m.conversation_id, c.title, m.role, m.created FROM message m"
        " JOIN conversation c ON c.id = m.conversation_id WHERE m.id = ?",
        (message_id,),
    ).fetchone()
    inside = ((begin, min(stop, len(line))) for begin, stop in marks)
    return Hit(
        message_id=message_id,
        conversation_id=row["conversation_id"],
        title=row["title"],
        role=row["role"],
        snippet=line,
        marks=tuple((begin, stop) for begin, stop in inside if begin < stop),
        created=row["created"],
    )
