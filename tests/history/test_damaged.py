"""Damaged files: any command says so in one sentence, and never shows a traceback."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mmchat.errors import HistoryError
from mmchat.history import History, Origin
from mmchat.history.errors import translate_errors


def make(path: Path) -> bytes:
    """A small history that holds everything; returns the file."""
    with History.open(path) as history:
        for number in range(3):
            conversation = history.new_conversation(system="Be brief.").id
            image = history.add_image(
                bytes([number]) * 9_000, mime="image/png", width=1, height=1, name="a.png"
            )
            history.add_message(conversation, "user", f"kite {number}", images=[image.sha256])
            origin = Origin("scenes", "birds", parameters={"seed": number})
            answer = history.begin_answer(conversation, origin=origin)
            answer.append("a red kite, 東京 ")
            answer.finish()
            history.rate(answer.id, "bad")
            history.rate(history.correct(answer.id, "A black kite.").id, "good")
            history.tag(conversation, "birds")
    return path.read_bytes()


def use(path: Path) -> None:
    """Reads everything, and deletes something."""
    with History.open(path) as history:
        for conversation in [*history.conversations(), *history.conversations(tag="birds")]:
            for message in history.branch(conversation.id):
                for image in message.images:
                    history.image_data(image.sha256)
        for query in ("kite", "東京", "京", "k+"):
            history.search(query)
        history.stats()
        history.training_examples()
        history.delete(2)


def spoil(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"CREATE TABLE image", b"CREATE\xc9TABLE image"),
        (b"CREATE TABLE tag", b"CREATE TABLE tug"),
        (b"tokens_per_second REAL", b"tokens_per_secund REAL"),
        (b'{"seed": 1}', b'{"seed": 1['),
        (b'{"seed": 1}', b'{"seed"\xff 1}'),
        (b"kite 1", b"kite\xff1"),
        (b"Be brief.", b"Be brie\xff."),
        (b"birds", b"b\xffrds"),
        (b"good", b"gold"),
        (b"complete", b"complet3"),
        (b"assistant", b"assistent"),
    ],
)
def test_a_wrong_byte(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(spoil(make(path), old, new))
    with pytest.raises(HistoryError, match="is damaged: move it away"):
        use(path)


@pytest.mark.parametrize("size", [1, 49, 50, 100, 511, 512, 4096, 100_000])
def test_a_file_that_was_cut(path: Path, size: int) -> None:
    path.write_bytes(make(path)[:size])
    with pytest.raises(HistoryError, match="is damaged: move it away"):
        use(path)


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_is_a_sentence_or_nothing(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(make(path))
    pages = len(data) // 4096
    if seed % 3 == 0:  # two pages change places
        one, other = (4096 * rng.randrange(pages) for _ in range(2))
        data[one : one + 4096], data[other : other + 4096] = (
            data[other : other + 4096],
            data[one : one + 4096],
        )
    else:
        for _ in range(rng.choice([1, 1, 5, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    try:
        use(path)
    except HistoryError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "mistake", ["SELECT nothing FROM message", "INSERT INTO tag VALUES (9, 'of nobody')"]
)
def test_a_mistake_of_ours_is_not_taken_for_damage(path: Path, mistake: str) -> None:
    make(path)
    with (
        History.open(path) as history,
        pytest.raises(sqlite3.Error),
        history._database.write() as connection,
    ):
        connection.execute(mistake)


@pytest.mark.parametrize("error", [TypeError, KeyError, ValueError, AssertionError])
def test_other_errors_pass(path: Path, error: Callable[[], Exception]) -> None:
    with pytest.raises(type(error())), translate_errors(path):
        raise error()
