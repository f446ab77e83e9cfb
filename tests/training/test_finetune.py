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
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from mmchat.errors import RecipeError
from mmchat.training.checkpoint import load_checkpoint
from mmchat.training.finetune import Trainer, TrainingPaused
from mmchat.training.finetune_config import read_config
from mmchat.training.losses import PackedLoss
from mmchat.training.prepare import prepare
from mmchat.training.process_state import IsolatedAccelerator
from mmchat.training.run_folder import RunFolder, Status
from mmchat.training.train_step import TrainStep
from tests.forked import run_forked
from tests.model.forms import relative_error
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
        if dtype == "fp32":
            assert torch.allclose(a[name], b[name], atol=close), name
        else:  # AdamW moves a weight by the rate, however small its gradient: single ones may differ
            error = relative_error(a[name], b[name])
            assert error <= 0.05, (name, error)


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


def _asking(base: Path, run: Path, *more: str) -> tuple[Trainer, list[str]]:
    """A run in this process, and what it says."""
    said: list[str] = []
    run.mkdir(exist_ok=True)
    overrides = [*RECIPE, "steps=4", "name=t", f"model={base}", *more]
    data = dataset(6)
    prepared = prepare(read_config(None, overrides), data, examples(2))
    folder = RunFolder(run)
    return Trainer(
        prepared, data.sha256, folder, Status("t", "", "preparing"), say=said.append
    ), said


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCHAT_HOME", str(home))


@pytest.mark.usefixtures("here")
def test_a_pause_while_the_last_answers_are_looked_at_is_heard(base: Path, tmp_path: Path) -> None:
    tune, _ = _asking(base, tmp_path)
    looks = tune.validate

    def paused(*given: Any) -> None:
        looks(*given)
        if tune.done == tune.total:
            tune.stop_signals.requested = "pause"

    tune.validate = paused
    with pytest.raises(TrainingPaused) as told:
        tune.run()
    assert told.value.saved and told.value.kept == 4
    assert not (tmp_path / "adapter").exists()
    assert _asking(base, tmp_path)[0].run().is_dir()


@pytest.mark.usefixtures("here")
def test_a_pause_at_a_suspicious_step_says_that_nothing_was_saved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, _ = _asking(base, tmp_path)
    agreed = tune.stop_signals.agreed

    def from_the_third(accelerator: Any) -> Any:
        if tune.step == 2:
            monkeypatch.setattr(TrainStep, "spiked", True)
        if tune.step == 3:
            tune.stop_signals.requested = "pause"
        return agreed(accelerator)

    monkeypatch.setattr(tune.stop_signals, "agreed", from_the_third)
    with pytest.raises(TrainingPaused) as told:
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
    assert [line for line in said if "continues with muon instead of adamw" in line]
    weights = load_file(own / "model.safetensors")
    weights = {name: tensor * 2 for name, tensor in weights.items()}
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"has other weights than when .*--restart"):
        _asking(own, run, "steps=8")


@pytest.mark.usefixtures("here")
def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is a number at that step; the weights after it would be none."""
    tune, _ = _asking(base, tmp_path)
    forward = PackedLoss.forward

    def spoiled(self: PackedLoss, *given: Any) -> torch.Tensor:
        value = forward(self, *given)
        weight = next(p for p in self.parameters() if p.requires_grad)
        return value if tune.step < 2 else value + (weight * 0).sum().sqrt()

    monkeypatch.setattr(PackedLoss, "forward", spoiled)
    with pytest.raises(RecipeError, match=r"gradient norm .*continue from the last checkpoint"):
        tune.run()
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept[1]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in kept[0].values())


@pytest.mark.usefixtures("here")
def test_a_loss_that_explodes_ends_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the second step far above the first, none of them becomes a checkpoint."""
    monkeypatch.setattr("mmchat.training.train_step.LossSpikeGuard.WARMUP", 1)
    monkeypatch.setattr("mmchat.training.train_step.LossSpikeGuard.MAX_SPIKES", 2)
    tune, _ = _asking(base, tmp_path)
    forward = PackedLoss.forward
    monkeypatch.setattr(
        PackedLoss, "forward", lambda self, *given: forward(self, *given) * 100.0**tune.step
    )
    with pytest.raises(RecipeError, match=r"Stage adapter, step 3: the loss grew to .*--resume"):
        tune.run()
    kept = load_checkpoint(tmp_path / "checkpoints")
    assert kept is not None and kept[1]["step"] == 1


@pytest.mark.usefixtures("here")
def test_a_recipe_that_the_checkpoint_does_not_fit_is_told(base: Path, tmp_path: Path) -> None:
    _asking(base, tmp_path, "steps=1")[0].run()
    with pytest.raises(
        RecipeError, match=r"does not fit, because it has other trained weights .*--restart"
    ):
        _asking(base, tmp_path, "steps=2", "lora.rank=3")


@pytest.mark.usefixtures("here")
def test_what_cannot_be_written_is_told_and_resumed(base: Path, tmp_path: Path) -> None:
    tune, _ = _asking(base, tmp_path, "steps=1")
    (tmp_path / "adapter").touch()  # a file where a folder has to be
    with pytest.raises(RecipeError, match=r"/adapter cannot be written.*--resume"):
        tune.run()
    (tmp_path / "adapter").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RecipeError, match=r"metrics\.jsonl cannot be written"):
        _asking(base, tmp_path, "steps=2")[0].run()
    (tmp_path / "metrics.jsonl").rmdir()
    assert _asking(base, tmp_path, "steps=2")[0].run().is_dir()


@pytest.mark.usefixtures("here")
def test_a_run_is_its_own_whatever_ran_before_in_the_process(
    base: Path, tmp_path: Path, dtype: str
) -> None:
    """As in a notebook that uses accelerate itself, with another precision."""
    with IsolatedAccelerator(torch.device("cpu")).active():
        AcceleratorState._shared_state = {}
        theirs = Accelerator(cpu=True, mixed_precision="bf16" if dtype == "fp32" else "no")
        assert _asking(base, tmp_path)[0].run().is_dir()
        assert theirs.mixed_precision == Accelerator().mixed_precision
        assert (theirs.mixed_precision == "bf16") == (dtype == "fp32")
