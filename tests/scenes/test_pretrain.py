"""The built-in model's own training, on a tiny recipe: from nothing to a model folder, resumable at any step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from mmchat.data import read_data
from mmchat.errors import DataError, RecipeError
from mmchat.training.finetune import Trainer
from tests.training.conftest import short_sample_answers
from tests.training.prepared import RECIPE, write_prepared
from tests.training.pretraining import pretrain, tower

__all__ = ["short_sample_answers"]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Path]:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    return write_prepared(tmp_path / "data"), recipe


def run(prepared: tuple[Path, Path], out: Path, *overrides: str) -> Path:
    made: Path = pretrain.pretrain(*prepared, out, overrides, quiet)
    return made


class Stopped(Exception):  # noqa: N818 - not an error
    """The process was ended here."""


def test_resumed_equals_straight(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after a step of the cells, between the two, or after a step of a stage: the same bits."""
    whole = load_file(run(prepared, tmp_path / "whole") / "model.safetensors")
    for part, last in (("cells", 1), ("cells", 3), ("stages", 2), ("stages", 4)):
        out = tmp_path / f"{part}-{last}"
        with monkeypatch.context() as patch:
            _stop_after(patch, part, last)
            with pytest.raises(Stopped):
                run(prepared, out)
        found = load_file(run(prepared, out) / "model.safetensors")
        assert found.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, found[name]), (part, last, name)


def _stop_after(patch: pytest.MonkeyPatch, part: str, last: int) -> None:
    if part == "cells":
        save = tower.save_checkpoint

        def stopping(folder: Path, step: int, *given: Any) -> None:
            save(folder, step, *given)
            if step == last:
                raise Stopped

        patch.setattr(tower, "save_checkpoint", stopping)
        return
    save_stage = Trainer._save_checkpoint

    def stopping_stage(self: Trainer, *given: Any) -> None:
        save_stage(self, *given)
        if self.done == last:
            raise Stopped

    patch.setattr(Trainer, "_save_checkpoint", stopping_stage)


def test_the_finished_folder_is_a_model(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    out = run(prepared, tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors  # tied to the embedding, and written once
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("visual_prefix", "bfloat16")
    own, config = pretrain.read_recipe(out / "recipe.toml")
    wanted, _ = pretrain.read_recipe(prepared[1])
    assert own == wanted and [stage.name for stage in config.stages] == ["answers", "together"]
    lines = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    types = {t for line in lines for t in line.get("held_out_right_by_type", {})}
    assert types == {"colour", "is_there", "read", "greet", "compare"}


def test_each_stage_trains_what_it_names(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    """The tower learns the cells, stays as it is while answers are learned, and then learns with them."""
    out = tmp_path / "out"
    run(prepared, out, "stages.1.steps=1")
    base = load_file(out / "base" / "model.safetensors")
    whole = load_file(out / "model" / "model.safetensors")
    tower = [name for name in base if "vision_tower" in name and base[name].ndim > 1]
    words = [name for name in base if "language_model" in name and base[name].ndim > 1]
    assert all(not torch.equal(whole[name], base[name].bfloat16()) for name in words)
    assert any(not torch.equal(whole[name], base[name].bfloat16()) for name in tower)
    alone = tmp_path / "alone"
    short = tmp_path / "short.toml"
    short.write_text(RECIPE[: RECIPE.index('[[stages]]\nname = "together"')])
    pretrain.pretrain(prepared[0], short, alone, (), quiet)
    kept = load_file(alone / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], base[name].bfloat16()) for name in tower)


def test_a_run_that_goes_on_keeps_its_tokenizer(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(prepared, tmp_path / "out")
    own, _ = pretrain.read_recipe(prepared[1])
    monkeypatch.setattr(pretrain, "TOKENIZER_TEXTS", 1)  # would make another one
    examples = read_data(prepared[0] / "train").examples
    other = pretrain.train_tokenizer(pretrain._texts(examples), own.base.vocabulary_size, 512)
    again = run(prepared, tmp_path / "out", "stages.1.steps=3")
    made = AutoTokenizer.from_pretrained(again).get_vocab()
    assert made == AutoTokenizer.from_pretrained(out).get_vocab() != other.get_vocab()


def test_other_data_is_refused(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    run(prepared, tmp_path / "out")
    file = prepared[0] / "train" / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="data has changed since"):
        run(prepared, tmp_path / "out")


def test_mistakes_are_told(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        run((tmp_path / "nowhere", prepared[1]), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"\[base\] cannot be used"):
        run(prepared, tmp_path / "out", "base.text.hidden_size=33")
    with pytest.raises(RecipeError, match=r"did you mean cells\.pictures"):
        run(prepared, tmp_path / "out", "cells.picture=3")
    with pytest.raises(DataError, match="a step takes 13: draw the data again, or lower"):
        run(prepared, tmp_path / "out", "cells.pictures=13")
    (prepared[0] / "train" / "cells.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"cells\.npy cannot be read"):
        run(prepared, tmp_path / "out")


def test_the_built_in_recipe_reads() -> None:
    own, config = pretrain.read_recipe(pretrain.Path(pretrain.__file__).with_name("recipe.toml"))
    assert own.base.vocabulary_size == 800
    assert [stage.name for stage in config.stages] == ["answers", "together"]
