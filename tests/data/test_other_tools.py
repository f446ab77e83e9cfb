"""Data as other tools and other systems write it: read, or named in a sentence, never changed silently."""

import base64
import json
from pathlib import Path

import pytest

from mmchat.data import read_data
from mmchat.errors import DataError
from tests.data.making import (
    ANSWERED,
    ASKED,
    chat,
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
    assert "placeholders for more pictures than it has (0)" in problem(
        folder, {"messages": chat(f"{mark}\nwhat is it?", "a kite")}
    )
    if not any(map(str.isdigit, mark)):
        twice = {"image": "a.png", "conversations": llava(f"{mark}{mark}?", "x")}
        assert "more pictures than it has (1)" in problem(folder, twice)
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
    assert "has 2 pictures but placeholders for 1" in problem(folder, value)
    value = {"images": ["a.png"], "conversations": llava("<image_3> and?", "no")}
    assert one(folder, {**value, "conversations": llava("<image_00> a", "b", "c <image_00>?", "d")})
    assert "more pictures than it has (1)" in problem(folder, value)
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
    assert "c.png does not exist" in problem(folder, {"messages": chat("<img>c.png</img>?", "x")})
    why = problem(folder, {"messages": chat("<img>/etc/passwd</img>?", "x")})
    assert "is outside" in why
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
    assert "its history is not a list of (question, answer) pairs" in problem(
        folder, {**value, "history": ["a", "b"]}
    )
    assert "its history is not a list of (question, answer) pairs" in problem(
        folder, {**value, "history": "a"}
    )
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
    assert "it has 2 choices, numbered from 0" in problem(folder, {**value, "answer": 2})
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
    assert f"its picture is given only by {key.lower()} 0, which is not a file" in problem(
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


def test_keys_as_people_write_them(folder: Path) -> None:
    for key in ("File Name", "file-name", "IMAGE", "imagePath", "image file", "Photo"):
        assert one(folder, {key: "a.png", "Caption": "a kite"})[1] == ANSWERED
    text = [{"role": "user", "text": "what is it?"}, {"role": "assistant", "text": "a kite"}]
    assert one(folder, {"image": "a.png", "messages": text}) == [ASKED, ANSWERED]
    cell = {"image": "a.png", "conversations": json.dumps(llava("what is it?", "a kite"))}
    assert read_data(parquet(folder / "d.parquet", [cell])).examples[0].turns[1].text == "a kite"


def test_calls_of_tools_are_told(folder: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert "tool calls are not supported" in problem(folder, {"messages": [*chat("a"), call]})
