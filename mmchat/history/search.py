"""From what a person typed to the messages that have it.

A message has a query's words if it has all of them: whole, without regard to
case and accents, the last one as a beginning. Where the query has a script
without spaces, each word is looked for as a part of the text (case counts for
nothing, accents do).

Common words are in most messages, and ranking those costs seconds in a large
history: only the newest 2,000 that match are ranked (bm25), and only those
shown get a snippet.
"""

import re
import secrets
import sqlite3
import unicodedata

from mmchat.history.text import UNSPACED, storable
from mmchat.history.types import Hit

_RANKED = 2_000
_WORDS = 32  # of a query; a pasted page is no search
_RANKED_PHRASES = 64  # bm25 asks the index once a phrase
_AROUND = 120  # characters of a snippet on each side of the first mark


def search(connection: sqlite3.Connection, query: str, limit: int) -> list[Hit]:
    """The best `limit` messages for any string; none where it has no word."""
    words = _words(query)
    if not words or limit < 1:
        return []
    if any(UNSPACED.search(word) for word in words):
        table = "message_trigrams"
        match, phrases = _parts(connection, words)
    else:
        table = "message_words"
        match, phrases = " ".join(map(_quoted, words)) + "*", len(words)
    if not match:
        return []
    newest = connection.execute(
        f"SELECT rowid FROM {table} WHERE {table} MATCH ? ORDER BY rowid DESC LIMIT ?",
        (match, _RANKED),
    ).fetchall()
    if not newest:
        return []
    # A word of one character can mean thousands of trigrams: newest first then.
    order = "rank, rowid DESC" if phrases <= _RANKED_PHRASES else "rowid DESC"
    best = connection.execute(
        f"SELECT rowid FROM {table} WHERE {table} MATCH ? AND rowid >= ? ORDER BY {order} LIMIT ?",
        (match, newest[-1][0], limit),
    )
    substrings = words if table == "message_trigrams" else []
    return [_hit(connection, table, match, row[0], substrings) for row in best.fetchall()]


def _words(query: str) -> list[str]:
    """The parts of a query that have a letter or a digit, free of NUL and surrogates."""
    parts = storable(query[:10_000]).replace("\0", " ").split()
    return [part for part in parts if any(map(_is_letter, part))][:_WORDS]


def _is_letter(character: str) -> bool:
    """Whether the tokenizer unicode61 takes it for a part of a word."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def _quoted(word: str) -> str:
    """A phrase in FTS5's language: whatever is in it means only itself."""
    return '"' + word.replace('"', '""') + '"'


def _parts(connection: sqlite3.Connection, words: list[str]) -> tuple[str, int]:
    """A query for the trigram index, and of how many phrases; empty where nothing can match.

    A trigram index knows nothing shorter than three characters: a shorter word
    stands for every trigram that begins with it (the index's texts are padded,
    so that the last characters have theirs).
    """
    groups: list[list[str]] = []
    for word in words:
        if len(word) >= 3:
            groups.append([_quoted(word)])
            continue
        beginning = word.lower()
        found = connection.execute(
            "SELECT term FROM message_trigrams_terms WHERE term >= ? AND term < ?",
            (beginning, beginning + "\U0010ffff"),
        )
        groups.append([_quoted(row["term"]) for row in found])
    if not all(groups):
        return "", 0
    match = " AND ".join(f"({' OR '.join(group)})" for group in groups)
    return match, sum(map(len, groups))


def _hit(
    connection: sqlite3.Connection, table: str, match: str, message_id: int, substrings: list[str]
) -> Hit:
    # Marks that no text can contain by accident or on purpose.
    start, end = f"<{secrets.token_hex(8)}>", f"<{secrets.token_hex(8)}>"
    row = connection.execute(
        f"""
        SELECT m.conversation_id, c.title, m.role, m.created,
          snippet({table}, 0, ?, ?, '…', ?) AS snippet
        FROM {table} f JOIN message m ON m.id = f.rowid
          JOIN conversation c ON c.id = m.conversation_id
        WHERE {table} MATCH ? AND f.rowid = ?
        """,
        (start, end, 64 if table == "message_trigrams" else 24, match, message_id),
    ).fetchone()
    snippet, marks = _marked(row["snippet"], start, end)
    if substrings:  # the index marks whole trigrams, more than was asked for
        marks = _places(snippet, substrings) or marks
    return Hit(
        message_id=message_id,
        conversation_id=row["conversation_id"],
        title=row["title"],
        role=row["role"],
        snippet=snippet,
        marks=marks,
        created=row["created"],
    )


def _marked(marked: str, start: str, end: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """One plain line and the places of the marks in it."""
    text, *pieces = marked.split(start)
    places: list[tuple[int, int]] = []
    for piece in pieces:
        inside, _, after = piece.partition(end)
        places.append((len(text), len(text) + len(inside)))
        text += inside + after
    # A "word" may be megabytes long: keep what stands around the first mark.
    first = places[0][0] if places else 0
    low, high = max(0, first - _AROUND), first + _AROUND
    # Character by character, so that the places stay right.
    line = "".join(
        " " if unicodedata.category(character)[0] in "CZ" else character
        for character in text[low:high]
    ).rstrip()
    marks = ((begin - low, min(stop - low, len(line))) for begin, stop in places)
    return line, tuple((begin, stop) for begin, stop in marks if begin < stop)


def _places(line: str, words: list[str]) -> tuple[tuple[int, int], ...]:
    """Where the words stand in the line as parts of it, without regard to case."""
    found = re.finditer("|".join(map(re.escape, words)), line, re.IGNORECASE)
    return tuple(match.span() for match in found)
