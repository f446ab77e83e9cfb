"""From what a person typed to the messages that have it.

A message has to have all words of the query: whole, without regard to case and accents, the last
one as a beginning. Symbols count (`C++`), punctuation does not (query.py). If the query has a
script without spaces, each of its words is looked for as a part of the text (case does not
matter, accents do), in the messages that have such a script.

Common words are in most messages, and ranking all of those takes seconds in a large history: only
the newest 2,000 that match are ranked (bm25), and only those that are shown get a snippet. No
index has symbols: they are searched in the newest 10,000 messages that have the query's words or,
if it has no words, in the newest 100,000 messages.

A title that a person gave is not in any message: conversations with a matching title come first,
unless one of their messages was found.
"""

import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence

from mmchat.history.errors import DamagedError
from mmchat.history.query import Word, all_of, quoted, words_of
from mmchat.history.text import composed, folded
from mmchat.history.titles import of_titles
from mmchat.history.types import Hit

_RANKED = 2_000
_READ = 10_000  # messages that have the words, read to see whether they have the symbols
_READ_OF_ALL = 100_000  # messages, if there are only symbols to look for
_AROUND = 120  # characters of a snippet on each side of the first mark

_Marks = tuple[tuple[int, int], ...]


def search(connection: sqlite3.Connection, query: str, limit: int) -> list[Hit]:
    """The best `limit` messages for any string; none if it has no word."""
    words = words_of(query)
    if not words or limit < 1:
        return []
    if any(word.unspaced for word in words):
        hits = _by_parts(connection, words, limit)
    elif any(word.symbols for word in words):
        hits = _by_symbols(connection, words, limit)
    else:
        hits = _by_words(connection, words, limit)
    known = {hit.conversation_id for hit in hits}
    titled = of_titles(connection, words, known, max(1, limit // 2))
    return [*titled, *hits][:limit]


def _by_words(connection: sqlite3.Connection, words: Sequence[Word], limit: int) -> list[Hit]:
    match = all_of(words)
    if not match:
        return []
    # Marks that no text can contain, by accident or on purpose.
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


def _by_symbols(connection: sqlite3.Connection, words: Sequence[Word], limit: int) -> list[Hit]:
    """Finds the words in the index, and the symbols by reading the texts."""
    patterns = [re.compile(word.pattern()) for word in words]
    symbols = sorted({word.symbols for word in words} - {""})
    where = " AND ".join(["instr(m.text, ?)"] * len(symbols))
    match = all_of(words)
    if match:
        spelled = [re.compile(word.pattern()) for word in words if word.indexed and word.symbols]
        if spelled:
            where += " AND has_all(m.text)"
            connection.create_function(
                "has_all", 1, lambda text: all(one.search(folded(text)) for one in spelled)
            )
        oldest = connection.execute(
            "SELECT rowid FROM message_words WHERE message_words MATCH ?"
            " ORDER BY rowid DESC LIMIT 1 OFFSET ?",
            (match, _READ),
        ).fetchone()
        where += " AND m.id > ?"
        values = [*symbols, oldest[0] if oldest else 0]
        found = _best(connection, "message_words", match, where, values, limit)
    else:
        found = _newest(
            connection,
            f"m.id > (SELECT max(id) FROM message) - {_READ_OF_ALL} AND {where}",
            symbols,
            limit,
        )
    places = re.compile("|".join(f"(?:{one.pattern})" for one in patterns))
    hits = []
    for message_id in found:
        text = composed(_text(connection, message_id))
        hits.append(_hit(connection, message_id, *_around(text, folded(text), places)))
    return hits


def _by_parts(connection: sqlite3.Connection, words: Sequence[Word], limit: int) -> list[Hit]:
    """Finds words of three or more characters in the trigram index, shorter ones by reading.

    If every word is shorter, the texts are read from the newest on until there are enough hits:
    quick for a common word, and for a rare one a pass over all messages with such a script.
    """
    parts = [word.text for word in words]
    long = [part for part in parts if len(part) >= 3]
    conditions, values = ["m.unspaced"], []
    for part in parts:
        if len(part) < 3:
            spellings = {part, part.lower(), part.upper(), part.title()}
            conditions.append(f"({' OR '.join(['instr(m.text, ?)'] * len(spellings))})")
            values += sorted(spellings)
    where = " AND ".join(conditions)
    if long:
        match = " AND ".join(map(quoted, long))
        found = _best(connection, "message_trigrams", match, where, values, limit)
    else:
        found = _newest(connection, where, values, limit)
    places = re.compile("|".join(map(re.escape, parts)), re.IGNORECASE)
    hits = []
    for message_id in found:
        text = _text(connection, message_id)
        hits.append(_hit(connection, message_id, *_around(text, text, places)))
    return hits


def _best(
    connection: sqlite3.Connection,
    table: str,
    match: str,
    where: str,
    values: Iterable[object],
    limit: int,
) -> list[int]:
    """The ids of the best among the newest messages that match and meet `where` (alias `m`)."""
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


def _newest(
    connection: sqlite3.Connection, where: str, values: Iterable[object], limit: int
) -> list[int]:
    """The ids of the newest complete messages that meet `where` (alias `m`)."""
    found = connection.execute(
        f"SELECT m.id FROM message m WHERE {where} AND m.state <> 'streaming'"
        " ORDER BY m.id DESC LIMIT ?",
        (*values, limit),
    )
    return [row["id"] for row in found]


def _text(connection: sqlite3.Connection, message_id: int) -> str:
    (text,) = connection.execute("SELECT text FROM message WHERE id = ?", (message_id,)).fetchone()
    if not isinstance(text, str):
        raise DamagedError
    return text


def _around(text: str, searched: str, places: re.Pattern[str]) -> tuple[str, _Marks]:
    """The text around the first of the `places`, and the positions of all places in it.

    searched: `text` in the form that `places` match, with the same length.
    """
    first = places.search(searched)
    middle = first.start() if first else 0
    low, high = max(0, middle - _AROUND // 4), min(middle + _AROUND, len(text))
    before = "…" if low else ""
    line = before + text[low:high] + ("…" if high < len(text) else "")
    shift = len(before) - low
    marks = tuple(
        (match.start() + shift, match.end() + shift)
        for match in places.finditer(searched, low, high)
    )
    return line, marks


def _unmarked(marked: str, start: str, end: str) -> tuple[str, _Marks]:
    """The text around the first mark, and the positions of the marks in it."""
    text, *pieces = marked.split(start)
    places: list[tuple[int, int]] = []
    for piece in pieces:
        inside, _, after = piece.partition(end)
        places.append((len(text), len(text) + len(inside)))
        text += inside + after
    # A word may be megabytes long.
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
    if row is None:
        raise DamagedError
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
