"""An adapter is not asked what it was trained on: only what its training held out."""

import json
from pathlib import Path

import pytest

from mmchat.data import read_data, split
from mmchat.data.digest import of_examples
from mmchat.errors import DataError
from mmchat.evaluation.reading import read
from mmchat.evaluation.run import evaluate
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
    """An adapter of this person's that was trained on `data`."""
    folder = paths().adapters / name
    folder.mkdir(parents=True)
    card = f'name = "{name}"\n[base]\nid = "m"\nhash = "h"\n'
    (folder / "adapter.toml").write_text(card)
    sha256 = of_examples(read_data(data).examples)
    recipe = f'seed = {seed}\n[data]\nsha256 = "{sha256}"\nheld_out = {SHARE}\n[[stages]]\n'
    (folder / "recipe.toml").write_text(recipe)
    return name


def held_out(data: Path, seed: int = SEED) -> list[str]:
    return [one.turns[-1].text for one in split(read_data(data).examples, SHARE, seed)[1]]


@pytest.mark.usefixtures("scripted_engine")
def test_of_the_data_that_it_learned_only_the_held_out_part_is_asked(data: Path) -> None:
    report = evaluate(data, load_settings(), model="m", adapter=adapter("birds", data))
    assert [one.wanted for one in report.outcomes] == held_out(data)
    assert 0 < len(report.outcomes) < 12
    assert "part what the training of birds held out" in report.to_markdown()


def test_two_that_learned_it_are_asked_what_neither_saw(data: Path) -> None:
    adapters = adapter("a", data), adapter("b", data, seed=8)
    both = set(held_out(data)) & set(held_out(data, 8))
    assert both and both < set(held_out(data))
    asked = read(data, adapters=(*adapters, "none", "", "no-such-adapter"))
    assert {one.answer for one in asked.questions} == both


def test_what_no_adapter_held_out_is_not_asked_instead(data: Path) -> None:
    """Else two that learned all of it between them would be asked what they know by heart."""
    seeds = range(8, 100)
    other = next(seed for seed in seeds if not set(held_out(data)) & set(held_out(data, seed)))
    adapters = adapter("a", data), adapter("b", data, other)
    for part in ("auto", "held-out"):
        with pytest.raises(DataError, match=r"a and b learned from .* kept back by all of them"):
            read(data, part, adapters=adapters)
    assert len(read(data, "all", adapters=adapters).questions) == 12
    one = data.with_name("one.jsonl")
    one.write_text(data.read_text().splitlines(keepends=True)[0])
    name = adapter("c", one)  # a single example is learned
    with pytest.raises(DataError, match="was kept back: name other data, or ask all of it"):
        read(one, adapters=[name])


def test_another_adapter_and_other_data_are_asked_whole(data: Path, tmp_path: Path) -> None:
    name = adapter("birds", data)
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text() + data.read_text().splitlines()[0].replace("0", "99"))
    assert len(read(other, adapters=[name]).questions) == 13
    (paths().adapters / name / "recipe.toml").write_text("broken")
    assert len(read(data, adapters=[name]).questions) == 12


def test_a_part_can_be_chosen(data: Path, tmp_path: Path) -> None:
    name = adapter("birds", data)
    assert len(read(data, "all", adapters=[name]).questions) == 12
    assert len(read(data, "train").questions) == 12
    with pytest.raises(DataError, match="has no held-out part"):
        read(data, "held-out")
    folder = tmp_path / "split"
    folder.mkdir()
    lines = data.read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:9]))
    (folder / "val.jsonl").write_text("".join(lines[9:]))
    sizes = {
        part: len(read(folder, part).questions) for part in ("auto", "held-out", "train", "all")
    }
    assert sizes == {"auto": 3, "held-out": 3, "train": 9, "all": 12}
    assert read(folder).about["part"] == "its held-out part"
