"""`mmchat train` as a person types it: what goes well, and each mistake in one sentence."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mmchat.training.progress import RunFolder
from tests.cli.conftest import MMCHAT, Run
from tests.training.tuned import picture, write_base

QUICK = ("--set", "steps=4", "--no-measure", "--set", "data.replay=0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder per class, twelve pictures."""
    folder = tmp_path / "my photos"
    for number in range(12):
        inside = folder / ("red_kite" if number % 2 else "owl")
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{number}.png").write_bytes(picture(number).data)
    return folder


def test_a_folder_becomes_an_adapter_and_again(
    mmchat: Run, base: Path, home: Path, classes: Path
) -> None:
    """The second time it is made anew, and the one before is kept."""
    for _ in range(2):
        done = mmchat("train", str(classes), "--model", str(base), "--name", "birds", *QUICK)
        assert done.returncode == 0, done.stderr
        assert "birds is ready" in done.stdout
    assert "kept as birds-before" in done.stdout
    listed = mmchat("adapters", "list", "--json").stdout
    assert {json.loads(line)["name"] for line in listed.splitlines()} >= {"birds", "birds-before"}
    status = RunFolder(home / "runs" / "birds").status()
    assert status is not None and (status.state, status.adapter) == ("finished", "birds")
    assert (home / "adapters" / "birds" / "recipe.toml").is_file()


def test_dry_run_says_what_would_be_done_and_changes_nothing(
    mmchat: Run, base: Path, home: Path, classes: Path
) -> None:
    done = mmchat("train", str(classes), "--model", str(base), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["name"] == "my-photos" and plan["examples"] == plan["pictures"] == 12
    assert plan["held_out"] >= 2 and plan["trainable_parameters"] > 1000
    assert plan["steps"] == plan["stages"][0]["steps"] > 0
    assert plan["seconds"] > 0
    assert not (home / "runs").exists() and not (home / "adapters").exists()


def test_interrupted_it_says_how_to_go_on_and_goes_on(
    mmchat: Run, base: Path, home: Path, classes: Path
) -> None:
    command = [MMCHAT, "train", str(classes), "--model", str(base), "--name", "birds"]
    command += ["--no-measure", "--set", "steps=2000", "--set", "checkpoint_every=1000"]
    run = RunFolder(home / "runs" / "birds")
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as going:
        deadline = time.monotonic() + 100
        while not any("loss" in line for line in run.metrics()):
            assert going.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        going.send_signal(signal.SIGINT)
        _, said = going.communicate(timeout=60)
    assert going.returncode == 130
    assert "mmchat train --resume --name birds" in said and "Traceback" not in said
    status = run.status()
    assert status is not None and status.state == "paused"

    again = mmchat("train", str(classes), "--model", str(base), "--name", "birds", *QUICK)
    assert "--resume" in sentence_last(again) and "--restart" in sentence_last(again)
    done = mmchat(
        "train", "--resume", "--name", "birds", "--no-measure", "--set", f"steps={status.step + 2}"
    )
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in run.metrics() if "loss" in line][-1] == status.step + 2


def sentence_last(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_each_mistake_is_one_sentence(
    mmchat: Run, home: Path, classes: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "data.json").write_text('[{"conversations": ]')
    missing = tmp_path / "missing"
    missing.mkdir()
    line = {"messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "A."}],
            "images": ["not-there.png"]}  # fmt: skip
    (missing / "data.json").write_text(json.dumps([line] * 3))
    for arguments, words in (
        ((str(tmp_path / "nowhere"),), "nowhere"),
        ((str(empty),), "empty"),
        ((str(broken),), "data.json"),
        ((str(missing),), "not-there.png"),
        (("--from-history",), "history"),
        ((str(classes), "--name", "scenes"), "comes with mmchat"),
        ((str(classes), "--name", "a/b"), "cannot be an adapter's name"),
        ((str(classes), "--model", "./no-model"), "no-model"),
        ((str(classes), "--set", "batchs=3"), "did you mean batch?"),
        ((str(classes), "--set", "batch=0"), "at least 1"),
        ((str(classes), "--recipe", str(tmp_path / "none.toml")), "none.toml"),
        (("--resume", "--name", "nothing"), "There is no run nothing"),
    ):
        done = mmchat("train", *arguments, "--set", "data.replay=0")
        said = sentence_last(done)
        assert said.startswith("mmchat: ") and words in said, (arguments, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [(), ("x", "--from-history"), ("x", "--rating", "good"), ("x", "--set", "batch"), ("x", "--resume", "--restart")],
)  # fmt: skip
def test_wrong_usage(mmchat: Run, arguments: tuple[str, ...]) -> None:
    assert mmchat("train", *arguments).returncode == 2
