"""The built-in model's data: answers follow from what is drawn, and nothing leaks between splits."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmchat.answer_match import normalize
from mmchat.evaluation.graders import find_grader
from mmchat.evaluation.questions import read_questions

FOLDER = Path(__file__).resolve().parents[2] / "adapters" / "scenes"
sys.path.insert(0, str(FOLDER))
try:
    import dialogs
    import draw
    import grader
    import paint
    import questions
    import scene as scenes
finally:
    sys.path.remove(str(FOLDER))

WORDS = {
    w: n
    for n, w in enumerate(["none", "one", "two", "three", "four", "five", "six", "seven", "eight"])
}


def make(split: str, number: int, unseen: bool = False) -> list[Any]:
    return [scenes.make_scene(scenes.generator(split, 5, i), unseen) for i in range(number)]


@pytest.fixture(scope="module")
def drawn() -> list[Any]:
    return make("test", 200)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset")
    draw.main(["--out", str(out), "--scenes", "264", "--seed", "3"])
    return out


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text("utf-8").splitlines()]


def described(text: str) -> tuple[str | None, str | None, str | None]:
    """Size, colour and shape in a phrase, found without the code that wrote it."""
    text = re.sub(r"\bbig\b", "large", re.sub(r"\blittle\b", "small", text.lower()))
    size = re.search(r"\b(small|large)\b", text)
    colour = re.search(rf"\b({'|'.join(scenes.COLOURS)})\b", text)
    shape = re.search(rf"\b({'|'.join(scenes.SHAPES)})(e?s)?\b", text)
    return tuple(m.group(1) if m else None for m in (size, colour, shape))  # type: ignore[return-value]


def found(scene: Any, text: str) -> list[Any]:
    wanted = described(text)
    return [
        t
        for t in scene.things
        if all(w in (None, v) for w, v in zip(wanted, (t.size, t.colour, t.shape), strict=True))
    ]


def asked(drawn: list[Any], kind: str, times: int = 3) -> list[tuple[Any, Any]]:
    pairs = []
    for number, scene in enumerate(drawn):
        rng = scenes.generator(f"asked/{kind}", 1, number)
        for _ in range(times):
            question = questions.MAKERS[kind](scene, rng, None)
            if question is not None:
                pairs.append((scene, question))
    assert len(pairs) > 150
    return pairs


def test_the_same_options_give_the_same_files_with_any_number_of_workers(
    dataset: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(FOLDER / "draw.py"), "--out", str(tmp_path), "--scenes", "264"]
    subprocess.run([*command, "--seed", "3", "--workers", "2"], check=True, capture_output=True)
    for name in ("images.npy", "cells.npy", "classes.json", "samples.jsonl", "data.json"):
        assert (dataset / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_training_holds_no_unseen_pair(dataset: Path) -> None:
    assert sorted(shape for _, shape in scenes.UNSEEN_PAIRS) == sorted(scenes.SHAPES)
    for scene in make("train", 1000):
        assert not scenes.is_unseen(scene)
    shapes = [f"{colour} {shape}" for colour, shape in scenes.UNSEEN_PAIRS]
    text = (dataset / "samples.jsonl").read_text("utf-8").lower()
    assert not [pair for pair in shapes if pair in text]


def test_unseen_scenes_begin_with_an_unseen_pair() -> None:
    with_things = [s for s in make("unseen", 100, unseen=True) if s.things]
    assert sum(scenes.is_unseen(s) for s in with_things) >= 90


def test_splits_share_no_picture() -> None:
    def pictures(split: str) -> set[bytes]:
        return {hashlib.sha256(paint.paint(s).tobytes()).digest() for s in make(split, 60)}

    assert not pictures("train") & pictures("held-out")
    with pytest.raises(SystemExit):
        draw.main(["--out", "unused", "--split", "evaluation/seen/count"])


def test_labels_agree_with_the_scene(drawn: list[Any]) -> None:
    for scene in drawn:
        labels = scenes.cells(scene)
        assert labels.shape == (16, 16, 5)
        assert int(labels[..., 4].sum()) == len(scene.things)
        seen = {
            tuple(int(v) for v in cell) for cell in labels[..., :3].reshape(-1, 3) if cell.any()
        }
        wanted = {
            (
                scenes.COLOURS.index(t.colour) + 1,
                scenes.SHAPES.index(t.shape) + 1,
                scenes.SIZES.index(t.size) + 1,
            )
            for t in scene.things
        }
        assert seen <= wanted
        assert {w for w in wanted if w[2] == 2} <= seen
        characters = {scenes.CHARACTERS[v - 1] for v in np.unique(labels[..., 3]) if v}
        assert characters <= set(scene.writing.text if scene.writing else "")
        if scene.writing is not None:
            assert len(characters) >= 0.6 * len(set(scene.writing.text))


def test_a_thing_has_its_colour_in_the_picture(drawn: list[Any]) -> None:
    for scene in drawn[:60]:
        picture = np.asarray(paint.paint(scene)).astype(int)
        for thing in scene.things:
            if thing.size == "large" and thing.shape not in ("ring", "moon"):
                at = picture[int(thing.y), int(thing.x)]
                assert np.abs(at - np.array(thing.rgb)).max() < 60, (thing.colour, at, thing.rgb)


def test_counts_are_right(drawn: list[Any]) -> None:
    for scene, question in asked(drawn, "count_kind"):
        number = WORDS[re.sub(r"There (is|are) |\.", "", question.answer)]
        assert number == len(found(scene, question.text)), question
    for scene, question in asked(drawn, "count", 1):
        assert WORDS[question.answer.rstrip(".").split()[-1]] == len(scene.things)


def test_places_are_right(drawn: list[Any]) -> None:
    for scene, question in asked(drawn, "where"):
        things = found(scene, question.text)
        if question.choice == "absent":
            assert not things
            continue
        (thing,) = things
        row = min(2, int(3 * thing.y / scene.height))
        column = min(2, int(3 * thing.x / scene.width))
        words = question.answer.rstrip(".").split()
        assert row == (0 if "top" in words else 2 if "bottom" in words else 1)
        assert column == (0 if "left" in words else 2 if "right" in words else 1)


def test_relations_are_right(drawn: list[Any]) -> None:
    pattern = re.compile(
        r"(.*) is (?:on |to )?(?:the )?(left of|right of|above|over|higher than|below|under|lower than) (.*)"
        r"|is (.*?) (?:on |to )?(?:the )?(left of|right of|above|over|higher than|below|under|lower than) (.*)"
    )
    checked = 0
    for scene, question in asked(drawn, "relation"):
        match = pattern.search(question.text.lower())
        assert match, question.text
        left, way, right = [group for group in match.groups() if group]
        one, two = found(scene, left), found(scene, right)
        assert len(one) == len(two) == 1, question.text
        horizontal = way in ("left of", "right of")
        a, b = (one[0].x, two[0].x) if horizontal else (one[0].y, two[0].y)
        true = a < b if way in ("left of", "above", "over", "higher than") else a > b
        assert question.answer == ("Yes, it is." if true else "No, it is not.")
        checked += 1
    assert checked > 200


def test_bigger_and_presence_are_right(drawn: list[Any]) -> None:
    for scene, question in asked(drawn, "bigger"):
        (winner,) = found(scene, question.answer)
        assert winner.size == ("small" if "smaller" in question.answer else "large")
    for scene, question in asked(drawn, "is_there"):
        there = bool(found(scene, question.text))
        if described(question.text) == (None, None, None):  # about writing
            there = scene.writing is not None
        assert question.answer == ("Yes, there is." if there else "No, there is not.")


def test_orders_are_right(drawn: list[Any]) -> None:
    along = {
        "further left": lambda t: t.x,
        "further right": lambda t: -t.x,
        "higher": lambda t: t.y,
        "lower": lambda t: -t.y,
        "from left": lambda t: t.x,
        "from right": lambda t: -t.x,
        "from top": lambda t: t.y,
        "from the top": lambda t: t.y,
        "from bottom": lambda t: -t.y,
        "from the bottom": lambda t: -t.y,
    }
    groups = Counter()
    for scene, question in asked(drawn, "order"):
        groups[question.group] += 1
        (way,) = (words for words in along if words in question.text.lower())
        if question.group == "order/two":
            (winner,) = found(scene, question.answer)
            asked_of = re.split(r" or ", question.text.lower().split(way)[-1])
            if len(asked_of) != 2:
                asked_of = re.split(r" or ", question.text.lower())
            (one,), (two,) = found(scene, asked_of[0]), found(scene, asked_of[1])
            assert winner is min(one, two, key=along[way])
        else:
            items = re.split(r", | and ", question.answer)
            row = sorted(scene.things, key=along[way])
            assert [described(item) for item in items] == [(t.size, t.colour, t.shape) for t in row]
    assert min(groups["order/two"], groups["order/all"]) > 60


@pytest.mark.parametrize("kind", ["relation", "is_there"])
def test_yes_and_no_are_balanced(kind: str) -> None:
    answers = Counter(q.answer.split(",")[0] for _, q in asked(make("balance", 600), kind, 4))
    assert 0.45 < answers["Yes"] / answers.total() < 0.55, answers


def test_the_grader_reads_what_captions_describe(drawn: list[Any]) -> None:
    for scene in drawn:
        described = Counter((t.size, t.colour, t.shape) for t in scene.things)
        if scene.writing is not None:
            described['"', scene.writing.text.lower()] += 1
        assert grader.parse_caption(normalize(questions.caption(scene))) == described

    def content(text: str, caption: bool = True) -> Any:
        return grader.content(normalize(text), caption)

    one = 'I see a large red circle, two small blue crosses and the word "CAT".'
    two = 'I see the word "CAT", two small blue crosses and a large red circle'
    other = 'I see a large red circle, a small blue cross and the word "CAT".'
    assert content(one) == content(two) != content(other)
    assert content("I see dogs.") == normalize("I see dogs.")  # no caption, so it is a text
    assert content("it is RED", caption=False) == content("It is red.", caption=False)


def test_samples_are_well_formed(dataset: Path) -> None:
    images = np.load(dataset / "images.npy", mmap_mode="r")
    assert images.shape == (264, 128, 128, 3)
    types = Counter()
    for sample in samples(dataset):
        assert all(0 <= i < 264 for i in sample["images"])
        for dialog in sample["dialogs"]:
            types[dialog["type"]] += 1
            turns = dialog["messages"]
            assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
            marks = [p for m in turns if isinstance(m["content"], list) for p in m["content"]]
            marked = sum(part["type"] == "image" for part in marks)
            assert marked == (len(sample["images"]) if marks else 0)
    assert set(types) == set(draw.TYPES)


@pytest.mark.parametrize("control", ["none", "blank", "swapped"])
def test_evaluation_has_a_picture_a_question(control: str, tmp_path: Path) -> None:
    options = ["--evaluation", "--out", str(tmp_path), "--per-type", "2", "--seed", "9"]
    draw.main([*options, "--control", control])
    text = (tmp_path / "questions.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert Counter(line["type"] for line in lines) == dict.fromkeys(draw.TYPES, 2)
    names = [name for line in lines for name in line["images"]]
    assert len(names) == len(set(names)) and all((tmp_path / name).is_file() for name in names)
    assert all(line["messages"][-1]["role"] == "user" for line in lines)
    asked = read_questions(tmp_path)
    assert (asked.grader, asked.about["control"]) == ("scenes", control)
    assert find_grader(asked.grader) is not None


def test_unseen_questions_are_about_the_unseen_pair() -> None:
    for index in range(20):
        _, dialog = draw.make_question("count_kind", True, 4, index)
        _, colour, shape = described(dialog.turns[0][0])
        assert (colour, shape) in scenes.UNSEEN_PAIRS


def test_dialogs_of_one_picture_begin_differently(drawn: list[Any]) -> None:
    for number, scene in enumerate(drawn[:40]):
        made = dialogs.about_scene(scene, scenes.generator("mix", 0, number))
        firsts = [d.turns[0][0].lower() for d in made]
        assert len(firsts) == len(set(firsts)) and len(firsts) >= 18
