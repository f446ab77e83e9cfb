"""The tables, as migrations.

A migration never changes once it is released, because existing files have gone through it. It
contains all of its SQL, so that later changes of the program do not affect it. It sets
`user_version`, which shows whether a file is current.
"""

import contextlib
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

VERSION = 2
APPLICATION_ID = 0x6D6D6368  # "mmch": identifies our files

# Ids are never reused (AUTOINCREMENT): a window that still shows a deleted conversation must not
# write into a new one. `parent_id` does not cascade, because a chain of 1,000 messages would
# exceed SQLite's limit on nested triggers.
_FIRST = (
    """
    CREATE TABLE conversation (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      title TEXT NOT NULL,
      system TEXT NOT NULL,
      created REAL NOT NULL,
      updated REAL NOT NULL,
      head_id INTEGER REFERENCES message(id) ON DELETE SET NULL
    ) STRICT
    """,
    "CREATE INDEX conversation_updated ON conversation(updated)",
    "CREATE INDEX conversation_head ON conversation(head_id)",
    # `writer` identifies the process that streams it (lock.py); `unspaced` means that the text has
    # scripts without spaces and is also in the trigram index.
    """
    CREATE TABLE message (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      conversation_id INTEGER NOT NULL REFERENCES conversation(id),
      parent_id INTEGER REFERENCES message(id),
      role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
      state TEXT NOT NULL CHECK (state IN
        ('complete', 'streaming', 'stopped', 'interrupted', 'failed', 'length')),
      created REAL NOT NULL,
      writer TEXT,
      unspaced INTEGER NOT NULL DEFAULT 0,
      error TEXT NOT NULL DEFAULT '',
      text TEXT NOT NULL DEFAULT ''
    ) STRICT
    """,
    "CREATE INDEX message_conversation ON message(conversation_id)",
    "CREATE INDEX message_parent ON message(parent_id, conversation_id)",
    "CREATE INDEX message_streaming ON message(writer) WHERE state = 'streaming'",
    """
    CREATE TABLE chunk (
      message_id INTEGER NOT NULL REFERENCES message(id) ON DELETE CASCADE,
      number INTEGER NOT NULL,
      text TEXT NOT NULL,
      PRIMARY KEY (message_id, number)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE origin (
      message_id INTEGER PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE,
      model TEXT NOT NULL,
      adapter TEXT NOT NULL,
      adapter_hash TEXT NOT NULL,
      quantization TEXT NOT NULL,
      device TEXT NOT NULL,
      parameters TEXT NOT NULL,
      prompt_tokens INTEGER,
      image_tokens INTEGER,
      completion_tokens INTEGER,
      cached_tokens INTEGER,
      image_ms REAL,
      prefill_ms REAL,
      decode_ms REAL,
      tokens_per_second REAL
    ) STRICT
    """,
    # The bytes are last, so that reading the other columns does not read them.
    """
    CREATE TABLE image (
      sha256 TEXT PRIMARY KEY,
      mime TEXT NOT NULL,
      width INTEGER NOT NULL,
      height INTEGER NOT NULL,
      size INTEGER NOT NULL,
      name TEXT NOT NULL,
      added REAL NOT NULL,
      data BLOB NOT NULL
    ) STRICT
    """,
    # A name per message: the same picture may be attached under two names.
    """
    CREATE TABLE message_image (
      message_id INTEGER NOT NULL REFERENCES message(id) ON DELETE CASCADE,
      position INTEGER NOT NULL,
      sha256 TEXT NOT NULL REFERENCES image(sha256),
      name TEXT NOT NULL,
      PRIMARY KEY (message_id, position)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX message_image_sha256 ON message_image(sha256)",
    """
    CREATE VIRTUAL TABLE message_words USING fts5(
      text, content='message', content_rowid='id',
      tokenize='unicode61 remove_diacritics 2', prefix='1 2 3')
    """,
    # Exactly the rows in the index, so that its integrity can be checked.
    "CREATE VIEW message_of_parts AS SELECT id, text FROM message WHERE unspaced",
    """
    CREATE VIRTUAL TABLE message_trigrams USING fts5(
      text, content='message_of_parts', content_rowid='id', tokenize='trigram')
    """,
    # Words of one or two characters have no trigram, so these texts are read instead.
    "CREATE INDEX message_unspaced ON message(id) WHERE unspaced",
    # A message is indexed once, when its text is final.
    """
    CREATE TRIGGER words_insert AFTER INSERT ON message WHEN new.state <> 'streaming' BEGIN
      INSERT INTO message_words(rowid, text) VALUES (new.id, new.text);
    END
    """,
    """
    CREATE TRIGGER words_finish AFTER UPDATE OF state ON message
    WHEN old.state = 'streaming' AND new.state <> 'streaming' BEGIN
      INSERT INTO message_words(rowid, text) VALUES (new.id, new.text);
    END
    """,
    """
    CREATE TRIGGER words_delete AFTER DELETE ON message WHEN old.state <> 'streaming' BEGIN
      INSERT INTO message_words(message_words, rowid, text) VALUES ('delete', old.id, old.text);
    END
    """,
    """
    CREATE TRIGGER trigrams_insert AFTER INSERT ON message
    WHEN new.unspaced AND new.state <> 'streaming' BEGIN
      INSERT INTO message_trigrams(rowid, text) VALUES (new.id, new.text);
    END
    """,
    """
    CREATE TRIGGER trigrams_finish AFTER UPDATE OF state ON message
    WHEN new.unspaced AND old.state = 'streaming' AND new.state <> 'streaming' BEGIN
      INSERT INTO message_trigrams(rowid, text) VALUES (new.id, new.text);
    END
    """,
    """
    CREATE TRIGGER trigrams_delete AFTER DELETE ON message
    WHEN old.unspaced AND old.state <> 'streaming' BEGIN
      INSERT INTO message_trigrams(message_trigrams, rowid, text) VALUES ('delete', old.id, old.text);
    END
    """,
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
)

# Few messages have these, so they are in tables of their own.
_SECOND = (
    """
    CREATE TABLE rating (
      message_id INTEGER PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE,
      rating TEXT NOT NULL CHECK (rating IN ('good', 'bad')),
      rated REAL NOT NULL
    ) STRICT
    """,
    # An answer that the user wrote, and the message that it corrects.
    """
    CREATE TABLE correction (
      message_id INTEGER PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE,
      corrects INTEGER NOT NULL REFERENCES message(id) ON DELETE CASCADE
    ) STRICT
    """,
    "CREATE INDEX correction_corrects ON correction(corrects)",
    """
    CREATE TABLE tag (
      conversation_id INTEGER NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
      name TEXT NOT NULL,
      PRIMARY KEY (conversation_id, name)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX tag_name ON tag(name)",
    "PRAGMA user_version = 2",
)


_INDEXES = ("message_words", "message_trigrams")


def _first(db: "Database") -> None:
    for statement in _FIRST:
        db.execute(statement)


def _second(db: "Database") -> None:
    for statement in _SECOND:
        db.execute(statement)


def migrate(connection: sqlite3.Connection) -> None:
    """Migrates an empty or older database to `VERSION`, completely or not at all.

    The caller holds the lock file. sqlite-utils would begin each migration with a deferred
    transaction, which fails if another program writes in between; inside our transaction, they
    are savepoints.
    """
    # sqlite-utils takes 0.1 to 0.5 s to import, and only a new or old file needs it.
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("mmchat.history")

    migrations(name="1 conversations, messages, pictures, search")(_first)
    migrations(name="2 ratings, corrections, tags")(_second)

    database = Database(connection, recursive_triggers=False, execute_plugins=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(database)
        connection.execute("COMMIT")
    except BaseException:
        database.rollback()
        raise


def is_intact(connection: sqlite3.Connection) -> bool:
    """Whether a file of this version has all tables, indexes and triggers, unchanged.

    True for any other version.
    """
    if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        return True
    with contextlib.closing(sqlite3.connect(":memory:")) as new:
        for statement in (*_FIRST, *_SECOND):
            new.execute(statement)
        return _definitions(new).items() <= _definitions(connection).items()


def set_merging(connection: sqlite3.Connection, *, on: bool) -> None:
    """Sets whether changes to the word indexes merge segments (the default) or only add some."""
    for table in _INDEXES:
        for option, value in (("automerge", 4 if on else 0), ("crisismerge", 16 if on else 1_999)):
            insert = f"INSERT INTO {table}({table}, rank) VALUES (?, ?)"
            connection.execute(insert, (option, value))


def check_indexes(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.Error if a word index does not match the messages. Starts a transaction."""
    for table in _INDEXES:
        connection.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")


def _definitions(connection: sqlite3.Connection) -> dict[str, str]:
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    # FTS5's own tables (NAME_data and so on) differ between its versions.
    return {
        name: " ".join(sql.split())
        for name, sql in found
        if not name.startswith(("message_words_", "message_trigrams_"))
    }
