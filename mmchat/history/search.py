"""Searches the messages.

A message must have all words of the query: whole words, ignoring case and accents; the last word
may be incomplete. Symbols count (`C++`), punctuation does not (query.py). If the query has a
script without spaces, each of its words is searched as a substring (ignoring case, but not
accents) in the messages with such a script.

Common words are in most messages, and ranking all of them takes seconds in a large history. So
only the newest 2,000 matches are ranked (bm25), and only the results get a snippet. Symbols are
not indexed: they are searched in the newest 10,000 messages with the query's words or, if it has
no words, in the newest 100,000 messages.

A title that the user gave is not in any message. Conversations with a matching title come first,
unless one of their messages was found.
"""

import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from mmchat.history.errors import DamagedError
from mmchat.history.query import Word, match_all, parse_query, quote
from mmchat.history.text import composed, fold_text
from mmchat.history.types import Hit

_MAX_RANKED = 2_000
_MAX_READ = 10_000  # messages with the words, which are read to search for the symbols
_MAX_READ_SYMBOLS_ONLY = 100_000
_CONTEXT = 120  # characters of a snippet on each side of the first mark

_Marks = tuple[tuple[int, int], ...]


def search(connection: sqlite3.Connection, query: str, limit: int) -> list[Hit]:
    """The best `limit` messages for any query; empty if it has no word."""
    words = parse_query(query)
    if not words or limit < 1:
        return []
    if any(word.unspaced for word in words):
        hits = _search_substrings(connection, words, limit)
    elif any(word.symbols for word in words):
        hits = _search_symbols(connection, words, limit)
    else:
        hits = _search_words(connection, words, limit)
    known = {hit.conversation_id for hit in hits}
    titled = _search_titles(connection, words, known, max(1, limit // 2))
    return [*titled, *hits][:limit]


def _search_words(connection: sqlite3.Connection, words: Sequence[Word], limit: int) -> list[Hit]:
    match = match_all(words)
    if not match:
        return []
    # Marks that no text contains, by accident or on purpose.
    start, end = f"<{secrets.token_hex(8)}>", f"<{secrets.token_hex(8)}>"
    hits = []
    for message_id in _best(connection, "message_words", match, "", (), limit):
        (marked,) = connection.execute(
            "SELECT snippet(message_words, 0, ?, ?, '…', 24) FROM message_words"
            " WHERE message_words MATCH ? AND rowid = ?",
            (start, end, match, message_id),
        ).fetchone()
        hits.append(_hit(connection, message_id, *_remove_marks(marked, start, end)))
    return hits


def _search_symbols(connection: sqlite3.Connection, words: Sequence[Word], limit: int) -> list[Hit]:
    """Searches the words in the index, and the symbols by reading the texts."""
    patterns = [re.compile(word.pattern()) for word in words]
    symbols = sorted({word.symbols for word in words} - {""})
    where = " AND ".join(["instr(m.text, ?)"] * len(symbols))
    match = match_all(words)
    if match:
        spelled = [re.compile(word.pattern()) for word in words if word.indexed and word.symbols]
        if spelled:
            where += " AND has_all(m.text)"
            connection.create_function(
                "has_all", 1, lambda text: all(one.search(fold_text(text)) for one in spelled)
            )
        oldest = connection.execute(
            "SELECT rowid FROM message_words WHERE message_words MATCH ?"
            " ORDER BY rowid DESC LIMIT 1 OFFSET ?",
            (match, _MAX_READ),
        ).fetchone()
        where += " AND m.id > ?"
        values = [*symbols, oldest[0] if oldest else 0]
        found = _best(connection, "message_words", match, where, values, limit)
    else:
        found = _newest(
            connection,
            f"m.id > (SELECT max(id) FROM message) - {_MAX_READ_SYMBOLS_ONLY} AND {where}",
            symbols,
            limit,
        )
    places = re.compile("|".join(f"(?:{one.pattern})" for one in patterns))
    hits = []
    for message_id in found:
        text = composed(_text(connection, message_id))
        hits.append(_hit(connection, message_id, *_snippet(text, fold_text(text), places)))
    return hits


def _search_substrings(
    connection: sqlite3.Connection, words: Sequence[Word], limit: int
) -> list[Hit]:
    """Searches words of three or more characters in the trigram index, shorter ones by reading.

    If all words are shorter, the texts are read from the newest on until there are enough hits:
    fast for a common word, but a scan of all messages with such a script for a rare one.
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
        match = " AND ".join(map(quote, long))
        found = _best(connection, "message_trigrams", match, where, values, limit)
    else:
        found = _newest(connection, where, values, limit)
    places = re.compile("|".join(map(re.escape, parts)), re.IGNORECASE)
    hits = []
    for message_id in found:
        text = _text(connection, message_id)
        hits.append(_hit(connection, message_id, *_snippet(text, text, places)))
    return hits


def _search_titles(
    connection: sqlite3.Connection, words: Sequence[Word], known: Collection[int], limit: int
) -> list[Hit]:
    """The conversations not in `known` whose title has the words; each hit is their head.

    There are few titles, so all of them are read, newest first.
    """
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
            hits.append(_hit(connection, head_id, composed(title), _merge_overlaps(sorted(marks))))
            if len(hits) == limit:
                break
    return hits


def _best(
    connection: sqlite3.Connection,
    table: str,
    match: str,
    where: str,
    values: Iterable[object],
    limit: int,
) -> list[int]:
    """The ids of the best of the newest messages that match and meet `where` (alias `m`)."""
    source = f"FROM {table} f WHERE {table} MATCH ?"
    if where:
        source = (
            f"FROM {table} f JOIN message m ON m.id = f.rowid WHERE {table} MATCH ? AND {where}"
        )
    newest = connection.execute(
        f"SELECT f.rowid {source} ORDER BY f.rowid DESC LIMIT ?", (match, *values, _MAX_RANKED)
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


def _snippet(text: str, searched: str, places: re.Pattern[str]) -> tuple[str, _Marks]:
    """The text around the first match of `places`, and the positions of all matches in it.

    searched: `text` as it is matched, with the same length.
    """
    first = places.search(searched)
    middle = first.start() if first else 0
    low, high = max(0, middle - _CONTEXT // 4), min(middle + _CONTEXT, len(text))
    before = "…" if low else ""
    line = before + text[low:high] + ("…" if high < len(text) else "")
    shift = len(before) - low
    marks = tuple(
        (match.start() + shift, match.end() + shift)
        for match in places.finditer(searched, low, high)
    )
    return line, marks


def _remove_marks(marked: str, start: str, end: str) -> tuple[str, _Marks]:
    """Removes the marks: the text around the first one, and their positions in it."""
    text, *pieces = marked.split(start)
    places: list[tuple[int, int]] = []
    for piece in pieces:
        inside, _, after = piece.partition(end)
        places.append((len(text), len(text) + len(inside)))
        text += inside + after
    # A word may be megabytes long.
    low = max(0, places[0][0] - _CONTEXT) if places else 0
    line = text[low : low + 2 * _CONTEXT]
    return line, tuple((begin - low, stop - low) for begin, stop in places)


def _merge_overlaps(marks: Sequence[tuple[int, int]]) -> _Marks:
    joined: list[tuple[int, int]] = []
    for start, end in marks:
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def _hit(connection: sqlite3.Connection, message_id: int, line: str, marks: _Marks) -> Hit:
    # Character by character, so that the positions stay correct.
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
