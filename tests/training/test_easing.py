"""What is done where the memory is little: before a weight is loaded, and without changing what is learned."""

from pathlib import Path
from typing import Any

import pytest

from mmchat.cli.training_job import Material, notes_of
from mmchat.training import easing
from mmchat.training.easing import step_shape
from mmchat.training.finetune_config import read_config
from mmchat.training.prepare import Prepared, prepare
from mmchat.training.run_plan import plan
from tests.training.tuned import dataset, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("easing"))


def _prepared(base: Path, free: int, monkeypatch: Any, *overrides: str) -> Prepared:
    monkeypatch.setattr(easing, "available_memory", lambda: free)
    recipe = read_config(None, [f"model={base}", "name=little", *overrides])
    return prepare(recipe, dataset(16), [])


def test_what_fits_is_left_alone_and_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(base, 64 << 30, monkeypatch)
    (stage,), (room,) = prepared.recipe.stages, prepared.rooms
    assert (stage.micro_rows, stage.gradient_checkpointing) == (0, False)
    assert room.fits and not prepared.tight
    told = plan(prepared)
    assert told["memory_bytes"] == room.bytes
    assert told["memory"].startswith("fits: about ")
    notes = notes_of(Material(dataset(16), []), prepared)
    assert not any("memory" in line for line in notes)


def test_where_memory_is_little_fewer_rows_are_computed_at_once(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = ("batch=16", "row_tokens=128")
    whole = _prepared(base, 64 << 30, monkeypatch, *several)
    assert step_shape(whole, whole.recipe.stages[0]).rows > 1
    free = whole.rooms[0].bytes - 1 - easing.IMPORTS
    prepared = _prepared(base, free, monkeypatch, *several)
    assert prepared.recipe.stages[0].micro_rows == 1
    assert prepared.tight
    notes = notes_of(Material(dataset(16), []), prepared)
    assert any(line.startswith("memory of stage adapter: fits with micro_rows=1") for line in notes)
    assert any("goes back at once" in line for line in notes)


def test_what_does_not_fit_at_all_is_said_and_tried(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction is no reason to refuse: what it says is told, and the person decides."""
    prepared = _prepared(base, 0, monkeypatch)
    assert not prepared.rooms[0].fits
    assert prepared.recipe.stages[0].micro_rows == 0
    notes = notes_of(Material(dataset(16), []), prepared)
    assert any(line.startswith("memory of stage adapter: does not fit, because") for line in notes)


def test_a_base_that_cannot_be_told_is_trained_all_the_same(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmchat.errors import ModelError

    def refuse(folder: Path) -> None:
        raise ModelError("no")

    monkeypatch.setattr(easing, "read_facts", refuse)
    prepared = _prepared(base, 0, monkeypatch)
    assert prepared.rooms == ()
    assert plan(prepared)["memory_bytes"] is None


def test_a_step_is_told_by_its_mean(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(base, 64 << 30, monkeypatch, "batch=8")
    shape = step_shape(prepared, prepared.recipe.stages[0])
    trees = prepared.train.trees
    assert shape.tokens == pytest.approx(8 * sum(map(len, trees)) / len(trees))
    assert shape.pictures == pytest.approx(8 * sum(len(t.images) for t in trees) / len(trees))
    assert 0 < shape.answers < shape.tokens
