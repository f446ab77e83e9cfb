"""A history that mmchat 0.1 wrote, with tables of version 1, opened by this one.

`version1.db` was made by that code, whose process died while message 12 was
being written. What it holds is what `test_everything_is_there` names.
"""

import multiprocessing
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmchat.history import History, Origin, schema
from tests.history.test_crash import whole
from tests.history.test_open import start

FIXTURE = Path(__file__).with_name("version1.db")


@pytest.fixture
def old(path: Path) -> Path:
    """The old history in its place, and nothing else there."""
    path.parent.mkdir()
    shutil.copyfile(FIXTURE, path)
    return path


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return found


def test_everything_is_there(old: Path) -> None:
    assert version(FIXTURE) == 1
    with History.open(old) as history:
        stats = history.stats()
        assert (stats["version"], stats["conversations"], stats["messages"]) == (2, 4, 12)
        assert (stats["images"], stats["models"]) == (2, {"scenes": 7})
        left, empty, chinese, first = history.conversations()
        assert (first.system, first.title) == (
            "Answer briefly.",
            "What is in [1], and what in [2]?",
        )
        assert (empty.title, empty.head_id, left.title) == (
            "An empty one",
            None,
            "Left in mid-answer",
        )
        question, answer, again, cut = history.branch(first.id)
        assert [(i.name, i.width, i.height) for i in question.images] == [
            ("red circle.png", 32, 24),
            ("blue circle.png", 32, 24),
        ]
        assert all(history.image_data(i.sha256).startswith(b"\x89PNG") for i in question.images)
        assert (answer.text, answer.sibling, answer.siblings) == (
            "A red circle and a blue one.",
            2,
            2,
        )
        assert answer.origin == Origin(
            "scenes", "birds", "ab12", "4bit", "cpu", {"temperature": 0.7}
        )
        assert (again.text, cut.text, cut.state) == (
            "Is it red?",
            "Yes, and it goes on and",
            "length",
        )
        other, _ = history.siblings(answer.id)
        assert (other.text, other.origin and other.origin.tokens_per_second) == (
            "Two circles.",
            41.2,
        )
        failed, _ = history.siblings(cut.id)
        assert (failed.state, failed.error) == (
            "failed",
            "The engine ended in mid-answer (signal 9).",
        )
        assert history.message(4).state == "stopped"
        dead = history.branch(left.id)[1]
        assert (dead.text, dead.state) == ("Yes, I am still", "interrupted")
        assert [m.text for m in history.branch(chinese.id)] == [
            "図の中の赤い円はどこですか",
            "赤い円は左上にあります。東京ではありません。",
        ]
        assert [hit.message_id for hit in history.search("東京")] == [10]
        assert [hit.message_id for hit in history.search("blue one")] == [5]
        for message in history.branch(first.id):
            assert (message.rating, message.rated, message.corrects) == (None, None, None)
        assert all(c.tags == () for c in history.conversations())
        assert history.training_examples() == []
    whole(old)


def test_what_is_new_works(old: Path) -> None:
    with History.open(old) as history:
        history.rate(10, "good")
        corrected = history.correct(8, "Yes.")
        history.tag(1, "circles")
        assert history.branch(1)[-1] == corrected
        assert [example.answer.id for example in history.training_examples()] == [corrected.id, 10]
        history.delete(1)
        assert history.tags() == {}
    with History.open(old) as history:
        assert [example.answer.id for example in history.training_examples()] == [10]
    whole(old)


def test_two_programs_at_once_migrate_once(old: Path) -> None:
    starts = [start(old, f"word{n}") for n in range(6)]
    for process in starts:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in starts] == [f"{schema.VERSION}\n"] * 6
    connection = sqlite3.connect(old)
    applied = [row[0] for row in connection.execute("SELECT name FROM _sqlite_migrations")]
    connection.close()
    assert len(applied) == schema.VERSION
    with History.open(old) as history:
        assert history.stats()["messages"] == 18


def test_a_migration_that_fails_leaves_the_old_one(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_SECOND", (*schema._SECOND[:3], "no SQL"))
    with pytest.raises(sqlite3.OperationalError):
        History.open(old)
    assert version(old) == 1
    connection = sqlite3.connect(old)
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "message" in names and not names & {"rating", "correction", "tag"}
    monkeypatch.undo()
    with History.open(old) as history:
        assert history.stats()["version"] == schema.VERSION


def _killed_while_it_migrates(path: Path) -> None:
    def statements() -> Iterator[str]:
        yield from steps[:3]
        os._exit(9)

    steps, schema._SECOND = schema._SECOND, statements()  # type: ignore[assignment]
    History.open(path)


def test_a_kill_while_it_migrates_leaves_the_old_one(old: Path) -> None:
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=_killed_while_it_migrates, args=(old,))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert version(old) == 1
    with History.open(old) as history:
        assert history.stats()["version"] == schema.VERSION
        assert history.stats()["messages"] == 12
    whole(old)
