"""What a sample has to be, and what is told of one that is not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmchat.data import read_data
from mmchat.errors import DataError
from tests.data.making import chat, llava, plain, write_json, write_lines, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a.png", "b.png"])


def one(folder: Path, value: Any) -> list[tuple[str, ...]]:
    (example,) = read_data(write_json(folder / "d.json", [value])).examples
    return plain(example)


def test_pictures_without_marks_stand_before_the_first_question(folder: Path) -> None:
    value = {"system": "S", "images": ["a.png", "b.png"], "messages": chat("x", "y", "z", "w")}
    assert one(folder, value)[:2] == [("system", "S"), ("user", "<a.png>", "<b.png>", "x")]


def test_white_space_around_marks_and_answers_goes(folder: Path) -> None:
    value = {"image": "a.png", "conversations": llava("\nwhat is\nit? \n<image>\n", " a kite\n")}
    assert one(folder, value) == [("user", "what is\nit?", "<a.png>"), ("assistant", "a kite")]


def test_messages_of_one_role_become_one(folder: Path) -> None:
    messages = [*chat("a"), *chat("b", "c"), {"role": "assistant", "content": "d"}]
    assert one(folder, {"messages": messages}) == [("user", "a\n\nb"), ("assistant", "c\n\nd")]


def test_what_nobody_asked_and_nobody_answered_is_left_out(folder: Path) -> None:
    messages = [{"role": "assistant", "content": "hello"}, *chat("a", "b", "c"), *chat("d")]
    assert one(folder, {"messages": messages}) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"messages": chat("only asked")}, "no question with an answer"),
        ({"messages": []}, "no question with an answer"),
        ({"messages": chat("a", " \n")}, "an answer is empty"),
        ({"messages": chat("a", "b", "", "d")}, "a question is empty"),
        (
            {"messages": [*chat("a", "b"), {"role": "system", "content": "s"}, *chat("c", "d")]},
            "system",
        ),
        ({"messages": [{"role": "poet", "content": "a"}]}, r"unknown role \(poet\)"),
        ({"messages": [{"role": None, "content": "a"}]}, r"unknown role \(None\)"),
        ({"messages": "a"}, "not a list of messages"),
        ({"messages": [3]}, "not a list of messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is a number"),
        (
            {"image": "a.png", "conversations": llava("<image><image>", "x")},
            r"more pictures than .*\(1\)",
        ),
        ({"conversations": llava("<image>", "x")}, r"more pictures than it has \(0\)"),
        (
            {"images": ["a.png", "b.png"], "messages": chat("<image>", "x")},
            "has 2 .* placeholders for 1",
        ),
        ({"image": "a.png", "conversations": llava("a", "<image>")}, "only questions can have"),
        ({"image": "c.png", "conversations": llava("a", "b")}, "the picture c.png does not exist"),
        ({"image": 7, "conversations": llava("a", "b")}, "a picture is a number, not"),
        ({"images": ["a.png", None], "messages": chat("a", "b")}, "images holds an empty name"),
        ({"video": "v.mp4", "conversations": llava("a", "b")}, "only pictures are supported"),
        ({"image": "a.png"}, "an answer is empty"),
        ({"question": "a?", "answer": ""}, "an answer is empty"),
        ({"caption": "nothing to see"}, "neither a picture nor a question"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "type input_audio",
        ),
        ({"messages": [{"role": "user", "content": [3]}]}, "a part of a message is a number"),
        ("text", "this is text, not a sample"),
        (None, "this is null, not a sample"),
        (
            {"messages": [{"role": "user", "content": "\ud83d"}, *chat("", "b")[1:]]},
            "half a character",
        ),
    ],
)
def test_a_bad_sample_is_left_out_and_told(folder: Path, value: Any, why: str) -> None:
    good = {"messages": chat("a", "b")}
    file = folder / "d.jsonl"
    write_lines(file, [good, good])
    file.write_text(file.read_text() + json.dumps(value) + "\n")
    data = read_data(file, allow_bad=True)
    (problem,) = data.problems
    assert len(data.examples) == 2
    assert problem.place == f"{file}, line 3"
    assert re.search(why, problem.why), problem.why
    assert "\n" not in problem.why and not problem.why.endswith(".")


def test_a_weight_that_varies_is_told(folder: Path) -> None:
    messages: list[dict[str, Any]] = [*chat("a", "b", "c", "d", "e", "f")]
    messages[3]["weight"] = 0
    file = write_lines(folder / "d.jsonl", [{"messages": messages}, {"messages": chat("a", "b")}])
    (problem,) = read_data(file, allow_bad=True).problems
    assert "weight 0: write one sample for each" in problem.why
    for one_message in messages:
        one_message["weight"] = 0
    file = write_lines(folder / "d.jsonl", [{"messages": messages}, {"messages": chat("a", "b")}])
    (problem,) = read_data(file, allow_bad=True).problems
    assert "there is nothing to learn" in problem.why


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (2, True)])
def test_more_than_one_in_a_hundred_bad_stops(folder: Path, bad: int, refused: bool) -> None:
    good = [{"messages": chat("a", str(number))} for number in range(100 - bad)]
    file = write_lines(folder / "d.jsonl", [*good, *[{"messages": chat("a")}] * bad])
    assert len(read_data(file, allow_bad=True).problems) == bad
    if not refused:
        assert len(read_data(file).examples) == 99
        return
    with pytest.raises(DataError) as error:
        read_data(file)
    assert "2 of 100 samples" in str(error.value) and "--allow-bad" in str(error.value)
    assert str(error.value).count("line ") == 2


def test_at_most_three_problems_stand_in_the_sentence(folder: Path) -> None:
    file = write_lines(
        folder / "d.jsonl", [*[{"messages": chat("a")}] * 9, {"messages": chat("a", "b")}]
    )
    with pytest.raises(DataError, match=r"^9 of 10 samples") as error:
        read_data(file)
    assert str(error.value).count("line ") == 3
    with pytest.raises(DataError, match="None of the 9 samples"):
        read_data(write_lines(file, [{"messages": chat("a")}] * 9), allow_bad=True)


def test_one_broken_line_is_a_problem_of_that_line(folder: Path) -> None:
    file = write_lines(folder / "d.jsonl", [{"messages": chat("a", str(n))} for n in range(3)])
    file.write_bytes(file.read_bytes() + b'{"messages": [}\n{"messages": "\xff"}\n[[[\n')
    problems = read_data(file, allow_bad=True).problems
    assert [problem.place.rpartition(" ")[2] for problem in problems] == ["4", "5", "6"]
    assert "broken JSON at column 15" in problems[0].why
    assert "not UTF-8" in problems[1].why
    with pytest.raises(DataError, match=r"line 4: broken JSON"):
        read_data(file)


def test_broken_json_says_line_and_column(folder: Path) -> None:
    file = folder / "d.json"
    file.write_text('[{"messages": []},\n {"messages" []}]')
    with pytest.raises(DataError, match=r"d.json is broken JSON in line 2, column 14 "):
        read_data(file)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "has|holds"),
        (b"\xff\xfe[\0]\0", "is UTF-16 text: save it as UTF-8"),
        (b'[{"a": "\xff"}', r"is not UTF-8 text \(byte 8\): save it as UTF-8"),
        (b"hello", "is not JSON"),
        (b'[{"name": "x", "size": 3}]', "has name, size; these are read: LLaVA"),
        (b"[1, 2]", "has no samples that are JSON objects"),
    ],
)
def test_a_file_that_is_no_data_is_one_sentence(folder: Path, content: bytes, why: str) -> None:
    (folder / "d.json").write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_data(folder / "d.json")


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    for name in ("nowhere", "nowhere/deeper", "x" * 300, "a\0b"):
        with pytest.raises(DataError):
            read_data(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty; these are read"):
        read_data(tmp_path / "empty")
    write_pictures(tmp_path / "photos", ["a.png", "b.png"])
    with pytest.raises(DataError, match="has 2 pictures, and nothing that says what they show"):
        read_data(tmp_path / "photos")
    with pytest.raises(DataError, match="is a single picture: give its folder"):
        read_data(tmp_path / "photos" / "a.png")
    (tmp_path / "a.zip").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"a\.zip is an archive: unpack it\.$"):
        read_data(tmp_path / "a.zip")
    (tmp_path / "a.bin").write_bytes(b"\1\2")
    with pytest.raises(DataError, match="is not in a known format; these are read: LLaVA"):
        read_data(tmp_path / "a.bin")
