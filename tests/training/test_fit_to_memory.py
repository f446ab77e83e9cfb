"""With little memory a run is changed before a weight is loaded, but not what it learns."""

from pathlib import Path
from typing import Any

import pytest

from mmchat.cli.train_args import TrainingData
from mmchat.cli.training_job import data_notes
from mmchat.memory.machine import Machine
from mmchat.memory.model_dims import UnknownModelError
from mmchat.training.finetune_config import read_config
from mmchat.training.prepare import PreparedRun, mean_step, prepare
from mmchat.training.run_plan import plan_run
from tests.training.tuned import dataset, write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def _prepared(base: Path, free: int, monkeypatch: Any, *overrides: str) -> PreparedRun:
    monkeypatch.setattr(
        "mmchat.training.prepare.machine_of",
        lambda device, dtype: Machine("cpu", free, dtype.itemsize),
    )
    recipe = read_config(None, [f"model={base}", "name=little", *overrides])
    return prepare(recipe, dataset(16), [])


def test_a_run_that_fits_is_not_changed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(base, 64 << 30, monkeypatch)
    (stage,), (fit,) = prepared.recipe.stages, prepared.memory_fits
    assert (stage.micro_rows, stage.gradient_checkpointing) == (0, False)
    assert fit.fits and not prepared.tight
    planned = plan_run(prepared)
    assert planned["memory_bytes"] == fit.needed_bytes
    assert planned["memory"].startswith("fits: about ")
    notes = data_notes(TrainingData(dataset(16), []), prepared)
    assert not any("memory" in line.lower() for line in notes)


def test_with_little_memory_fewer_rows_are_computed_at_once(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = ("batch=16", "row_tokens=128")
    whole = _prepared(base, 64 << 30, monkeypatch, *several)
    assert mean_step(whole, whole.recipe.stages[0]).rows > 1
    prepared = _prepared(base, whole.memory_fits[0].needed_bytes - 1, monkeypatch, *several)
    assert prepared.recipe.stages[0].micro_rows == 1
    assert prepared.tight
    notes = data_notes(TrainingData(dataset(16), []), prepared)
    assert any(line.startswith("memory of stage adapter: fits with micro_rows=1") for line in notes)
    assert any("goes back to the system at once" in line for line in notes)


def test_a_run_that_does_not_fit_is_tried_all_the_same(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate is not a reason to refuse: the note says what is missing, and the person decides."""
    prepared = _prepared(base, 0, monkeypatch)
    assert not prepared.memory_fits[0].fits
    assert prepared.recipe.stages[0].micro_rows == 0
    notes = data_notes(TrainingData(dataset(16), []), prepared)
    assert any(line.startswith("memory of stage adapter: does not fit, because") for line in notes)


def test_a_base_whose_memory_is_not_known_is_trained_all_the_same(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise UnknownModelError("no")

    monkeypatch.setattr("mmchat.training.prepare.read_dims", refuse)
    prepared = _prepared(base, 0, monkeypatch)
    assert prepared.memory_fits == ()
    assert plan_run(prepared)["memory_bytes"] is None


def test_the_shape_of_a_step_is_the_mean(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(base, 64 << 30, monkeypatch, "batch=8")
    shape = mean_step(prepared, prepared.recipe.stages[0])
    trees = prepared.train.trees
    assert shape.tokens == pytest.approx(8 * sum(map(len, trees)) / len(trees))
    assert shape.pictures == pytest.approx(8 * sum(len(t.images) for t in trees) / len(trees))
    assert 0 < shape.labels < shape.tokens
