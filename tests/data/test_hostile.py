"""Data made to harm: nothing outside of it is read, and nothing but DataError is raised."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmchat.data import json_files, read_data, read_splits
from mmchat.data.fields import KNOWN_KEYS
from mmchat.errors import DataError
from tests.data.making import (
    chat,
    data_url,
    llava,
    picture,
    write_json,
    write_lines,
    write_pictures,
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture of this person's that the data has no business with."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.png").write_bytes(picture(77))
    return tmp_path / "private" / "secret.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a.png"])


def problem_of(folder: Path, image: Any) -> str:
    """Why a sample that names `image` is left out."""
    good = {"messages": chat("a", "b")}
    bad = {"image": image, "conversations": llava("a", "b")}
    data = read_data(write_lines(folder / "d.jsonl", [good, bad]), allow_bad=True)
    assert len(data.examples) == 1 and not data.examples[0].pictures
    return data.problems[0].why


def test_nothing_outside_of_the_data_is_read(folder: Path, secret: Path) -> None:
    (folder / "link.png").symlink_to(secret)
    (folder / "away").symlink_to(secret.parent)
    names = ["../private/secret.png", str(secret), secret.as_uri(), "link.png", "away/secret.png"]
    names += ["a.png/../../private/secret.png", "file://localhost" + str(secret)]
    for name in names:
        assert "is outside" in problem_of(folder, name), name
        assert "is outside" in problem_of(folder, {"path": name}), name
    assert "on another machine" in problem_of(folder, "file://host/a.png")
    for name in ("HTTP://host/a.png", "ftp://host/a.png", "s3://bucket/a.png"):
        assert "nothing is downloaded" in problem_of(folder, name)
    sibling = write_pictures(folder.with_name("data-more"), ["x.png"])
    assert "is outside" in problem_of(folder, str(sibling / "x.png"))


def test_names_that_are_none(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    for name in (
        "a\0.png",
        "x" * 5000,
        ".",
        "..",
        "/",
        "pipe.png",
        "loop.png",
        "//[",
        "file://[",
        "a.png/x",
    ):
        assert problem_of(folder, name)
    assert problem_of(folder, "/dev/zero")


def test_links_in_folders_of_pictures(tmp_path: Path, secret: Path) -> None:
    folder = write_pictures(tmp_path / "birds", ["kite/a.png", "owl/b.png"])
    (folder / "owl" / "link.png").symlink_to(secret)
    (folder / "away").symlink_to(secret.parent)
    (folder / "kite" / "round").symlink_to(folder)
    problems = {
        problem.place: problem.why for problem in read_data(folder, allow_bad=True).problems
    }
    assert "is outside" in problems.pop(str(folder / "owl" / "link.png"))
    assert all("link to a folder" in why for why in problems.values()) and len(problems) == 2


def test_a_text_beside_a_picture_is_no_link(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", ["a.png", "b.png"])
    (folder / "a.txt").write_text("A.")
    (tmp_path / "password.txt").write_text("hunter2")
    (folder / "b.txt").symlink_to(tmp_path / "password.txt")
    data = read_data(folder, allow_bad=True)
    assert len(data.examples) == 1 and "no text" in data.problems[0].why
    (folder / "b.txt").unlink()
    os.mkfifo(folder / "b.txt")
    assert "no text" in read_data(folder, allow_bad=True).problems[0].why


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"conversations":[', b'{"messages":'])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_that_is_a_million_deep(folder: Path, opening: bytes, ending: str) -> None:
    file = folder / f"d.{ending}"
    file.write_bytes(opening * 1_000_000)
    with pytest.raises(DataError, match=r"too deeply|broken"):
        read_data(file)


def test_depth_in_one_line_costs_that_line(folder: Path) -> None:
    good = [json.dumps({"messages": chat("a", str(n))}).encode() for n in range(200)]
    deep = b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (folder / "d.jsonl").write_bytes(b"\n".join([*good, deep, b"\0" * 1000]))
    data = read_data(folder / "d.jsonl")
    assert [problem.place.rpartition(" ")[2] for problem in data.problems] == ["201", "202"]


def test_a_huge_line_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE", 10_000)
    long = {"messages": chat("a" * 50_000, "b"), "image": data_url(picture(1))}
    values = [{"messages": chat("a", "b")}, long, {"messages": chat("c", "d")}]
    data = read_data(write_lines(folder / "d.jsonl", values), allow_bad=True)
    assert [example.turns[1].text for example in data.examples] == ["b", "d"]
    assert data.problems[0].place.endswith("line 2") and "the line is over" in data.problems[0].why
    monkeypatch.setattr(json_files, "MAX_JSON", 10_000)
    with pytest.raises(DataError, match=r"save it with one sample per line"):
        read_data(write_json(folder / "d.json", values))


def test_white_space_and_marks_without_end_take_no_time(folder: Path) -> None:
    space = " \n" * 500_000
    for text in (space + "<image>" + space, "x" + space + "y<image>", "<image>" * 200_000):
        value = {"image": "a.png", "conversations": llava(text, "b")}
        more = {"messages": chat("a", "b")}
        assert read_data(write_lines(folder / "d.jsonl", [value, more]), allow_bad=True).examples
    many = [{"role": "user", "content": "x"}] * 100_000
    value = {"messages": [*many, *chat("", "b")[1:]]}
    assert len(read_data(write_lines(folder / "d.jsonl", [value])).examples) == 1


@pytest.mark.parametrize(
    "state", ["{}", "[", '{"_data_files": [{"filename": "../x.arrow"}]}', "[" * 10**6]
)
def test_saved_datasets_that_lie(tmp_path: Path, state: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(DataError, match="save it again"):
        read_data(tmp_path)
    (tmp_path / "state.json").unlink()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../../x"]}')
    with pytest.raises(DataError, match="does not name any splits"):
        read_data(tmp_path)


@pytest.mark.parametrize("name", ["d.parquet", "data-00000-of-00001.arrow", "images.npy"])
def test_binary_files_that_are_none(tmp_path: Path, name: str) -> None:
    if name.endswith("arrow"):
        write_json(tmp_path / "state.json", {"_data_files": [{"filename": name}]})
    write_lines(tmp_path / "samples.jsonl", [{"images": [0], "dialogs": []}])
    for content in (
        b"",
        b"PAR1",
        b"PAR1" + bytes(100) + b"PAR1",
        b"\x93NUMPY\1\0v\0{'descr': '|O'}",
        bytes(50),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            read_data(tmp_path if name != "d.parquet" else tmp_path / name)


def test_a_damaged_parquet_file_is_a_sentence(tmp_path: Path) -> None:
    from tests.data.test_folder_formats import parquet

    rows = [{"image": picture(n), "caption": "x" * 50} for n in range(50)]
    whole = parquet(tmp_path / "d.parquet", rows).read_bytes()
    for at in range(4, len(whole), max(len(whole) // 60, 1)):
        damaged = bytearray(whole)
        damaged[at : at + 8] = b"\xff" * 8
        (tmp_path / "d.parquet").write_bytes(damaged)
        try:
            read_data(tmp_path / "d.parquet", allow_bad=True)
        except DataError as error:
            assert "\n" not in str(error)


def test_names_that_would_move_the_screen_are_shown_clean(folder: Path) -> None:
    why = problem_of(folder, "a\x1b]52;c;x\x07\n\u202eb.png")
    assert not set(why) & set("\x1b\x07\n\u202e")
    data = {f"\x1b[31m{'k' * 500}": 1}
    with pytest.raises(DataError) as error:
        read_data(write_json(folder / "d.json", [data]))
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 700


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "birds", ["kite/a.png", "owl/b.png"])
    os.rename(os.fsencode(folder / "owl"), os.fsencode(folder) + b"/\xff\xfe")  # noqa: PTH104
    data = read_data(folder, allow_bad=True)
    assert len(data.examples) == 1 and "half a character" in data.problems[0].why
    data.problems[0].place.encode()


# --- every field of any type

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
names = st.sampled_from(
    [
        "a.png",
        "../a.png",
        "",
        "data:image/png;base64,AA==",
        "http://x/y.png",
        "file:///etc/passwd",
        "\x00",
        "<image>",
        "user",
        "assistant",
        "system",
        "human",
        "gpt",
        "text",
        "image",
        "image_url",
        "tool",
    ]
)
inner = sorted(
    [
        "role",
        "from",
        "content",
        "value",
        "type",
        "text",
        "image_url",
        "url",
        "image",
        "path",
        "bytes",
        "weight",
        "user",
        "assistant",
        "answer",
    ]
)
values = st.recursive(
    scalars | names,
    lambda deeper: (
        st.lists(deeper, max_size=4)
        | st.dictionaries(st.sampled_from(inner) | st.text(max_size=3), deeper, max_size=4)
    ),
    max_leaves=12,
)
turn = st.fixed_dictionaries(
    {},
    optional={
        "role": names | scalars,
        "from": names | scalars,
        "content": values,
        "value": values,
        "weight": scalars,
    },
)
chats = st.lists(turn | values, max_size=5)
records = st.dictionaries(st.sampled_from(sorted(KNOWN_KEYS)), values | chats, max_size=6) | values
GOOD = {"messages": chat("a", "b")}


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(records, min_size=1, max_size=5), st.sampled_from(["d.json", "d.jsonl"]))
def test_no_value_of_no_field_raises_anything_else(
    folder: Path, found: list[Any], name: str
) -> None:
    file = folder / name
    lines = [json.dumps(one) for one in [GOOD, *found]]
    text = f"[{', '.join(lines)}]" if name == "d.json" else "\n".join(lines)
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    data = read_data(file, allow_bad=True)
    for example in data.examples:
        assert example.turns[-1].role == "assistant" and example.turns[-1].text.strip()
        assert not any(turn.role != "user" and len(turn.parts) != 1 for turn in example.turns)
        assert [turn.role for turn in example.turns] != ["assistant"]
    assert len(data.examples) + len(data.problems) >= 1 + len(found)
    for problem in data.problems:
        assert problem.why and "\n" not in problem.why
        problem.why.encode()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=200)
    | st.text(alphabet='[]{}",:\n\t a\0\ufeff', max_size=80).map(str.encode),
    st.sampled_from(
        ["d.json", "d.jsonl", "d.csv", "d.tsv", "d.txt", "metadata.csv", "questions.jsonl"]
    ),
)
def test_no_bytes_raise_anything_else(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path / name, tmp_path):
        for read in (read_data, read_splits):
            try:
                read(path, allow_bad=True)
            except DataError as error:
                assert "\n" not in str(error)
    (tmp_path / name).unlink()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["images", "dialogs"]), values | st.lists(values)),
        max_size=4,
    )
)
def test_no_prepared_sample_raises_anything_else(tmp_path: Path, found: list[Any]) -> None:
    import numpy as np

    np.save(tmp_path / "images.npy", np.zeros((2, 4, 5, 3), np.uint8))
    good = {"images": [1], "dialogs": [{"type": "x", "messages": chat("a", "b")}]}
    lines = [json.dumps(one) for one in [good, *found]]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines), errors="surrogatepass")
    data = read_data(tmp_path, allow_bad=True)
    assert (data.examples[0].pictures[0].width, data.examples[0].pictures[0].height) == (5, 4)
