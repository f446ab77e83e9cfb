"""An adapter is asked only what its training held out, not what it was trained on."""

import json
from pathlib import Path

import pytest

from mmchat.data import read_data, split
from mmchat.data.types import hash_examples
from mmchat.errors import DataError
from mmchat.evaluation.question_sets import load_questions
from mmchat.evaluation.report import result_markdown
from mmchat.evaluation.runner import evaluate
from mmchat.settings import load_settings, paths

SEED, SHARE = 7, 0.25


@pytest.fixture
def data(tmp_path: Path) -> Path:
    turns = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}]
        for n in range(12)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return file


def adapter(name: str, data: Path, seed: int = SEED) -> str:
    """The name of a new adapter in this home that was trained on `data`."""
    folder = paths().adapters / name
    folder.mkdir(parents=True)
    card = f'name = "{name}"\n[base]\nid = "m"\nhash = "h"\n'
    (folder / "adapter.toml").write_text(card)
    sha256 = hash_examples(read_data(data).examples)
    recipe = f'seed = {seed}\n[data]\nsha256 = "{sha256}"\nheld_out = {SHARE}\n[[stages]]\n'
    (folder / "recipe.toml").write_text(recipe)
    return name


def held_out(data: Path, seed: int = SEED) -> list[str]:
    return [one.turns[-1].text for one in split(read_data(data).examples, SHARE, seed)[1]]


@pytest.mark.usefixtures("scripted_engine")
def test_of_its_training_data_an_adapter_is_asked_only_the_held_out_part(data: Path) -> None:
    result = evaluate(data, load_settings(), model="m", adapter=adapter("birds", data))
    assert [one.reference for one in result.answers] == held_out(data)
    assert 0 < len(result.answers) < 12
    assert "part what the training of birds held out" in result_markdown(result)


def test_two_adapters_are_asked_what_neither_was_trained_on(data: Path) -> None:
    adapters = adapter("a", data), adapter("b", data, seed=8)
    both = set(held_out(data)) & set(held_out(data, 8))
    assert both and both < set(held_out(data))
    asked = load_questions(data, adapters=(*adapters, "none", "", "no-such-adapter"))
    assert {one.answer for one in asked.questions} == both


def test_nothing_is_asked_if_no_example_was_held_out_by_both(data: Path) -> None:
    """Otherwise two adapters that were trained on all of it together would be asked what they know."""
    seeds = range(8, 100)
    other = next(seed for seed in seeds if not set(held_out(data)) & set(held_out(data, seed)))
    adapters = adapter("a", data), adapter("b", data, other)
    for part in ("auto", "held-out"):
        with pytest.raises(DataError, match=r"a and b were trained on .* held out by all of them"):
            load_questions(data, part, adapters=adapters)
    assert len(load_questions(data, "all", adapters=adapters).questions) == 12
    one = data.with_name("one.jsonl")
    one.write_text(data.read_text().splitlines(keepends=True)[0])
    name = adapter("c", one)  # a single example is never held out
    with pytest.raises(DataError, match="was held out: choose other data, or ask everything"):
        load_questions(one, adapters=[name])


def test_all_of_the_data_is_asked_if_no_adapter_was_trained_on_it(
    data: Path, tmp_path: Path
) -> None:
    name = adapter("birds", data)
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text() + data.read_text().splitlines()[0].replace("0", "99"))
    assert len(load_questions(other, adapters=[name]).questions) == 13
    (paths().adapters / name / "recipe.toml").write_text("broken")
    assert len(load_questions(data, adapters=[name]).questions) == 12


def test_a_part_can_be_chosen(data: Path, tmp_path: Path) -> None:
    name = adapter("birds", data)
    assert len(load_questions(data, "all", adapters=[name]).questions) == 12
    assert len(load_questions(data, "train").questions) == 12
    with pytest.raises(DataError, match="has no held-out part"):
        load_questions(data, "held-out")
    folder = tmp_path / "split"
    folder.mkdir()
    lines = data.read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:9]))
    (folder / "val.jsonl").write_text("".join(lines[9:]))
    sizes = {
        part: len(load_questions(folder, part).questions)
        for part in ("auto", "held-out", "train", "all")
    }
    assert sizes == {"auto": 3, "held-out": 3, "train": 9, "all": 12}
    assert load_questions(folder).about["part"] == "its held-out part"
