"""A full disk: one sentence, and what was there stays."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmchat.errors import HistoryError
from mmchat.history import History, Origin
from mmchat.history.errors import disk_full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(history: History, conversation: int) -> int:
    """Add messages until one is refused; returns how many were taken."""
    for number in range(10_000):
        try:
            history.add_message(conversation, "user", f"number {number} " + "filler " * 300)
        except HistoryError as error:
            assert str(error).startswith("The disk is full: ")
            return number
    raise AssertionError("never full")


def test_a_real_full_disk(small_disk: Path) -> None:
    path = small_disk / "history.db"
    with History.open(path) as history:
        conversation = history.new_conversation().id
        filler = small_disk / "filler"
        filler.write_bytes(bytes(400_000))
        answer = history.begin_answer(conversation, parent_id=None, origin=Origin("scenes"))
        answer.append("before, ")
        taken = fill_up(history, conversation)
        assert taken > 10
        with pytest.raises(HistoryError, match="The disk is full"):
            for _ in range(1_000):
                answer.append("lost" * 1_000)
        with pytest.raises(HistoryError, match="The disk is full"):
            history.add_image(bytes(500_000), mime="image/png", width=1, height=1, name="a")
        shown = history.branch(conversation)
        assert len([m for m in shown if m.role == "user"]) == taken
        assert history.search(f"number {taken - 1}")
        assert history.message(answer.id).text.startswith("before, ")
        filler.unlink()
        kept = history.message(answer.id).text
        answer.append("after")
        assert answer.finish().text == kept + "after"
    with History.open(path) as again:
        assert again.message(answer.id).text == kept + "after"
        assert again.stats()["messages"] == taken + 1


def test_a_full_disk_at_the_first_start(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(4_000_000))
    path = small_disk / "history.db"
    with pytest.raises(HistoryError, match="The disk is full"):
        History.open(path)
    filler.unlink()
    with History.open(path) as history:
        assert history.conversations() == []


def fill(disk: Path) -> None:
    """Leaves not one byte on the disk."""
    with (disk / "filler").open("ab", buffering=0) as filler:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(size))


def some_conversations(history: History) -> list[int]:
    ids = []
    for number in range(3):
        ids.append(history.new_conversation().id)
        image = history.add_image(
            bytes([number]) * 100_000, mime="image/png", width=1, height=1, name="a"
        )
        history.add_message(ids[-1], "user", f"number {number}", images=[image.sha256])
    return ids


def test_a_full_disk_is_read_and_deleting_makes_room(small_disk: Path) -> None:
    path = small_disk / "history.db"
    with History.open(path) as history:
        ids = some_conversations(history)
    fill(small_disk)
    with History.open(path) as history:
        assert [one.id for one in history.conversations()] == ids[::-1]
        assert len(history.search("number")) == 3
        with pytest.raises(HistoryError, match="The disk is full"):
            history.new_conversation()
        history.delete(ids[0])
        assert [one.id for one in history.conversations()] == [ids[2], ids[1]]
        with pytest.raises(HistoryError, match="There is no conversation"):
            history.delete(ids[0])
    assert shutil.disk_usage(small_disk).free > 90_000
    with History.open(path) as history:
        for one in ids[1:]:
            history.delete(one)
        (small_disk / "filler").unlink()
        history.add_message(history.new_conversation().id, "user", "again")
        assert history.stats()["messages"] == 1
        with history._database.read() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_what_fills_the_disk_leaves_room_to_delete(small_disk: Path) -> None:
    path = small_disk / "history.db"
    with History.open(path) as history:
        ids = some_conversations(history)
        fill_up(history, ids[1])
        history.delete(ids[0])
        assert len(history.conversations()) == 2
        history.delete(ids[1])
        history.add_message(ids[2], "user", "again")


def test_a_full_disk_with_another_window(small_disk: Path) -> None:
    path = small_disk / "history.db"
    with History.open(path) as history:
        ids = some_conversations(history)
    with History.open(path) as history:
        with History.open(path) as other:
            fill(small_disk)
            with pytest.raises(HistoryError, match="another mmchat has"):
                history.delete(ids[0])
            assert len(history.conversations()) == len(other.conversations()) == 3
        history.delete(ids[0])
        assert len(history.conversations()) == 2


def test_deleting_where_a_file_is_at_its_limit(history: History, path: Path) -> None:
    """Without root: the same way as on a full disk, with an error in its place."""
    ids = some_conversations(history)
    with history._database.read() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    real = history._database.write
    history._database.write = (  # type: ignore[method-assign]
        lambda closing=False: real(closing=closing) if not closing else full(path)
    )
    history.delete(ids[0])
    assert [one.id for one in history.conversations()] == [ids[2], ids[1]]
    assert history.search("number 0") == []
    assert path.stat().st_size < pages * 4096 - 90_000


@contextlib.contextmanager
def full(path: Path) -> Iterator[None]:
    raise disk_full(path)
    yield


def test_a_file_at_its_limit(history: History) -> None:
    """Without root: SQLite reports its own limit of pages as it does a full disk."""
    conversation = history.new_conversation().id
    answer = history.begin_answer(conversation, parent_id=None, origin=Origin("scenes"))
    answer.append("kept")
    with history._database.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    taken = fill_up(history, conversation)
    assert len([m for m in history.branch(conversation) if m.role == "user"]) == taken
    with history._database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    assert answer.finish().text == "kept"
