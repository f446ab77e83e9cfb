"""Checkpoints and the folder of a run: whole or not there, also on a full disk."""

import fcntl
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from mmchat.errors import RecipeError
from mmchat.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from mmchat.training.run_folder import RunFolder, writing


def test_a_checkpoint_without_room_is_told_and_the_one_before_stays(tmp_path: Path) -> None:
    """The limit of a file's size stands for a disk that is full."""
    save_checkpoint(tmp_path, 1, {"a": torch.zeros(10)}, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(RecipeError, match=r"step 2 could not be written.*--resume"):
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
    monkeypatch.setattr("mmchat.training.run_folder.time.sleep", lambda seconds: os.close(looking))
    with run.working():
        monkeypatch.setattr("mmchat.training.run_folder.time.sleep", lambda seconds: None)
        with pytest.raises(RecipeError, match="Another process works"), run.working():
            pass


def test_a_partial_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {"step": step})
    newest = checkpoints(tmp_path)[-1]
    shutil.copytree(newest, tmp_path / ".step-9999999.partial")
    (tmp_path / "step-9999999").mkdir()
    assert checkpoints(tmp_path)[-1] == newest
    assert len(checkpoints(tmp_path)) == 2


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {"step": step})
    newest = checkpoints(tmp_path)[-1]
    for file, damage in (("state.json", b"{"), ("tensors.safetensors", b"x" * 99)):
        (newest / file).write_bytes(damage)
        with pytest.raises(RecipeError, match=f"{newest.name} is damaged.*remove that folder"):
            load_checkpoint(tmp_path)
    shutil.rmtree(newest)
    found = load_checkpoint(tmp_path)
    assert found is not None and found[1] == {"step": 1}


def test_a_full_disk_is_called_so_whoever_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy says only how many bytes it wanted."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=5000))
    with (
        pytest.raises(
            RecipeError, match=r"cannot be written \(No space left on device\): free some space"
        ),
        writing(tmp_path / "a" / "file.npy"),
    ):
        raise OSError("2048 requested and 0 written")
