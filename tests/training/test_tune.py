"""Whole runs of an adapter, most as processes: killed, resumed, shared, stopped."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.errors import RecipeError
from mmchat.training.checkpoint import load_checkpoint
from mmchat.training.loop import Steps
from mmchat.training.preparing import prepare
from mmchat.training.progress import RunFolder, Status
from mmchat.training.tune import Paused, Tune
from mmchat.training.tuning import read_tuning
from tests.forked import run_forked
from tests.training.runner import RECIPE, STEPS, main
from tests.training.tuned import dataset, examples, write_base

QLORA = ("--set", "stages.0.method=qlora")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, dtype: str) -> Path:
    return tmp_path_factory.mktemp(f"home-{dtype}")


def _run(
    home: Path, base: Path, run: Path, *more: str, fails: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MMCHAT_HOME": str(home)}
    done = run_forked(main, [str(base), str(run), *more], environment, patience=300)
    if not fails:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def _launch(home: Path, *module: str) -> str:
    """Runs the module to its end, as Python starts it; -> what it said."""
    seed = str(os.getpid())  # of hashes: another each time
    own = {"MMCHAT_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-m", *module],
        capture_output=True,
        text=True,
        env={**os.environ, **own},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def straight(base: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight")
    _run(home, base, run)
    return run


@pytest.fixture(scope="module")
def straight_qlora(base: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on a 4-bit base."""
    run = tmp_path_factory.mktemp("straight-qlora")
    _run(home, base, run, *QLORA)
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
    _killed_and_resumed(straight, base, home, tmp_path, [step], anew=step == 1)


def test_killed_and_resumed_is_bit_identical_on_a_four_bit_base(
    straight_qlora: Path, base: Path, home: Path, tmp_path: Path
) -> None:
    """Also right behind a look at the held-out samples, which is a forward in eval mode."""
    _killed_and_resumed(straight_qlora, base, home, tmp_path, [4, 6], more=QLORA)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[n] for n in range(2, STEPS) if n != 7] + [[2, 5, 6, 11]])
def test_killed_at_any_step(
    straight: Path, base: Path, home: Path, tmp_path: Path, steps: list[int]
) -> None:
    _killed_and_resumed(straight, base, home, tmp_path, steps)


def _killed_and_resumed(
    straight: Path,
    base: Path,
    home: Path,
    run: Path,
    steps: list[int],
    *,
    anew: bool = False,
    more: Sequence[str] = (),
) -> None:
    """`anew`: a program of its own goes on, with other hashes, as all that are forked share theirs."""
    for step in steps:
        done = _run(home, base, run, "--kill-after", str(step), *more, fails=True)
        assert done.returncode == -9, done.stderr[-2000:]
        saved = load_checkpoint(run / "checkpoints")
        assert saved is not None and saved[1]["step"] == step
    if anew:
        _launch(home, "tests.training.runner", str(base), str(run), *more)
    else:
        _run(home, base, run, *more)
    assert _losses(run) == _losses(straight)
    _same_weights(run, straight)


@pytest.mark.slow  # three processes import torch side by side
def test_two_processes_equal_one(base: Path, home: Path, tmp_path: Path, dtype: str) -> None:
    """A step of two processes is that of one with both their samples, and they are two.

    In float32 within 1e-4. In bfloat16 the rows of a batch are rounded apart where they are computed
    apart, and twelve steps at a rate of 1e-2 carry that on.
    """
    close = 1e-4 if dtype == "fp32" else 2e-2
    plain = ["--set", "lora.dropout=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    _run(home, base, one, *plain)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runner = ["-m", "tests.training.runner", str(base), str(two), *plain]
    assert "processes 2" in _launch(home, *torchrun, *runner)
    wanted, found = _losses(one), _losses(two)
    assert len(found) == STEPS
    for step, loss in wanted.items():
        assert found[step] == pytest.approx(loss, abs=close)
    a = load_file(one / "adapter" / "projector.safetensors")
    b = load_file(two / "adapter" / "projector.safetensors")
    for name in a:
        assert torch.allclose(a[name], b[name], atol=close), name


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(
    base: Path, home: Path, tmp_path: Path
) -> None:
    done = _run(home, base, tmp_path, "--set", "learning_rate=1e30", fails=True)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "RecipeError: Stage adapter, step" in said and "made, sample" in said
    assert "--resume" in said
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    assert all(t.isfinite().all() for t in saved[0].values())


def _asking(base: Path, run: Path, *more: str) -> tuple[Tune, list[str]]:
    """A run in this process, and what it says."""
    said: list[str] = []
    run.mkdir(exist_ok=True)
    overrides = [*RECIPE, "steps=4", "name=t", f"model={base}", *more]
    data = dataset(6)
    prepared = prepare(read_tuning(None, overrides), data, examples(2))
    folder = RunFolder(run)
    return Tune(prepared, data.sha256, folder, Status("t", "", "preparing"), say=said.append), said


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCHAT_HOME", str(home))


@pytest.mark.usefixtures("here")
def test_a_pause_while_the_last_answers_are_looked_at_is_heard(base: Path, tmp_path: Path) -> None:
    tune, _ = _asking(base, tmp_path)
    looks = tune._evaluate

    def paused(*given: Any) -> None:
        looks(*given)
        if tune.done == tune.total:
            tune.steering.wanted = "pause"

    tune._evaluate = paused
    with pytest.raises(Paused) as told:
        tune.run()
    assert told.value.saved and told.value.kept == 4
    assert not (tmp_path / "adapter").exists()
    assert _asking(base, tmp_path)[0].run().is_dir()


@pytest.mark.usefixtures("here")
def test_a_pause_at_a_suspicious_step_says_that_nothing_was_saved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, _ = _asking(base, tmp_path)
    agreed = tune.steering.agreed

    def from_the_third(accelerator: Any) -> Any:
        if tune.step == 2:
            monkeypatch.setattr(Steps, "suspicious", True)
        if tune.step == 3:
            tune.steering.wanted = "pause"
        return agreed(accelerator)

    monkeypatch.setattr(tune.steering, "agreed", from_the_third)
    with pytest.raises(Paused) as told:
        tune.run()
    assert not told.value.saved and told.value.kept == 1


@pytest.mark.usefixtures("here")
def test_another_optimizer_begins_anew_and_another_base_is_refused(
    base: Path, tmp_path: Path
) -> None:
    run, own = tmp_path / "run", tmp_path / "base"
    shutil.copytree(base, own)
    _asking(own, run)[0].run()
    tune, said = _asking(own, run, "steps=6", "optimizer=muon")
    tune.run()
    assert [line for line in said if "goes on with muon in place of adamw" in line]
    weights = load_file(own / "model.safetensors")
    weights = {name: tensor * 2 for name, tensor in weights.items()}
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"began with another .*--restart"):
        _asking(own, run, "steps=8")
