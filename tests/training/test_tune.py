"""Whole runs of an adapter, as processes: killed, resumed, shared, stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmchat.training.checkpoint import load_checkpoint
from mmchat.training.progress import RunFolder
from tests.training.runner import STEPS
from tests.training.tuned import write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def _command(base: Path, run: Path, *more: str) -> list[str]:
    return ["-m", "tests.training.runner", str(base), str(run), *more]


def _run(
    home: Path, command: list[str], *, fails: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MMCHAT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300
    )
    if not fails:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def straight(base: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight")
    _run(home, _command(base, run))
    return run


def _losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in RunFolder(run).metrics() if "loss" in line}


def _same_weights(one: Path, two: Path) -> None:
    for file in ("projector.safetensors", "lora/adapter_model.safetensors"):
        a, b = load_file(one / "adapter" / file), load_file(two / "adapter" / file)
        assert a.keys() == b.keys() and a
        for name in a:
            assert torch.equal(a[name], b[name]), name


def test_it_learns_and_leaves_an_adapter(straight: Path) -> None:
    losses = _losses(straight)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    adapter = straight / "adapter"
    config = json.loads((adapter / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and "language_model" in config["target_modules"]
    assert (adapter / "recipe.toml").read_text() == (straight / "recipe.toml").read_text()
    assert (straight / "loss.png").read_bytes()[:4] == b"\x89PNG"
    status = RunFolder(straight).status()
    assert status is not None and status.samples and status.held_out_loss is not None


@pytest.mark.parametrize("step", [1, 7])
def test_killed_and_resumed_is_bit_identical(
    straight: Path, base: Path, home: Path, tmp_path: Path, step: int
) -> None:
    _killed_and_resumed(straight, base, home, tmp_path, [step])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[n] for n in range(2, STEPS) if n != 7] + [[2, 5, 6, 11]])
def test_killed_at_any_step(
    straight: Path, base: Path, home: Path, tmp_path: Path, steps: list[int]
) -> None:
    _killed_and_resumed(straight, base, home, tmp_path, steps)


def _killed_and_resumed(
    straight: Path, base: Path, home: Path, run: Path, steps: list[int]
) -> None:
    for step in steps:
        done = _run(home, _command(base, run, "--kill-after", str(step)), fails=True)
        assert done.returncode == -9, done.stderr[-2000:]
        saved = load_checkpoint(run / "checkpoints")
        assert saved is not None and saved[1]["step"] == step
    _run(home, _command(base, run))
    assert _losses(run) == _losses(straight)
    _same_weights(run, straight)


def test_two_processes_equal_one(straight: Path, base: Path, home: Path, tmp_path: Path) -> None:
    """A step of two processes is that of one with both their samples: within 1e-4, and they are two."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    plain = ["--set", "lora.dropout=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    _run(home, _command(base, one, *plain))
    done = _run(home, [*torchrun, *_command(base, two, *plain)])
    assert "processes 2" in done.stdout
    wanted, found = _losses(one), _losses(two)
    assert len(found) == STEPS
    for step, loss in wanted.items():
        assert found[step] == pytest.approx(loss, abs=1e-4)
    a = load_file(one / "adapter" / "projector.safetensors")
    b = load_file(two / "adapter" / "projector.safetensors")
    for name in a:
        assert torch.allclose(a[name], b[name], atol=1e-4), name


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    base: Path, home: Path, tmp_path: Path
) -> None:
    done = _run(home, _command(base, tmp_path, "--set", "learning_rate=1e30"), fails=True)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "RecipeError: Stage adapter, step" in said and "made, sample" in said
    assert "--resume" in said
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert all(t.isfinite().all() for t in saved[0].values())
