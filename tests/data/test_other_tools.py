"""Data as other tools and other systems write it: read, or named in a sentence, never changed silently."""

import base64
import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mmchat.data import read_data
from mmchat.errors import DataError
from tests.data.making import (
    chat,
    data_url,
    llava,
    only,
    picture,
    write_lines,
    write_pictures,
)
from tests.data.test_folder_forms import parquet

ASKED = ("user", "<a.png>", "what is it?")
ANSWERED = ("assistant", "a kite")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a.png", "images/b.png"])


def one(folder: Path, value: Any) -> list[tuple[str, ...]]:
    return only(read_data(write_lines(folder / "d.jsonl", [value])))


def problem(folder: Path, value: Any) -> str:
    good = {"messages": chat("fine?", "yes")}
    data = read_data(write_lines(folder / "d.jsonl", [good, value]), allow_bad=True)
    (found,) = data.problems
    return found.why


# --- placeholders


@pytest.mark.parametrize(
    "mark",
    [
        "<image>",
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>",
        "<|image_pad|>",
        "<|image|>",
        "<|image_1|>",
        "<image_1>",
        "<image 1>",
        "<image1>",
        "<Image_1>",
        "<image_00>",
        "<image_0>",
        "<start_of_image>",
        "<image_soft_token>",
        "<image_placeholder>",
        "<ImageHere>",
        "[IMG]",
        "(<image>./</image>)",
        "<image>./</image>",
        "<image></image>",
        "<im_start><image><im_end>",
        "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
        "<|begin_of_image|><|image|><|end_of_image|>",
        "<fake_token_around_image><image><fake_token_around_image>",
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
    ],
)
def test_the_placeholders_of_other_tools(folder: Path, mark: str) -> None:
    asked = {"images": ["a.png"], "messages": chat(f"{mark}\nwhat is it?", "a kite")}
    assert one(folder, asked) == [ASKED, ANSWERED]
    row = {"image": "a.png", "question": f"{mark}what is it?", "answer": "a kite"}
    assert one(folder, row) == [ASKED, ANSWERED]
    assert "marks the places of more pictures than it names (0)" in problem(
        folder, {"messages": chat(f"{mark}\nwhat is it?", "a kite")}
    )
    if not any(map(str.isdigit, mark)):
        twice = {"image": "a.png", "conversations": llava(f"{mark}{mark}?", "x")}
        assert "more pictures than it names (1)" in problem(folder, twice)
    # In an answer, and where the data says that there is no picture, it is a word.
    words = {"images": [], "messages": chat(f"{mark} means?", f"{mark} is one of ours: {mark}")}
    assert one(folder, words) == [
        ("user", f"{mark} means?"),
        ("assistant", words["messages"][1]["content"]),
    ]
    told = {"images": ["a.png"], "messages": chat(f"{mark}\nread it", f"Text\n![1]({mark}) {mark}")}
    assert one(folder, told)[1] == ("assistant", f"Text\n![1]({mark}) {mark}")


def test_numbered_placeholders_say_which_picture(folder: Path) -> None:
    for first, second in (
        ("<image_1>", "<image_2>"),
        ("<|image_1|>", "<|image_2|>"),
        ("<img0>", "<img1>"),
    ):
        asked = f"is {second} like {first}, or {second} larger?"
        value = {"images": ["a.png", "images/b.png"], "conversations": llava(asked, "no")}
        assert one(folder, value)[0] == (
            *("user", "is ", "<b.png>", " like ", "<a.png>", ", or ", "<b.png>", " larger?"),
        )
    value = {"images": ["a.png", "images/b.png"], "conversations": llava("<image_1> and?", "no")}
    assert "names 2 pictures and marks the places of 1" in problem(folder, value)
    value = {"images": ["a.png"], "conversations": llava("<image_3> and?", "no")}
    assert one(folder, {**value, "conversations": llava("<image_00> a", "b", "c <image_00>?", "d")})
    assert "more pictures than it names (1)" in problem(folder, value)
    keyed = {"<image_01>": "images/b.png", "<image_00>": "a.png"}
    value = {"image": keyed, "conversations": llava("<image_00> or <image_01>?", "no")}
    assert one(folder, value)[0] == ("user", "<a.png>", "or ", "<b.png>", "?")


def test_qwens_paths_in_the_text(folder: Path) -> None:
    text = "Picture 1: <img>a.png</img>\nPicture 2: <img>images/b.png</img>\nWhich is larger?"
    roles = ("user", "assistant")
    turns = [{"from": who, "value": said} for who, said in zip(roles, (text, "[1]"), strict=True)]
    assert one(folder, {"conversations": turns})[0] == (
        *("user", "Picture 1: ", "<a.png>", "\nPicture 2: ", "<b.png>", "\nWhich is larger?"),
    )
    assert "c.png is not there" in problem(folder, {"messages": chat("<img>c.png</img>?", "x")})
    why = problem(folder, {"messages": chat("<img>/etc/passwd</img>?", "x")})
    assert "lies outside of" in why
    words = chat("<img src='x'> needs no end, <img> neither, </img> is wrong", "<img>a.png</img>")
    assert one(folder, {"messages": words})[0][1] == words[0]["content"]


def test_a_word_in_a_sentence_is_no_placeholder(folder: Path) -> None:
    text = "In HTML5, is <image> the same as <img>?"
    assert one(folder, {"messages": chat(text, "<image> is not.")})[0] == ("user", text)
    value = {
        "image": "a.png",
        "conversations": llava("<image>\nWhat does <|image_pad|> mean?", "x"),
    }
    assert one(folder, value)[0] == ("user", "<a.png>", "What does <|image_pad|> mean?")
    parts = [{"type": "text", "text": "<image>\nwhat is it?"}]
    value = {
        "images": ["a.png"],
        "messages": [{"role": "user", "content": parts}, *chat("", "a kite")[1:]],
    }
    assert one(folder, value) == [ASKED, ANSWERED]


def test_placeholders_without_end_take_no_time(folder: Path) -> None:
    for text in (
        "x<image>y" * 50_000,
        "<img>" * 50_000,
        "<|vision_start|>" + "<|image_pad|>" * 50_000,
        "<im_start><image>" * 100_000,
        "<image_1" * 50_000,
        "<img>a" * 50_000,
    ):
        value = {"conversations": llava(f"a {text} b", "c")}
        good = {"messages": chat("a", "b")}
        assert read_data(write_lines(folder / "d.jsonl", [good, value]), allow_bad=True).examples


# --- fields


def test_alpacas_system_and_history(folder: Path) -> None:
    value = {
        "instruction": "<image>And now?",
        "input": "",
        "output": "Mine.",
        "system": "You are a pirate.",
        "history": [["Is it a square?", "Aye."], ["Of one colour?", "Aye aye."]],
        "images": ["a.png"],
    }
    assert one(folder, value) == [
        ("system", "You are a pirate."),
        ("user", "Is it a square?"),
        ("assistant", "Aye."),
        ("user", "Of one colour?"),
        ("assistant", "Aye aye."),
        ("user", "<a.png>", "And now?"),
        ("assistant", "Mine."),
    ]
    unmarked = {**value, "instruction": "And now?", "system_prompt": value.pop("system")}
    assert one(folder, unmarked)[1] == ("user", "<a.png>", "Is it a square?")
    swift = {
        "query": "b?",
        "response": "c",
        "history": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}],
    }
    assert [turn[1] for turn in one(folder, swift)] == ["a?", "b", "b?", "c"]
    assert "its history is not a list of pairs" in problem(folder, {**value, "history": ["a", "b"]})
    assert "its history is not a list of pairs" in problem(folder, {**value, "history": "a"})
    assert "its system is a list, not text" in problem(folder, {**value, "system": ["a"]})
    for empty in (None, [], ""):
        assert len(one(folder, {**value, "history": empty})) == 2
    (folder / "d.csv").write_text(
        'instruction,output,history,system\na?,b,"[[""c?"", ""d""]]",Brief.\ne?,f,,\n'
    )
    examples = read_data(folder / "d.csv").examples
    assert [len(example.turns) for example in examples] == [5, 2]


def test_the_choices_of_a_question_are_asked(folder: Path) -> None:
    value = {
        "image": "a.png",
        "question": "What is it?",
        "choices": ["a kite", "an owl"],
        "answer": 1,
    }
    asked = ("user", "<a.png>", "What is it?\nA. a kite\nB. an owl")
    assert one(folder, value) == [asked, ("assistant", "B")]
    for answer, learned in (("B", "B"), ("an owl", "an owl"), ("0", "A")):
        assert one(folder, {**value, "answer": answer}) == [asked, ("assistant", learned)]
    assert "its choices are numbered from 0" in problem(folder, {**value, "answer": 2})
    listed = {**value, "choices": {"text": ["a kite", "an owl"], "label": ["A", "B"]}}
    assert one(folder, listed)[0] == asked
    assert one(folder, {**value, "choices": "['a kite', 'an owl']"})[0] == asked
    written = {**value, "question": "What is it? A) a kite B) an owl"}
    assert one(folder, written)[0][2] == "What is it? A) a kite B) an owl"
    numbers = {**value, "choices": ["2", "3"], "answer": "2"}
    assert one(folder, numbers)[1] == ("assistant", "2")
    row = "index\timage\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\n"
    text = base64.b64encode(picture(0)).decode()
    (folder / "bench.tsv").write_text(
        row + f"1\t{text}\tWhat is it?\tIt flies.\ta kite\tan owl\t\t\tA\tbirds\n"
    )
    (example,) = read_data(folder / "bench.tsv").examples
    assert example.turns[0].text == "It flies.\nWhat is it?\nA. a kite\nB. an owl"
    assert example.turns[-1].text == "A" and example.pictures[0].data == picture(0)


@pytest.mark.parametrize(
    "key", ["image_id", "imageId", "img_id", "image_index", "image_sha256", "coco_id"]
)
def test_a_number_that_names_a_picture_is_told(folder: Path, key: str) -> None:
    value = {key: 0, "question": "What colour?", "answers": [{"answer": "red"}] * 3}
    assert f"it names its picture only by {key.lower()} 0, which is not a file" in problem(
        folder, value
    )
    assert "only by" in problem(folder, {key: 7, "messages": chat("what?", "a kite")})
    assert one(folder, {**value, "image": "a.png"})[1] == ("assistant", "red")
    assert one(folder, {"messages": chat("a", "b"), key: None})
    rows = [{key: 3, "question": "What colour?", "answer": "red"}]
    with pytest.raises(DataError, match="only by"):
        read_data(parquet(folder / "d.parquet", rows))


def test_pictures_in_numbered_columns(folder: Path) -> None:
    value = {
        "image_2": "images/b.png",
        "image_1": "a.png",
        "image_3": None,
        "question": "<image 1> or <image 2>?",
        "answer": "1",
    }
    assert one(folder, value)[0] == ("user", "<a.png>", "or ", "<b.png>", "?")
    rows = [{"image_1": picture(5), "image_2": None, "question": "what?", "answer": "x"}]
    (example,) = read_data(parquet(folder / "d.parquet", rows)).examples
    assert example.pictures[0].data == picture(5)


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
    assert "is not there" in problem(folder, {"image": cut, "messages": chat("a", "b")})


def test_keys_as_people_write_them(folder: Path) -> None:
    for key in ("File Name", "file-name", "IMAGE", "imagePath", "image file", "Photo"):
        assert one(folder, {key: "a.png", "Caption": "a kite"})[1] == ANSWERED
    text = [{"role": "user", "text": "what is it?"}, {"role": "assistant", "text": "a kite"}]
    assert one(folder, {"image": "a.png", "messages": text}) == [ASKED, ANSWERED]
    cell = {"image": "a.png", "conversations": json.dumps(llava("what is it?", "a kite"))}
    assert read_data(parquet(folder / "d.parquet", [cell])).examples[0].turns[1].text == "a kite"


def test_calls_of_tools_are_told(folder: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert "calls of tools cannot be learned" in problem(folder, {"messages": [*chat("a"), call]})


# --- names


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
        assert "is on a Windows drive: write its path from the data's folder" in why
        assert why.endswith("such as b.png")
    assert "is not there" in problem(folder, {**value, "image": "images\\c.png"})
    assert "is not there" in problem(folder, {**value, "image": "..\\data\\c.png"})


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
    (folder / "img_1.JPG").write_bytes(picture(6))
    assert "is not there" in problem(
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


# --- tables


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file_name;text\r\na.png;ein grünes, rotes\r\n;\r\n", "utf-8-sig"),
        ("sep=;\r\nfile_name;text\r\na.png;ein grünes, rotes\r\n", "utf-8"),
        ("file_name\ttext\na.png\tein grünes, rotes\n", "utf-16"),
        ("file_name|text\na.png|ein grünes, rotes\n", "utf-8"),
        ('file_name,text,\n"a.png","ein grünes, rotes",,,\n,,\n', "utf-8"),
        ('"File Name";"Text"\na.png;"ein grünes, rotes"\n', "utf-16-be-bom"),
    ],
)
def test_tables_as_spreadsheets_write_them(folder: Path, text: str, encoding: str) -> None:
    data = text.encode("utf-16-be") if encoding.endswith("bom") else text.encode(encoding)
    (folder / "metadata.csv").write_bytes((b"\xfe\xff" if encoding.endswith("bom") else b"") + data)
    assert only(read_data(folder))[1] == ("assistant", "ein grünes, rotes")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            "file_name,text\na.png,grün\n".encode("cp1252"),
            r"is not text in UTF-8: save it as UTF-8 \(in Excel: CSV UTF-8\)",
        ),
        (
            "file_name,text\na.png,x\n".encode("utf-16-le"),
            "is not text in UTF-8: save it as CSV UTF-8",
        ),
        ("file_name,text\na.png,x\n".encode("utf-32"), "is UTF-32 text: save it as UTF-8"),
        (b"PK\3\4" + bytes(50), "is an Excel or OpenDocument workbook, not text"),
        (b"name;breed\na.png;x\n", "has name, breed, and needs file_name"),
    ],
)
def test_tables_that_cannot_be_read_say_what_to_do(folder: Path, data: bytes, why: str) -> None:
    (folder / "metadata.csv").write_bytes(data)
    with pytest.raises(DataError, match=why):
        read_data(folder)


def test_a_quote_that_is_never_closed_swallows_nothing(folder: Path) -> None:
    (folder / "metadata.csv").write_text('file_name,text\na.png,x\na.png,"y\na.png,z\n')
    data = read_data(folder, allow_bad=True)
    assert len(data.examples) == 1 and "is not a row of a table" in data.problems[0].why
    assert data.problems[0].place.endswith("metadata.csv, line 3")


def test_cells_longer_than_pythons_limit(folder: Path) -> None:
    rows = [bytes((x * 7 + y * 13) % 256 for x in range(900)) for y in range(160)]
    from tests.images.builders import png

    large = png(300, 160, rows, 8, 2)
    text = base64.b64encode(large + bytes(100_000)).decode()
    assert len(text) > 131_072
    for name in (text, f"data:image/png;base64,{text}"):
        (folder / "d.tsv").write_text(f"index\timage\tquestion\tanswer\n1\t{name}\twhat?\ta kite\n")
        (example,) = read_data(folder / "d.tsv").examples
        assert (example.pictures[0].width, example.pictures[0].height) == (300, 160)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("metadata.xlsx", "is a spreadsheet: save it as CSV UTF-8"),
        ("pictures.zip", "is an archive: unpack it"),
        ("train.jsonl.gz", "is a compressed file: unpack it"),
        ("data.yaml", "is YAML: save it as JSON"),
    ],
)
def test_files_that_are_not_read_are_named(folder: Path, name: str, why: str) -> None:
    (folder / name).write_bytes(b"PK\3\4")
    for path in (folder / name, folder):
        with pytest.raises(DataError, match=f"{name} {why}"):
            read_data(path)
