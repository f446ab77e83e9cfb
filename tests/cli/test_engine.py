"""`mmchat engine` and `mmchat adapters use`, with a real engine process."""

import json
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from mmchat.client.endpoint import engine_lives
from mmchat.settings import paths
from tests.cli.conftest import MMCHAT, Run, sentence
from tests.cli.folders import make_adapter, make_model
from tests.client.asking import until

pytestmark = pytest.mark.usefixtures("scripted_engine")


def test_start_status_stop(mmchat: Run) -> None:
    assert mmchat("engine", "status").stdout == "No engine is running.\n"
    assert json.loads(mmchat("engine", "status", "--json").stdout) == {}
    started = json.loads(mmchat("engine", "start", "--json").stdout)
    assert started["model"] == "scenes" and started["state"] == "ready"
    found = json.loads(mmchat("engine", "status", "--json").stdout)
    promised = ["pid", "model", "adapter", "device", "quantization", "memory_bytes", "idle_s"]
    assert list(found)[: len(promised)] == promised
    assert found["pid"] == started["pid"] and found["memory_bytes"] > 1_000_000
    assert "scenes" in mmchat("engine", "status").stdout
    assert mmchat("engine", "stop").stdout == "The engine has stopped.\n"
    assert not engine_lives()
    assert mmchat("engine", "stop").stdout == "No engine is running.\n"


def test_start_says_why_a_model_cannot_be_loaded(mmchat: Run) -> None:
    assert "cut short" in sentence(mmchat("engine", "start", MMCHAT_MODEL_NAME="broken"))


async def test_serve_runs_until_ctrl_c_and_is_the_only_one(mmchat: Run) -> None:
    serving = subprocess.Popen([MMCHAT, "engine", "serve"], stderr=subprocess.PIPE, text=True)
    await until(lambda: json.loads(mmchat("engine", "status", "--json").stdout))
    found = json.loads(mmchat("engine", "status", "--json").stdout)
    assert found["pid"] == serving.pid
    assert "already running" in sentence(mmchat("engine", "serve"))
    serving.send_signal(signal.SIGINT)
    _, log = serving.communicate(timeout=60)
    assert serving.returncode == 0
    assert "is listening" in log and "Traceback" not in log


def test_use_an_adapter(mmchat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "base")
    make_adapter(paths().adapters / "birds", model)
    make_adapter(paths().adapters / "strange", make_model(tmp_path / "other", seed=1))
    settings = paths().settings_file
    settings.write_text(f'[model]\nname = "{model}"\n\n[app]\ntheme = "nord"\n', encoding="utf-8")

    assert "birds" in mmchat("adapters", "list").stdout
    done = mmchat("adapters", "use", "birds")
    assert done.stdout.startswith("In use: birds") and "switched" not in done.stdout
    written = tomllib.loads(settings.read_text(encoding="utf-8"))
    assert written == {
        "model": {"name": str(model), "adapter": "birds"},
        "app": {"theme": "nord"},
    }
    assert settings.stat().st_mode & 0o777 == 0o600
    assert "was trained for" in sentence(mmchat("adapters", "use", "strange"))
    assert "no adapter nowhere" in sentence(mmchat("adapters", "use", "nowhere"))
    assert "*" in mmchat("adapters", "list").stdout

    json.loads(mmchat("engine", "start", "--json").stdout)
    done = mmchat("adapters", "use", "none")
    assert "the engine has switched" in done.stdout
    assert json.loads(mmchat("engine", "status", "--json").stdout)["adapter"] == ""
    assert "switched" in mmchat("adapters", "use", "birds").stdout
    assert json.loads(mmchat("engine", "status", "--json").stdout)["adapter"] == "birds"
