"""kill -9 of a real writer at random moments: nothing acknowledged is lost."""

import hashlib
import random
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from mmchat.history import History, Origin
from tests.history.writer import chunk

ROOT = Path(__file__).parents[2]


def killed(path: Path, rng: random.Random) -> list[list[str]]:
    """Run a writer, kill it at a random moment, return what it acknowledged.

    Half of the moments are counted in acknowledgements, half in time, which
    also reaches into the first start.
    """
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.history.writer", str(path), str(rng.randrange(2**32))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert writer.stdout is not None
    with writer:
        lines = [writer.stdout.readline()]
        assert lines == ["opening\n"]
        if rng.random() < 0.5:
            lines += [writer.stdout.readline() for _ in range(rng.randrange(400))]
        else:
            threading.Event().wait(rng.random() * 0.25)  # the random moment itself
        writer.kill()
        lines += writer.stdout.readlines()
    # The last line may be cut in half: then it was never read as a promise.
    return [line.split() for line in lines if line.endswith("\n")]


def check(history: History, lines: list[list[str]]) -> None:
    begun: set[int] = set()
    chunks: dict[int, int] = defaultdict(int)
    done: dict[int, tuple[int, str]] = {}
    for kind, *values in lines:
        match kind:
            case "said":
                message = history.message(int(values[0]))
                data = history.image_data(message.images[0].sha256)
                assert message.text == f"said {hashlib.sha256(data).hexdigest()}"
                assert message.state == "complete"
            case "begun":
                begun.add(int(values[0]))
            case "chunk":
                chunks[int(values[0])] = int(values[1]) + 1
            case "done":
                done[int(values[0])] = (int(values[1]), values[2])
            case "good":
                assert history.message(int(values[0])).rating == "good"
            case "corrected":
                correction = history.message(int(values[1]))
                assert correction.corrects == int(values[0])
                assert correction.text == f"not {values[0]}"
            case "tagged":
                assert values[1] in history.conversation(int(values[0])).tags
    for message_id in begun:
        message = history.message(message_id)
        written = message.text.count(":")
        assert message.text == "".join(chunk(message_id, n) for n in range(written))
        assert written >= chunks[message_id]
        assert message.origin == Origin("scripted")
        if message_id in done:
            assert (written, message.state) == done[message_id]
        else:
            assert message.state in ("interrupted", "complete", "stopped", "length")
            if message.state == "interrupted" and written:
                first = message.text.split()[1][:64]
                assert message_id in {h.message_id for h in history.search(first)}


def whole(path: Path) -> None:
    """Tables, foreign keys and both search indexes are sound."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("SELECT count(*) FROM chunk").fetchone() == (0,)
    for table in ("message_words", "message_trigrams"):
        connection.execute(f"INSERT INTO {table}({table}, rank) VALUES ('integrity-check', 1)")
    connection.close()


def campaign(folder: Path, kills: int, seed: int) -> int:
    """Kill writers, most of them over one growing file; returns the promises checked."""
    rng = random.Random(seed)
    promises: dict[Path, list[list[str]]] = {}
    for number in range(kills):
        path = folder / (f"first-{number}.db" if number % 4 == 0 else f"grown-{number // 100}.db")
        lines = killed(path, rng)
        promises.setdefault(path, []).extend(lines)
        with History.open(path) as history:
            check(history, lines)
            head = history.latest()
            if head is not None and history.branch(head.id):
                assert history.branch(head.id)[-1].state != "streaming"
        assert not list(path.parent.glob("*.writer-*"))
    for path, lines in promises.items():
        with History.open(path) as history:
            check(history, lines)
        whole(path)
    return sum(len(lines) for lines in promises.values())


def test_twenty_kills(tmp_path: Path) -> None:
    assert campaign(tmp_path, 20, seed=20) > 200


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    promised = campaign(tmp_path, 240, seed=random.SystemRandom().randrange(2**32))
    print(f"240 kills, {promised} promises kept")


def test_one_window_dies_while_another_streams(path: Path) -> None:
    with History.open(path) as ours:
        conversation = ours.new_conversation().id
        answer = ours.begin_answer(conversation, origin=Origin("scenes"))
        answer.append("alive ")
        lines = killed(path, random.Random(1))
        while not any(line[0] == "chunk" for line in lines):
            lines = killed(path, random.Random(len(lines) + 2))
        # Before anybody opens the file anew the state is seen, though not yet stored.
        begun = max(int(line[1]) for line in lines if line[0] == "begun")
        assert ours.message(begun).state != "streaming"
        with History.open(path) as other:
            check(other, lines)
            assert other.message(answer.id).state == "streaming"
        answer.append("and well")
        assert answer.finish().text == "alive and well"
