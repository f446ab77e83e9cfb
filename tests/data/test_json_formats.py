"""JSON in every format that people keep conversations in, each as a real file."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from mmchat.data import read_data
from mmchat.errors import DataError
from tests.data.making import (
    ANSWERED,
    ASKED,
    chat,
    data_url,
    llava,
    only,
    picture,
    plain,
    write_json,
    write_lines,
    write_pictures,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", ["a.png", "images/b.png", "images/c.png"])


def test_llava(folder: Path) -> None:
    value = [
        {"id": "1", "image": "a.png", "conversations": llava("<image>\nwhat is it?", "a kite")}
    ]
    data = read_data(write_json(folder / "llava.json", value))
    assert data.format == "LLaVA JSON"
    assert only(data) == [ASKED, ANSWERED]
    (shown,) = data.examples[0].pictures
    assert shown.sha256 == hashlib.sha256(picture(0)).hexdigest()
    assert (shown.mime, shown.width, shown.height, shown.data) == ("image/png", 6, 4, picture(0))
    assert data.examples[0].place.endswith("llava.json, sample 1")


def test_llava_with_several_pictures_and_lines(folder: Path) -> None:
    value = {
        "image": ["a.png", "images/b.png"],
        "conversations": llava("is <image> like\n<image>", "no", "sure?", "yes"),
    }
    data = read_data(write_lines(folder / "llava.jsonl", [value]))
    assert data.format == "LLaVA JSON Lines"
    assert only(data) == [
        ("user", "is ", "<a.png>", " like", "<b.png>"),
        ("assistant", "no"),
        ("user", "sure?"),
        ("assistant", "yes"),
    ]


def test_sharegpt(folder: Path) -> None:
    value = [
        {
            "images": ["a.png"],
            "system": "Be short.",
            "conversations": llava("what is it?", "a kite"),
        }
    ]
    data = read_data(write_json(folder / "s.json", value))
    assert data.format == "ShareGPT JSON"
    assert only(data) == [("system", "Be short."), ASKED, ANSWERED]


def test_llama_factory(folder: Path) -> None:
    value = [{"messages": chat("<image>what is it?", "a kite"), "images": ["a.png"]}]
    data = read_data(write_json(folder / "l.json", value))
    assert data.format == "LLaMA-Factory JSON"
    assert only(data) == [ASKED, ANSWERED]


def test_observations_are_read_and_calls_are_learned(folder: Path) -> None:
    turns = [
        ("human", "look"),
        ("function_call", "see()"),
        ("observation", "a kite"),
        ("gpt", "Yes."),
    ]
    value = [{"conversations": [{"from": who, "value": text} for who, text in turns], "images": []}]
    assert only(read_data(write_json(folder / "l.json", value))) == [
        ("user", "look"),
        ("assistant", "see()"),
        ("user", "a kite"),
        ("assistant", "Yes."),
    ]


@pytest.mark.parametrize("address", ["a.png", "url", "file", "absolute", "plain"])
def test_openai_chat(folder: Path, address: str) -> None:
    named = {
        "url": data_url(picture(0)),
        "file": (folder / "a.png").as_uri(),
        "absolute": str(folder / "a.png"),
    }.get(address, "a.png")
    url: Any = named if address == "plain" else {"url": named, "detail": "low"}
    content = [
        {"type": "text", "text": "what is <image>?"},
        {"type": "image_url", "image_url": url},
    ]
    value = {"messages": [{"role": "user", "content": content}, *chat("", "a kite")[1:]]}
    data = read_data(write_lines(folder / "o.jsonl", [value]))
    assert data.format == "OpenAI chat JSON Lines"
    (example,) = data.examples
    assert example.turns[0].text == "what is <image>?"
    assert [one.data for one in example.pictures] == [picture(0)]


def test_what_lies_on_a_network_is_never_fetched(folder: Path) -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    value = {"messages": [{"role": "user", "content": content}, *chat("", "a kite")[1:]]}
    with pytest.raises(
        DataError, match=r"line 1: the picture https://example.org/a.png is on a net"
    ):
        read_data(write_lines(folder / "o.jsonl", [value]))


def test_a_weight_of_nothing_is_not_learned(folder: Path) -> None:
    messages: list[dict[str, Any]] = [*chat("a?", "no", "b?", "yes", "c?", "late")]
    messages[1]["weight"], messages[3]["weight"], messages[5]["weight"] = 0, 1, 0
    (example,) = read_data(write_lines(folder / "o.jsonl", [{"messages": messages}])).examples
    assert example.only_last and plain(example)[-1] == ("assistant", "yes")


def test_trl_parts_take_the_next_picture(folder: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image", "text": None}]
    value = {
        "images": ["a.png", "images/b.png"],
        "messages": [{"role": "user", "content": content}, *chat("", "the first")[1:]],
    }
    found = only(read_data(write_lines(folder / "t.jsonl", [value])))
    assert found[0] == ("user", "<a.png>", "or", "<b.png>")


def test_the_cauldron(folder: Path) -> None:
    texts = [{"user": "what is it?", "assistant": "a kite", "source": "x"}]
    texts.append({"user": "sure?", "assistant": "yes", "source": "x"})
    value = {"images": ["a.png"], "texts": texts}
    found = only(read_data(write_lines(folder / "c.jsonl", [value])))
    assert found == [ASKED, ANSWERED, ("user", "sure?"), ("assistant", "yes")]


def test_rows_of_questions_captions_and_labels(folder: Path) -> None:
    rows = [
        {"image": "a.png", "question": "what is it?", "answer": "a kite", "question_type": "what"},
        {"image": "a.png", "caption": "A red kite."},
        {"Image": "a.png", "Label": "red_kite"},
        {"image": "a.png", "question": "how many?", "answers": ["2", "3", "2"]},
        {
            "image": "a.png",
            "instruction": "<image>Describe",
            "input": "shortly",
            "output": "A kite.",
        },
        {"image": "a.png", "captions": ["One.", "Two."]},
    ]
    data = read_data(write_lines(folder / "rows.jsonl", rows))
    assert data.format == "questions with answers JSON Lines" and not data.problems
    found = [plain(example) for example in data.examples]
    assert found[0] == [ASKED, ANSWERED] and data.examples[0].kind == "what"
    assert found[1][1] == ("assistant", "A red kite.") and found[1][0][1] == "<a.png>"
    assert found[2][1] == ("assistant", "red kite") and data.examples[2].kind == "red kite"
    assert found[3][1] == ("assistant", "2")
    assert found[4] == [("user", "<a.png>", "Describe\nshortly"), ("assistant", "A kite.")]
    assert [one[1][1] for one in found[5:]] == ["One.", "Two."]


def test_prompt_and_completion(folder: Path) -> None:
    value = {
        "prompt": chat("<image>what is it?"),
        "completion": chat("", "a kite")[1:],
        "image": "a.png",
    }
    assert only(read_data(write_lines(folder / "p.jsonl", [value]))) == [ASKED, ANSWERED]


def test_evaluation_folders(folder: Path) -> None:
    line = {
        "id": "1",
        "type": "what",
        "images": ["a.png"],
        "messages": chat("what is it?"),
        "answer": "a kite",
    }
    write_lines(folder / "questions.jsonl", [line])
    write_json(folder / "data.json", {"seed": 1})
    data = read_data(folder)
    assert data.format == "mmchat's evaluation questions JSON Lines"
    assert only(data) == [ASKED, ANSWERED] and data.examples[0].kind == "what"


def test_prepared_folders(tmp_path: Path) -> None:
    from tests.training.prepared import write_prepared

    folder = write_prepared(tmp_path / "prepared")
    train = read_data(folder / "train")
    assert train.format == "mmchat's prepared data" and not train.problems
    assert len(train.examples) == 12 * 3 + 2
    assert plain(train.examples[0]) == [
        ("user", "<picture 0>", "what colour is it?"),
        ("assistant", "It is red."),
    ]
    assert train.examples[0].kind == "colour"
    assert plain(train.examples[-1])[0] == ("user", "see ", "<picture 0>", "<picture 1>")
    import numpy as np

    from mmchat.images import parse_picture

    (shown,) = train.examples[3].pictures
    again = pickle.loads(pickle.dumps(shown))
    pixels = np.asarray(parse_picture(again.data).rgb())
    assert (pixels == np.load(folder / "train" / "images.npy")[1]).all()
    assert len(read_data(folder).examples) == 2 * len(train.examples)


def test_a_folder_with_one_data_file_beside_pictures_is_that_file(folder: Path) -> None:
    write_json(
        folder / "whatever.json", [{"image": "images/c.png", "conversations": llava("?", "c")}]
    )
    (folder / "README.md").write_text("hello")
    write_json(folder / "package.json", {"name": "no data"})
    assert only(read_data(folder))[0] == ("user", "<c.png>", "?")
    write_lines(folder / "more.jsonl", [{"messages": chat("a", "b")}])
    with pytest.raises(
        DataError, match=r"several data files \(more.jsonl, whatever.json\): give one"
    ):
        read_data(folder)


def test_pictures_in_another_folder(folder: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "coco", ["train/x.png"])
    file = write_json(
        folder / "l.json", [{"image": "train/x.png", "conversations": llava("?", "x")}]
    )
    assert only(read_data(file, images=other))[0] == ("user", "<x.png>", "?")
    absolute = [{"image": str(other / "train" / "x.png"), "conversations": llava("?", "x")}]
    assert only(read_data(write_json(file, absolute), images=other))
    with pytest.raises(DataError, match=r"is outside .* with --images"):
        read_data(file)
    with pytest.raises(DataError, match=r"There is no .*nowhere"):
        read_data(file, images=tmp_path / "nowhere")


def test_pictures_in_the_file_are_read_again_where_they_are_needed(tmp_path: Path) -> None:
    rows = [{"image": data_url(picture(number)), "caption": f"no. {number}"} for number in range(5)]
    rows.insert(0, {"image": data_url(picture(0)), "caption": "ünï 0"})
    for file in (write_json(tmp_path / "a.json", rows), write_lines(tmp_path / "b.jsonl", rows)):
        data = read_data(file)
        shown = [pickle.loads(pickle.dumps(example.pictures[0])) for example in data.examples]
        assert [one.data for one in shown] == [picture(n) for n in (0, 0, 1, 2, 3, 4)]
        assert all(one.held is None for one in shown)
        file.write_text("[]")
        with pytest.raises(DataError, match="changed while it was in use"):
            _ = shown[0].data


def test_json_is_told_by_what_it_holds(folder: Path) -> None:
    value = {"image": "a.png", "conversations": llava("what is it?", "a kite")}
    file = folder / "x.json"
    file.write_text(json.dumps(value) + "\n\n" + json.dumps(value) + "\n")
    assert [plain(one) for one in read_data(file).examples] == [[ASKED, ANSWERED]] * 2
    file.write_text("\ufeff" + json.dumps([value]), encoding="utf-8")
    assert only(read_data(file)) == [ASKED, ANSWERED]
    file.write_text(json.dumps(value, indent=2))
    assert only(read_data(file)) == [ASKED, ANSWERED]
    file.write_text(json.dumps({"data": [value]}))
    assert only(read_data(file)) == [ASKED, ANSWERED]
    file.write_text(json.dumps([{**value, "score": float("nan")}]))
    assert only(read_data(file)) == [ASKED, ANSWERED]
    file.with_suffix(".txt").write_text(json.dumps([value]))
    assert only(read_data(file.with_suffix(".txt"))) == [ASKED, ANSWERED]


def test_the_hash_is_of_words_and_pictures(folder: Path) -> None:
    value = {"image": "a.png", "conversations": llava("what is it?", "a kite")}
    one = read_data(write_json(folder / "a.json", [value])).sha256
    assert read_data(write_lines(folder / "b.jsonl", [{**value, "id": 7}])).sha256 == one
    (folder / "a.png").write_bytes(picture(99))
    assert read_data(folder / "a.json").sha256 != one
