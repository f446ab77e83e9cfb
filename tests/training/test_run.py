"""A whole run: stages, resume, the finished folder."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from mmchat.errors import DataError, RecipeError
from mmchat.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mmchat.training.dataset import PreparedData
from mmchat.training.progress import RunFolder, replace_file, writing
from mmchat.training.recipe import read_recipe
from mmchat.training.run import Run, train


def _quiet(line: str) -> None:
    pass


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_checkpoint(folder / "checkpoints")
    assert loaded is not None
    return loaded[0]


def test_resumed_equals_straight(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    """Stopped after any step and resumed, a run ends with the same bits."""
    data, recipe = prepared
    whole = tmp_path / "whole"
    train(data, recipe, whole, say=_quiet)
    wanted = _weights(whole)
    for stop in (2, 3, 5):
        broken = tmp_path / f"stopped-{stop}"
        run = Run(data, read_recipe(recipe), broken, resume=False, say=_quiet)
        save = run._save

        def save_and_stop(*given: object, stop: int = stop, run: Run = run, save=save) -> None:  # type: ignore[no-untyped-def]
            save(*given)
            done = sum(s.steps for s in run.recipe.stages[: run.stage_index]) + run.step
            if done == stop:
                raise KeyboardInterrupt

        run._save = save_and_stop  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            run.run()
        train(data, recipe, broken, resume=True, say=_quiet)
        found = _weights(broken)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(tensor, found[name]), name


def test_finished_folder_is_a_model(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    data, recipe = prepared
    out = train(data, recipe, tmp_path / "out", say=_quiet)
    tensors = load_file(out / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["model_type"] == "visual_prefix"
    assert read_recipe(out / "recipe.toml") == read_recipe(recipe)
    held_out = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    kinds = {kind for record in held_out for kind in record.get("held_out", {})}
    assert {"colour", "is_there", "read", "greet", "compare"} <= kinds


def test_only_what_the_stage_names_is_trained(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    data, recipe = prepared
    train(data, recipe, tmp_path / "one", overrides=["stages.1.steps=1"], say=_quiet)
    train(data, recipe, tmp_path / "more", overrides=["stages.1.steps=3"], say=_quiet)
    one, more = _weights(tmp_path / "one"), _weights(tmp_path / "more")
    for name in one:
        if "vision_tower" in name or name.startswith("heads."):
            assert torch.equal(one[name], more[name]), name
    changed = [n for n in one if "layers.0" in n and n.startswith("model.")]
    assert changed and not any(torch.equal(one[n], more[n]) for n in changed if "proj" in n)


def test_answers_can_teach_the_tower(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    data, recipe = prepared
    parts = 'stages.1.trains=["vision_tower", "projector", "language_model"]'
    train(data, recipe, tmp_path / "one", overrides=[parts, "stages.1.steps=1"], say=_quiet)
    train(data, recipe, tmp_path / "more", overrides=[parts, "stages.1.steps=3"], say=_quiet)
    one, more = _weights(tmp_path / "one"), _weights(tmp_path / "more")
    tower = [n for n in one if n.startswith("model.") and "vision_tower" in n and "conv" in n]
    assert tower and not any(torch.equal(one[n], more[n]) for n in tower)


def test_a_resumed_run_keeps_its_tokenizer(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, recipe = prepared
    train(data, recipe, tmp_path / "out", say=_quiet)
    monkeypatch.setattr("mmchat.training.run.TOKENIZER_TEXTS", 1)  # would make another one
    kept = Run(data, read_recipe(recipe), tmp_path / "out", resume=True, say=_quiet).tokenizer
    other = Run(data, read_recipe(recipe), tmp_path / "new", resume=False, say=_quiet).tokenizer
    made = AutoTokenizer.from_pretrained(tmp_path / "out" / "model").get_vocab()
    assert kept.get_vocab() == made != other.get_vocab()


def test_a_second_run_needs_resume(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    data, recipe = prepared
    train(data, recipe, tmp_path / "out", say=_quiet)
    with pytest.raises(RecipeError, match="--resume"):
        train(data, recipe, tmp_path / "out", say=_quiet)


def test_other_data_is_refused(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    data, recipe = prepared
    train(data, recipe, tmp_path / "out", say=_quiet)
    with (data / "train" / "samples.jsonl").open("a") as file:
        file.write('{"images": [], "dialogs": []}\n')
    with pytest.raises(DataError, match="not the data"):
        train(data, recipe, tmp_path / "out", resume=True, say=_quiet)


def test_partial_checkpoint_is_passed_over(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    data, recipe = prepared
    train(data, recipe, tmp_path / "out", say=_quiet)
    folder = tmp_path / "out" / "checkpoints"
    newest = checkpoints(folder)[-1]
    shutil.copytree(newest, folder / ".step-9999999.partial")
    (folder / "step-9999999").mkdir()
    assert checkpoints(folder)[-1] == newest
    assert len(checkpoints(folder)) == 2


def test_a_checkpoint_without_room_is_told_and_the_one_before_stays(tmp_path: Path) -> None:
    """The limit of a file's size stands for a disk that is full."""
    save_checkpoint(tmp_path, 1, {"a": torch.zeros(10)}, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(RecipeError, match=r"step 2 was not written.*--resume"):
            save_checkpoint(tmp_path, 2, {"a": torch.zeros(100_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    found = load_checkpoint(tmp_path)
    assert found is not None and found[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["step-0000001"]


def test_a_run_that_became_shorter_keeps_what_it_writes(tmp_path: Path) -> None:
    """An earlier stage got fewer steps: its new checkpoints have lower numbers than the old ones."""
    for step in (90, 100, 50, 60, 70):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {"step": step})
        found = load_checkpoint(tmp_path)
        assert found is not None and found[1] == {"step": step}
    assert [path.name for path in checkpoints(tmp_path)] == ["step-0000060", "step-0000070"]


def test_those_who_look_at_a_run_do_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    with run.working():
        assert run.is_running()
    looking = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not run.is_running()
    # Whoever looks has looked before the second try.
    monkeypatch.setattr("mmchat.training.progress.time.sleep", lambda seconds: os.close(looking))
    with run.working():
        monkeypatch.setattr("mmchat.training.progress.time.sleep", lambda seconds: None)
        with pytest.raises(RecipeError, match="Another process works"), run.working():
            pass


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recipe.toml"
    replace_file(file, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mmchat.training.progress.os.fsync", full)
        with pytest.raises(RecipeError, match=r"recipe\.toml cannot be written"):
            replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_last_line_without_its_end_counts(prepared: tuple[Path, Path]) -> None:
    folder = prepared[0] / "train"
    whole = PreparedData(folder)
    file = folder / "samples.jsonl"
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    cut = PreparedData(folder)
    assert len(cut) == len(whole)
    assert cut[len(cut) - 1] == whole[len(whole) - 1]


def test_damaged_data_is_told(prepared: tuple[Path, Path]) -> None:
    folder = prepared[0] / "train"
    (folder / "classes.json").write_text("{")
    with pytest.raises(DataError, match=r"classes\.json cannot be read"):
        _ = PreparedData(folder).classes
    (folder / "cells.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"cells\.npy is damaged"):
        _ = PreparedData(folder).cells
    np.save(folder / "images.npy", np.zeros(3))
    with pytest.raises(DataError, match="has to hold uint8"):
        PreparedData(folder)
    (folder / "samples.jsonl").write_bytes(b"")
    np.save(folder / "images.npy", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="holds no sample"):
        PreparedData(folder)


def test_missing_data(tmp_path: Path, prepared: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"samples\.jsonl"):
        train(tmp_path / "nowhere", prepared[1], tmp_path / "out", say=_quiet)


def test_a_full_disk_is_called_so_whoever_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy says only how many bytes it wanted."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=5000))
    with (
        pytest.raises(
            RecipeError, match=r"cannot be written \(No space left on device\): make room"
        ),
        writing(tmp_path / "a" / "file.npy"),
    ):
        raise OSError("2048 requested and 0 written")
