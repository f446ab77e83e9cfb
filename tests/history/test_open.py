"""Opening: first starts that race, private files, files that cannot be used."""

import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mmchat.errors import HistoryError, MmchatError
from mmchat.history import History, Origin, schema

OPEN = """
import pathlib, sys
from mmchat.errors import MmchatError
from mmchat.history import History
sys.stdin.readline()
try:
    with History.open(pathlib.Path(sys.argv[1])) as history:
        history.add_message(history.new_conversation().id, "user", sys.argv[2])
        print(history.stats()["version"])
except MmchatError as error:
    print(f"{type(error).__name__}: {error}")
"""


def start(path: Path, word: str) -> "subprocess.Popen[str]":
    """A process that opens the history once it is told to go on."""
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(path), word],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_twenty_first_starts_at_once(path: Path) -> None:
    starts = [start(path, f"word{n}") for n in range(20)]
    for process in starts:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in starts] == [f"{schema.VERSION}\n"] * 20
    with History.open(path) as history:
        assert history.stats()["messages"] == 20
        assert all(len(history.search(f"word{n}")) >= 1 for n in range(20))
    assert sorted(p.name for p in path.parent.iterdir()) == ["history.db", "history.db.lock"]


def test_the_default_place_is_the_persons_own(home: Path) -> None:
    with History.open() as history:
        history.new_conversation("mine")
    assert (home / "history.db").is_file()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_everything_is_private_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with History.open(path) as history:
            history.add_message(history.new_conversation().id, "user", "x")
            files = sorted(path.parent.iterdir())
            assert len(files) == 4  # with -wal, -shm and the lock file
            assert {mode(file) for file in files} <= {0o600}
            assert mode(path.parent) == 0o700
    finally:
        os.umask(before)


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    History.open(path).close()
    path.chmod(0o644)
    with History.open(path):
        assert mode(path) == 0o600


def test_an_empty_file_and_leftovers_of_a_first_start_that_was_killed(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    path.with_name("history.db.new").write_bytes(b"half a database")
    path.with_name("history.db.new-wal").write_bytes(b"and its log")
    with History.open(path) as history:
        assert history.stats()["version"] == schema.VERSION
    assert not list(path.parent.glob("*.new*"))


def test_the_migrations_say_what_was_applied(path: Path) -> None:
    History.open(path).close()
    connection = sqlite3.connect(path)
    applied = connection.execute("SELECT migration_set, name FROM _sqlite_migrations").fetchall()
    pragmas = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("user_version", "application_id", "journal_mode", "auto_vacuum")
    }
    connection.close()
    assert applied == [
        ("mmchat.history", "1 conversations, messages, pictures, search"),
        ("mmchat.history", "2 ratings, corrections, tags"),
    ]
    assert pragmas == {
        "user_version": schema.VERSION,
        "application_id": schema.APPLICATION_ID,
        "journal_mode": "wal",
        "auto_vacuum": 2,
    }


def test_a_failed_migration_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_FIRST", (*schema._FIRST[:5], "no SQL"))
    with pytest.raises(sqlite3.OperationalError):
        History.open(path)
    assert not path.exists()
    monkeypatch.undo()
    with History.open(path) as history:
        assert history.latest() is None


def corrupt(path: Path) -> None:
    with History.open(path) as history:
        conversation = history.new_conversation().id
        for n in range(300):
            history.add_message(conversation, "user", f"message {n} " * 30)
    data = bytearray(path.read_bytes())
    data[4096 : len(data) - 4096] = b"\xaa" * (len(data) - 8192)
    path.write_bytes(data)


def newer(path: Path) -> None:
    History.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()


def of_another_program(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url)")
    connection.close()


def no_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("Dear diary, " * 200)


def folder(path: Path) -> None:
    path.mkdir(parents=True)


def fifo(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (corrupt, "is damaged: move it away"),
        (newer, f"newer mmchat .schema version {schema.VERSION + 1}.*upgrade mmchat"),
        (of_another_program, "another program.s database: move it away"),
        (no_database, "is not a database: move it away"),
        (folder, "is not a file: move it away"),
        (fifo, "is not a file: move it away"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_stays(
    path: Path, make: object, sentence: str
) -> None:
    assert callable(make)
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(HistoryError, match=sentence), History.open(path) as history:
        history.conversations()
        history.search("message")
    assert before is None or path.read_bytes() == before


def test_a_file_that_another_program_holds_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmchat.history import database

    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with History.open(path) as history:
        browser = sqlite3.connect(path, isolation_level=None)
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match="locked by another program"):
            history.new_conversation()
        browser.execute("ROLLBACK")
        browser.close()
        assert history.new_conversation().id == 1


def opened_by_somebody_else(path: Path, pipe: Connection) -> None:
    """In a child process: what a person without root's powers is told."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        with History.open(path) as history:
            history.new_conversation()
        pipe.send("opened")
    except MmchatError as error:
        pipe.send(str(error))


def read_by_somebody_else(path: Path, pipe: Connection) -> None:
    """In a child process: what a person can do who may read the file and not write it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        with History.open(path) as history:
            conversations = history.conversations()
            texts = [message.text for message in history.branch(conversations[0].id)]
            states = [message.state for message in history.branch(conversations[0].id)]
            found = len(history.search("kite"))
            try:
                history.delete(conversations[0].id)
            except MmchatError as error:
                pipe.send((texts, states[-1], found, str(error)))
    except Exception as error:  # the parent shows it
        pipe.send(repr(error))


@pytest.mark.parametrize("log", ["no log", "a log", "an open one"])
@pytest.mark.parametrize("folder_mode", [0o555, 0o755])
def test_a_file_that_can_only_be_read(log: str, folder_mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        path = top / "data" / "history.db"
        left: History | None = None
        if log == "a log":
            fork = multiprocessing.get_context("fork")
            writer = fork.Process(target=write_and_die, args=(path,))
            writer.start()
            writer.join()
            Path(f"{path}-shm").unlink()
        else:
            left = History.open(path)
            write(left)
            if log == "no log":
                left.close()
        for file in path.parent.iterdir():
            file.chmod(0o444)
        path.parent.chmod(folder_mode)
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        child = fork.Process(target=read_by_somebody_else, args=(path, theirs))
        child.start()
        theirs.close()
        told = ours.recv()
        child.join()
        ours.close()
        path.parent.chmod(0o755)
        if left is not None:
            left.close()
    assert isinstance(told, tuple), told
    texts, state, found, sentence = told
    assert (texts, found) == (["a red kite", "half"], 1)
    assert state == ("streaming" if log == "an open one" else "interrupted")
    assert "cannot be written" in sentence and str(path) in sentence


def write(history: History) -> None:
    conversation = history.new_conversation().id
    history.add_message(conversation, "user", "a red kite")
    history.begin_answer(conversation, origin=Origin("scenes")).append("half")


def write_and_die(path: Path) -> None:
    write(History.open(path))
    os._exit(9)


@pytest.mark.parametrize("what", ["file", "folder", "parent"])
def test_without_the_permission_it_is_one_sentence(what: str) -> None:
    # Not in pytest's folder, which only its owner can enter.
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        path = top / "data" / "history.db"
        if what == "parent":
            top.chmod(0o555)
        else:
            History.open(path).close()
            path.chmod(0o444)
            path.parent.chmod(0o555 if what == "file" else 0o000)
        # A fork keeps what is imported: somebody else may be unable to read it again.
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        child = fork.Process(target=opened_by_somebody_else, args=(path, theirs))
        child.start()
        theirs.close()
        sentence = ours.recv()
        child.join()
        ours.close()
        top.chmod(0o755)
        if path.parent.exists():
            path.parent.chmod(0o755)
    assert "written" in sentence or "cannot be created" in sentence
    assert str(path.parent) in sentence
    assert "\n" not in sentence
