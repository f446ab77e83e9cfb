"""TensorBoard and W&B through accelerate, against stand-ins of the two packages that write down calls."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmchat.errors import RecipeError
from mmchat.training.trackers import Trackers

RECORD = """
import json, os
def record(*call, **named):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps([*call, named], default=str) + "\\n")
"""
WANDB = (
    RECORD
    + """
class Run:
    def log(self, values, step=None): record("log", values, step=step)
    def finish(self): record("finish")
class config:
    update = staticmethod(lambda values, **named: record("config", values))
def init(**named):
    if os.environ.get("WANDB_MODE") != "offline":
        raise RuntimeError("api_key not configured\\n(no-tty)")
    record("init", **named)
    return Run()
"""
)
TENSORBOARD = (
    RECORD
    + """
class SummaryWriter:
    def __init__(self, folder): record("open", folder); os.makedirs(folder, exist_ok=True)
    def add_hparams(self, values, metric_dict): record("config", values)
    def add_scalar(self, name, value, global_step): record("scalar", name, value, global_step)
    def flush(self): pass
    def close(self): record("close")
"""
)
SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from mmchat.errors import RecipeError
from mmchat.training.trackers import Trackers
Accelerator(cpu=True)
names, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
try:
    trackers = Trackers(names, folder, {"lora": {"rank": 8, "targets": ["q", "v"]}, "file": folder, "no": None})
except RecipeError as error:
    sys.exit(f"RecipeError: {error}")
trackers.log(20, {"loss": 0.5, "stage": "lora", "done": True, "held_out": {"birds": 1}})
trackers.close()
trackers.close()
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with the stand-ins, as pip would leave them."""
    folder = tmp_path / "packages"
    for name, source in (("wandb", WANDB), ("tensorboardX", TENSORBOARD)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source)
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return folder


def _told(
    packages: Path, *names: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[Any]]:
    record = packages / "record.jsonl"
    paths = os.pathsep.join([str(packages), str(Path(__file__).resolve().parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(names), str(packages.parent / "birds")],
        env={**os.environ, "PYTHONPATH": paths, "RECORD": str(record), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = record.read_text().splitlines() if record.exists() else []
    return done, [json.loads(line) for line in lines]


def test_wandb_is_told_everything(packages: Path) -> None:
    run = str(packages.parent / "birds")
    done, calls = _told(packages, "wandb", "wandb", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert calls == [
        ["init", {"project": "mmchat", "dir": run, "name": "birds", "group": "birds"}],
        [
            "config",
            {"lora.rank": 8, "lora.targets.0": "q", "lora.targets.1": "v", "file": run},
            {},
        ],
        ["log", {"loss": 0.5, "held_out/birds": 1}, {"step": 20}],
        ["finish", {}],
    ]


def test_tensorboard_is_told_everything(packages: Path) -> None:
    run = str(packages.parent / "birds")
    done, calls = _told(packages, "tensorboard")
    assert done.returncode == 0, done.stderr
    assert calls[0] == ["open", f"{run}/tensorboard", {}]
    assert calls[1][0] == "config"
    assert calls[2:] == [
        ["scalar", "loss", 0.5, 20, {}],
        ["scalar", "held_out/birds", 1, 20, {}],
        ["close", {}],
    ]


def test_a_tracker_that_does_not_start(packages: Path) -> None:
    done, calls = _told(packages, "wandb", WANDB_MODE="online")
    assert done.stderr.splitlines()[-1] == (
        "RecipeError: The tracker wandb does not start (api_key not configured (no-tty)): correct that "
        "(WANDB_MODE=offline keeps it on this machine), or leave it out of trackers."
    )
    assert calls == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(RecipeError, match=rf"names {name}, .* not installed: .*pip install {name}"):
        Trackers((name,), tmp_path, {})


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'aim': choose from tensorboard, wandb"):
        Trackers(("aim",), tmp_path, {})


def test_without_names_nothing_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mmchat.training.trackers import Trackers; "
        "t = Trackers((), Path('x'), {}); t.log(1, {'loss': 1.0}); t.close(); "
        "print({'torch', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "set()\n"
