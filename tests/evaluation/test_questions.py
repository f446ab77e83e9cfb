"""Reading an evaluation folder: what is asked, and what the errors say about a broken one."""

import json
import os
from pathlib import Path

import pytest

from mmchat.errors import DataError
from mmchat.evaluation.questions import limit_per_type, read_questions
from mmchat.turns import ImagePart
from tests.evaluation.folders import line, write

PICTURE = ("pictures/000001.png",)


def parts(folder: Path) -> list[tuple[str, list[str]]]:
    """The first question's turns, each picture by its file's name."""
    asked = read_questions(folder)
    by_data = {file.read_bytes(): file.name for file in (folder / "pictures").iterdir()}
    said = []
    for turn in asked.turns(asked.questions[0]):
        named = [by_data[p.data or b""] if isinstance(p, ImagePart) else str(p) for p in turn.parts]
        said.append((turn.role, named))
    return said


def test_pictures_come_before_the_first_text_of_the_user(tmp_path: Path) -> None:
    one = line("1", "", "red", images=("pictures/b.png", "pictures/a.png"))
    one["messages"] = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a ring"},
        {"role": "user", "content": "and its colour?"},
    ]
    assert parts(write(tmp_path, [one])) == [
        ("system", ["be short"]),
        ("user", ["b.png", "a.png", "what is it?"]),
        ("assistant", ["a ring"]),
        ("user", ["and its colour?"]),
    ]


def test_parts_place_the_pictures(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "is"}, {"type": "image"}, {"type": "text", "text": "red?"}]
    folder = write(tmp_path, [line("1", content, "yes", images=PICTURE)])
    assert parts(folder) == [("user", ["is", "000001.png", "red?"])]


def test_a_picture_carries_its_bytes_hash_and_type(tmp_path: Path) -> None:
    asked = read_questions(write(tmp_path, [line("1", "?", "red", images=PICTURE)]))
    picture = asked.turns(asked.questions[0])[0].parts[0]
    assert isinstance(picture, ImagePart)
    assert picture.data == (tmp_path / PICTURE[0]).read_bytes()
    assert picture.mime == "image/png"


def test_the_hash_is_of_questions_and_pictures(tmp_path: Path) -> None:
    lines = [line("1", "?", "red", images=PICTURE)]
    first = read_questions(write(tmp_path / "a", lines)).sha256
    assert read_questions(write(tmp_path / "b", lines)).sha256 == first
    (tmp_path / "b" / "data.json").write_text('{"seed": 7, "fonts": ["x"], "control": "blank"}')
    again = read_questions(tmp_path / "b")
    assert (again.sha256, again.about) == (first, {"seed": 7, "control": "blank"})
    other = [line("1", "?", "red", images=("pictures/0.png", *PICTURE))]
    picture = tmp_path / "b" / PICTURE[0]
    picture.write_bytes(picture.read_bytes() + b"more")
    assert read_questions(tmp_path / "b").sha256 != first
    assert read_questions(write(tmp_path / "c", other)).sha256 != first


def test_a_limit_applies_to_each_type(tmp_path: Path) -> None:
    lines = [line(str(n), "?", "x", kind="colour" if n % 3 else "shape") for n in range(9)]
    questions = read_questions(write(tmp_path, lines)).questions
    assert [q.id for q in limit_per_type(questions, 2)] == ["0", "1", "2", "3"]
    assert limit_per_type(questions, 0) == list(questions)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("{", "is not a question"),
        ("[]", "is not a question"),
        ('{"id": "2"}', "type"),
        ("\x00\xff", "is not a question"),
        (line("1", "?", "x"), "the id '1' is there twice"),
        (line("2", "?", "x", kind=" "), "the type is empty"),
        ({**line("2", "?", "x"), "messages": []}, "the last message has to be the user's"),
        (
            {**line("2", "?", "x"), "messages": [{"role": "assistant", "content": "hi"}]},
            "the last message has to be the user's",
        ),
        ({**line("2", "?", "x"), "messages": [{"role": "robot", "content": "hi"}]}, "robot"),
        (line("2", [{"type": "video"}], "x"), "video"),  # type: ignore[list-item]
        (line("2", [{"type": "image"}], "x"), "place 1 pictures and images names 0"),
        ({**line("2", "?", "x"), "answer": 3}, "answer"),
        ({**line("2", "?", "x"), "images": ["pictures/none.png"]}, "none.png does not exist"),
        ({**line("2", "?", "x"), "images": ["pictures"]}, "pictures does not exist"),
        ({**line("2", "?", "x"), "images": ["questions.jsonl"]}, "is not a picture"),
        ({**line("2", "?", "x"), "images": ["../outside.png"]}, "is outside"),
        ({**line("2", "?", "x"), "images": ["/etc/passwd"]}, "is outside"),
        ({**line("2", "?", "x"), "images": ["a\0b"]}, "cannot be the name"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: object, told: str) -> None:
    folder = write(tmp_path / "data", [line("1", "?", "red", images=PICTURE)])
    (tmp_path / "outside.png").write_bytes((folder / PICTURE[0]).read_bytes())
    text = broken if isinstance(broken, str) else json.dumps(broken)
    with (folder / "questions.jsonl").open("a", encoding="latin-1") as file:
        file.write(f"\n{text}\n")
    with pytest.raises(DataError) as caught:
        read_questions(folder)
    assert f"{folder / 'questions.jsonl'}, line 3: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_and_a_link_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", [line("1", "?", "red", images=PICTURE)])
    (folder / PICTURE[0]).unlink()
    os.mkfifo(folder / PICTURE[0])
    with pytest.raises(DataError, match="does not exist"):
        read_questions(folder)
    (folder / PICTURE[0]).unlink()
    (tmp_path / "secret").write_text("secret")
    (folder / PICTURE[0]).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is outside"):
        read_questions(folder)


def test_a_folder_without_questions_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match="is not an evaluation folder"):
            read_questions(folder)
    (tmp_path / "questions.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="has no questions"):
        read_questions(tmp_path)
    write(tmp_path, [line("1", "?", "red")])
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.json is not valid JSON"):
        read_questions(tmp_path)


def test_a_picture_that_has_changed_is_an_error(tmp_path: Path) -> None:
    asked = read_questions(write(tmp_path, [line("1", "?", "red", images=PICTURE)]))
    (tmp_path / PICTURE[0]).write_bytes(b"other")
    with pytest.raises(DataError, match="changed while"):
        asked.turns(asked.questions[0])
