"""How data names its pictures: on other systems, as base64, as numbers that are no files."""

import base64
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mmchat.data import read_data
from tests.data.making import (
    chat,
    data_url,
    llava,
    one,
    picture,
    problem,
    write_lines,
    write_pictures,
)
from tests.data.test_folder_formats import parquet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a.png", "images/b.png"])


@pytest.mark.parametrize(
    "image",
    [
        [{"image": "a.png"}],
        [{"path": "a.png"}],
        [{"url": "a.png"}],
        {"image_url": {"url": "a.png"}},
        [{"filename": "a.png", "bytes": None}],
        [["a.png"]],
        {"base64": base64.b64encode(picture(0)).decode()},
        {"bytes": base64.b64encode(picture(0)).decode(), "path": "x.png"},
        {
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": base64.b64encode(picture(0)).decode(),
            }
        },
        {"data": data_url(picture(0))},
        base64.b64encode(picture(0)).decode(),
        base64.urlsafe_b64encode(picture(0)).decode().rstrip("="),
        base64.encodebytes(picture(0)).decode(),
    ],
    ids=str,
)
def test_ways_to_name_a_picture(folder: Path, image: Any) -> None:
    value = {"images": image, "messages": chat("<image>what is it?", "a kite")}
    data = read_data(write_lines(folder / "d.jsonl", [value]))
    (shown,) = data.examples[0].pictures
    again = pickle.loads(pickle.dumps(shown))
    assert again.data == picture(0) and again.held is None
    if isinstance(image, dict):
        part = {"type": "image", **image}
        content = [part, {"type": "text", "text": "what is it?"}]
        value = {"messages": [{"role": "user", "content": content}, *chat("", "a kite")[1:]]}
        (example,) = read_data(write_lines(folder / "d.jsonl", [value])).examples
        assert example.pictures[0].data == picture(0)
    rows = [{"images": image, "question": "what?", "answer": "a kite"}]
    (example,) = read_data(parquet(folder / "d.parquet", rows)).examples
    assert pickle.loads(pickle.dumps(example.pictures[0])).data == picture(0)


def test_base64_that_is_no_picture_is_told_by_its_kind(folder: Path) -> None:
    heic = base64.b64encode(b"\0\0\0\x18ftypheic" + bytes(900)).decode()
    assert "has the format HEIC" in problem(folder, {"image": heic, "messages": chat("a", "b")})
    cut = base64.b64encode(picture(1)).decode()[:-15] + "!"
    assert "does not exist" in problem(folder, {"image": cut, "messages": chat("a", "b")})


def test_paths_as_windows_writes_them(folder: Path) -> None:
    value = {"image": "images\\b.png", "conversations": llava("?", "x")}
    assert one(folder, value)[0][1] == "<b.png>"
    (folder / "metadata.csv").write_text("file_name,text\nimages\\b.png,x\n.\\a.png,y\n")
    assert len(read_data(folder).examples) == 2
    for name in (
        "C:\\data\\images\\b.png",
        "c:/data/b.png",
        "\\\\server\\share\\b.png",
        "file:///C:/data/b.png",
    ):
        why = problem(folder, {**value, "image": name})
        assert "is on a Windows drive: write its path relative to the data's folder" in why
        assert why.endswith("such as b.png")
    assert "does not exist" in problem(folder, {**value, "image": "images\\c.png"})
    assert "does not exist" in problem(folder, {**value, "image": "..\\data\\c.png"})


def test_names_that_a_mac_has_decomposed(tmp_path: Path) -> None:
    names = ["Müller.png", "café/žluť.png", "가나다.png", "blå.PNG"]
    for form, other in (("NFD", "NFC"), ("NFC", "NFD")):
        folder = tmp_path / form
        write_pictures(folder, [unicodedata.normalize(form, name) for name in names])
        values = [
            {"image": unicodedata.normalize(other, name), "conversations": llava("?", "x")}
            for name in names
        ]
        data = read_data(write_lines(folder / "d.jsonl", values))
        assert len(data.examples) == len(names) and not data.problems
        elsewhere = write_lines(tmp_path / f"of-{form}" / "d.jsonl", values)
        assert len(read_data(elsewhere, images=folder).examples) == len(names)


def test_capitals_that_windows_does_not_mind(folder: Path) -> None:
    (folder / "IMG_1.JPG").write_bytes(picture(5))
    assert one(folder, {"image": "img_1.jpg", "conversations": llava("?", "x")})
    assert one(folder, {"image": "Images/B.png", "conversations": llava("?", "x")})
    if (folder / "img_1.JPG").exists():
        return  # a file system that does not mind capitals either
    (folder / "img_1.JPG").write_bytes(picture(6))
    assert "does not exist" in problem(
        folder, {"image": "img_1.jpg", "conversations": llava("?", "x")}
    )
    assert one(folder, {"image": " a.png ", "conversations": llava("what is it?", "a kite")})[1]


def test_other_spellings_lead_nowhere_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.png").write_bytes(picture(77))
    (folder / "away").symlink_to(tmp_path / "private")
    for name in (
        "..\\private\\secret.png",
        "away\\secret.png",
        "AWAY/SECRET.png",
        "away/SECRET.PNG",
    ):
        assert problem(folder, {"image": name, "conversations": llava("?", "x")})


def test_a_class_is_named_in_composed_letters(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFD", name) for name in ("Müller/a.png", "café/b.png")]
    data = read_data(write_pictures(tmp_path / "d", names))
    assert sorted(example.kind for example in data.examples) == ["Müller", "café"]
