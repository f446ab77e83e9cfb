"""What a person can do wrong with data, recipe and folders is one sentence, not a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmchat.errors import DataError, MmchatError, RecipeError
from mmchat.training.checkpoint import checkpoints, load_checkpoint
from mmchat.training.dataset import PreparedData
from mmchat.training.recipe import Stage, read_recipe
from mmchat.training.run import Run, train
from tests.training.conftest import Tiny

Prepared = tuple[Path, Path]
SHORT = ("stages.0.steps=1", "stages.1.steps=1")


def _quiet(line: str) -> None:
    pass


def _told(kind: type[MmchatError], says: str, act: Callable[[], object]) -> str:
    """The one line that `act` fails with."""
    with pytest.raises(kind, match=says) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


def _rewrite(data: Path, line: int, sample: str) -> Path:
    """Puts `sample` in the place of a line (from 1) of the training data."""
    file = data / "train" / "samples.jsonl"
    lines = file.read_text().splitlines()
    lines[line - 1] = sample
    file.write_text("\n".join(lines) + "\n")
    return file


def _sample(images: str, content: object, role: str = "user") -> str:
    message = json.dumps({"role": role, "content": content})
    return f'{{"images": {images}, "dialogs": [{{"type": "t", "messages": [{message}]}}]}}'


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ("{broken", "not a sample"),
        ("[" * 100_000, "not a sample"),
        ('{"images": [0]}', "dialogs"),
        ('{"images": [0], "dialogs": []}', "no dialog"),
        ('{"images": [0], "dialogs": [{"type": "t", "messages": []}]}', "without messages"),
        (_sample("[9999]", "hi"), "picture 9999, of 12"),
        (_sample("[-3]", "hi"), "picture -3"),
        (_sample("[true]", "hi"), "Expected `int`"),
        (_sample("[0]", [{"type": "image"}, {"type": "image"}]), "2 image parts"),
        (_sample("[0, 1]", [{"type": "image"}]), "1 image parts"),
        (_sample("[0]", [{"type": "text", "text": "no picture"}]), "0 image parts"),
        (_sample("[0]", [{"type": "text", "text": 5}]), "Expected `str`"),
        (_sample("[0]", "hi", role="tool"), "tool"),
    ],
    ids=lambda value: value[-60:],
)
def test_a_line_that_is_no_sample_is_named(prepared: Prepared, sample: str, says: str) -> None:
    file = _rewrite(prepared[0], 5, sample)
    sentence = _told(DataError, "line 5: not a sample", lambda: PreparedData(file.parent)[4])
    assert str(file) in sentence and says in sentence


def test_a_line_that_the_worker_meets_is_named_too(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer has read the first lines only; the rest meets the loader's process."""
    monkeypatch.setattr("mmchat.training.run.TOKENIZER_TEXTS", 2)
    data, recipe = prepared
    for line in range(3, 15):
        _rewrite(data, line, "{broken")
    _told(
        DataError, "line .*: not a sample", lambda: train(data, recipe, tmp_path / "o", say=_quiet)
    )


def test_dialogs_that_begin_otherwise_are_named(tiny: Tiny, prepared: Prepared) -> None:
    parts = [[{"type": "text", "text": text}, {"type": "image"}] for text in ("a", "b")]
    dialogs = [{"type": "t", "messages": [{"role": "user", "content": part}]} for part in parts]
    file = _rewrite(prepared[0], 2, json.dumps({"images": [0], "dialogs": dialogs}))
    sample = PreparedData(file.parent)[1]
    _told(DataError, "line 2: its dialogs do not begin alike", lambda: tiny.collator.tree(sample))


@pytest.mark.parametrize("row_tokens", [3, 8])
def test_rows_that_hold_no_dialog_are_told(
    prepared: Prepared, tmp_path: Path, row_tokens: int
) -> None:
    data, recipe = prepared
    short = ("stages.0.steps=1", f"stages.1.row_tokens={row_tokens}")
    _told(
        DataError,
        f"row_tokens = {row_tokens} .*raise row_tokens",
        lambda: train(data, recipe, tmp_path / "out", overrides=short, say=_quiet),
    )


def test_more_rows_than_pictures_and_no_labels_are_told(prepared: Prepared, tmp_path: Path) -> None:
    data, recipe = prepared
    many = ("stages.0.rows=13",)
    _told(
        DataError,
        "holds 12 pictures.*lower rows",
        lambda: train(data, recipe, tmp_path / "many", overrides=many, say=_quiet),
    )
    (data / "train" / "cells.npy").unlink()
    _told(
        DataError, r"cells\.npy is missing", lambda: train(data, recipe, tmp_path / "o", say=_quiet)
    )


def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(
    prepared: Prepared, tmp_path: Path
) -> None:
    """The loss is a number at that step; the weights after it would be none."""
    data, recipe = prepared
    run = Run(data, read_recipe(recipe), tmp_path, resume=False, say=_quiet)
    objective = run._objective

    def spoiled(stage: Stage) -> Callable[[Any], torch.Tensor]:
        loss = objective(stage)
        weight = next(run.heads.parameters())

        def spoil(batch: Any) -> torch.Tensor:
            value = loss(batch)
            return value if run.step < 2 else value + (weight * 0).sum().sqrt()

        return spoil

    run._objective = spoiled  # type: ignore[method-assign]
    sentence = _told(RecipeError, r"gradient's norm .*is whole", run.run)
    assert "(--set stages.0.learning_rate=…), and go on" in sentence and "samples" not in sentence
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept[1]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in kept[0].values())


def test_a_loss_that_explodes_ends_the_run(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the second step far above, none of them becomes a checkpoint."""
    monkeypatch.setattr("mmchat.training.loop.Explosion.FIRST", 1)
    monkeypatch.setattr("mmchat.training.loop.Explosion.STEPS", 2)
    data, recipe = prepared
    run = Run(data, read_recipe(recipe), tmp_path, resume=False, say=_quiet)
    objective = run._objective

    def growing(stage: Stage) -> Callable[[Any], torch.Tensor]:
        loss = objective(stage)
        return lambda batch: loss(batch) * 100.0**run.step

    run._objective = growing  # type: ignore[method-assign]
    _told(RecipeError, "Stage cells, step 3: the loss grew to .*is whole", run.run)
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept[1]["step"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("base.text.hidden_size=64", r"its \[base\]"),
        ('stages.1.trains=["projector"]', "stage answers trained other parts"),
        ('stages.1.trains=["vision_tower", "projector", "language_model"]', "stage answers"),
    ],
)
def test_a_recipe_that_the_checkpoint_does_not_fit_is_told(
    prepared: Prepared, tmp_path: Path, change: str, says: str
) -> None:
    data, recipe = prepared
    out = tmp_path / "out"
    train(data, recipe, out, overrides=SHORT, say=_quiet)
    more = ("stages.0.steps=1", "stages.1.steps=2", change)
    _told(
        RecipeError,
        f"does not fit the recipe, for {says}.*restore the recipe",
        lambda: train(data, recipe, out, resume=True, overrides=more, say=_quiet),
    )


def test_a_damaged_checkpoint_is_told_and_the_one_before_serves(
    prepared: Prepared, tmp_path: Path
) -> None:
    data, recipe = prepared
    out = tmp_path / "out"
    train(data, recipe, out, overrides=SHORT, say=_quiet)
    newest = checkpoints(out / "checkpoints")[-1]
    for file, damage in (("state.json", b"{"), ("tensors.safetensors", b"x" * 99)):
        (newest / file).write_bytes(damage)
        _told(
            RecipeError,
            f"{newest.name} is damaged.*remove that folder",
            lambda: train(data, recipe, out, resume=True, overrides=SHORT, say=_quiet),
        )
    shutil.rmtree(newest)
    assert train(data, recipe, out, resume=True, overrides=SHORT, say=_quiet).is_dir()


def test_what_cannot_be_written_is_told_and_resumed(prepared: Prepared, tmp_path: Path) -> None:
    data, recipe = prepared
    file = tmp_path / "file"
    file.touch()
    _told(
        RecipeError,
        "file/out cannot be written",
        lambda: train(data, recipe, file / "out", say=_quiet),
    )
    out = tmp_path / "out"
    for blocked in ("tokenizer", "model"):  # a file where a folder has to be
        out.mkdir(exist_ok=True)
        (out / blocked).touch()
        _told(
            RecipeError,
            f"out/{blocked} cannot be written.*--resume",
            lambda: train(data, recipe, out, resume=True, overrides=SHORT, say=_quiet),
        )
        (out / blocked).unlink()
    (out / "metrics.jsonl").unlink()
    (out / "metrics.jsonl").mkdir()
    more = ("stages.0.steps=1", "stages.1.steps=2")
    _told(
        RecipeError,
        r"metrics\.jsonl cannot be written",
        lambda: train(data, recipe, out, resume=True, overrides=more, say=_quiet),
    )
    (out / "metrics.jsonl").rmdir()
    assert train(data, recipe, out, resume=True, overrides=more, say=_quiet).is_dir()
