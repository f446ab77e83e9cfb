"""`mmchat train` as a person types it: what goes well, and each mistake in one sentence."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmchat.adapters.card import MAX_NAME_LENGTH, Base, Card, is_name, read_card, write_card
from mmchat.cli.adapter_evaluation import QuestionFolder, measure
from mmchat.cli.train import train
from mmchat.cli.train_args import TrainArgs, read_data
from mmchat.cli.training_job import install_adapter
from mmchat.training.finetune_config import read_config
from mmchat.training.run_folder import KEEP, PAUSE, RunFolder
from tests.cli.conftest import MMCHAT, Run
from tests.evaluation.folders import line, write
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
    ours = (home / "adapters" / "birds" / "recipe.toml").read_text()
    assert 'source = "my photos"' in ours
    assert str(classes.parent) not in ours.replace(str(base), "")
    assert str(classes) in (home / "runs" / "birds" / "recipe.toml").read_text()


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


def test_a_closed_terminal_saves_and_a_killed_run_can_be_resumed_at_once(
    base: Path, home: Path, classes: Path
) -> None:
    command = [MMCHAT, "train", str(classes), "--model", str(base), "--name", "birds"]
    command += ["--no-measure", "--set", "steps=2000", "--set", "checkpoint_every=1000"]
    run = RunFolder(home / "runs" / "birds")
    process, terminal = pty.fork()
    if process == 0:
        os.execv(MMCHAT, command)
    reader = threading.Thread(target=_drain, args=(terminal,))
    reader.start()
    _wait_for(lambda: any("loss" in line for line in run.metrics()))
    os.kill(process, signal.SIGHUP)  # what the kernel sends when the terminal is closed
    os.close(terminal)
    os.waitpid(process, 0)
    reader.join()
    status = run.status()
    assert status is not None and status.state == "paused"
    assert run.checkpoint_step() == status.step >= 1
    assert status.message.startswith(f"Saved after {status.step}")

    lines = len(run.metrics())
    again = [MMCHAT, "train", "--resume", "--name", "birds", "--no-measure"]
    with subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as going:
        _wait_for(lambda: any("loss" in line for line in run.metrics()[lines:]))
        going.kill()
    assert not run.is_running()  # no data loader of it holds the lock


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # it is closed
        while os.read(terminal, 65536):
            pass


def _wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_an_adapter_replaces_is_never_deleted(home: Path, tmp_path: Path) -> None:
    adapters, longest = home / "adapters", "n" * MAX_NAME_LENGTH
    kept = []
    for number in range(4):
        for name in ("birds", longest):
            made = tmp_path / f"made {number} {name[:5]}"
            made.mkdir()
            write_card(made, Card(name, Base("m", "h"), f"number {number}"))
            kept.append(install_adapter(made, name, []))
    short = [before.name for before in kept[::2] if before]
    assert short == ["birds-before", "birds-before-2", "birds-before-3"]
    assert all(before is None or is_name(before.name) for before in kept)
    described = {folder.name: read_card(folder) for folder in adapters.iterdir()}
    assert len(described) == 8 and all(card.name == name for name, card in described.items())
    assert [described[name].projector for name in ("birds", *reversed(short))] == [
        f"number {number}" for number in (3, 2, 1, 0)
    ]


def test_a_link_or_something_else_of_that_name_is_moved_aside(home: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_card(theirs, Card("theirs", Base("m", "h")))
    adapters = home / "adapters"
    adapters.mkdir(parents=True)
    (adapters / "birds-before").symlink_to(tmp_path / "nowhere")
    for number, what in enumerate(("link", "broken link", "file", "folder")):
        place = adapters / "birds"
        if what == "file":
            place.write_text("mine")
        elif what == "folder":
            place.mkdir()
        else:
            place.symlink_to(theirs if what == "link" else tmp_path / "nowhere")
        made = tmp_path / f"made {number}"
        made.mkdir()
        write_card(made, Card("birds", Base("m", "h")))
        before = install_adapter(made, "birds", [])
        assert before == adapters / f"birds-before-{number + 2}" and os.path.lexists(before)
        place.rename(tmp_path / f"done {number}")
    assert (adapters / "birds-before").is_symlink()
    assert read_card(theirs).name == "theirs"
    assert (adapters / "birds-before-4").read_text() == "mine"


def test_data_called_history_is_data(tmp_path: Path) -> None:
    """An adapter's recipe names what it was made from, and that may be anything."""
    (tmp_path / "history").mkdir()
    for number in range(4):
        (tmp_path / "history" / f"{number}.png").write_bytes(picture(number).data)
        (tmp_path / "history" / f"{number}.txt").write_text(f"picture {number}")
    recipe = read_config(None, ["data.source=history"])
    args = TrainArgs(data=tmp_path / "history")
    found = read_data(args, recipe, RunFolder(tmp_path / "run"))
    assert len(found.train.examples) + len(found.held_out) == 4


@pytest.mark.usefixtures("scripted_engine")
def test_an_adapter_is_asked_by_an_engine_of_its_own_whatever_server_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_URL", "http://127.0.0.1:9/v1")
    data = write(tmp_path / "data", [line("1", "say red", "red"), line("2", "say blue", "red")])
    for together in (True, False):
        (row,) = measure(
            "m", tmp_path, [QuestionFolder("skills", data)], together=together, progress=print
        )
        assert (row.n, row.before, row.after) == (2, 0.5, 0.5)


@pytest.mark.usefixtures("scripted_engine")
@pytest.mark.slow  # two runs that measure
def test_paused_while_it_measures_and_measured_in_vain(
    mmchat: Run,
    base: Path,
    home: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ends a training early does nothing there, a pause ends the engines too; and an adapter
    that cannot be measured is kept all the same."""
    temporary = tmp_path_factory.mktemp("t")
    data = tmp_path / "chats.jsonl"
    said = [
        [{"role": "user", "content": f"gate {n}"}, {"role": "assistant", "content": f"{n}"}]
        for n in range(6)
    ]
    data.write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
    command = [MMCHAT, "train", str(data), "--model", str(base), "--name", "birds", *QUICK]
    command.remove("--no-measure")
    run = RunFolder(home / "runs" / "birds")
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as going:
        deadline = time.monotonic() + 100
        while len(engines := list(temporary.glob("mmchat-*/engine.json"))) < 2:
            assert going.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        pids = [json.loads(file.read_text())["pid"] for file in engines]
        assert run.signal(KEEP)
        assert run.signal(PAUSE)
        assert going.wait(60) == 130
    status = run.status()
    assert status is not None and status.state == "paused"
    assert "--resume --name birds" in status.message
    assert list(temporary.glob("mmchat-*")) == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    monkeypatch.setenv("MMCHAT_ENGINE_BACKEND", "no.such:backend")
    done = mmchat("train", "--resume", "--name", "birds")
    assert done.returncode == 0, done.stderr
    assert "birds is ready" in done.stdout and "It could not be measured: " in done.stdout
    status = run.status()
    assert status is not None and (status.state, status.rows) == ("finished", ())
    assert (home / "adapters" / "birds" / "adapter.toml").is_file()


def test_what_had_not_begun_to_learn_is_begun_again(
    mmchat: Run, base: Path, home: Path, classes: Path
) -> None:
    """A pause while it prepares leaves nothing to go on with, and does not say so."""
    run = RunFolder(home / "runs" / "birds")
    command = [MMCHAT, "train", str(classes), "--model", str(base), "--name", "birds", *QUICK]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as going:
        deadline = time.monotonic() + 60
        while run.status() is None:
            assert going.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        assert run.signal(PAUSE)
        assert going.wait(60) == 130
    status = run.status()
    assert status is not None and status.state == "paused"
    assert status.message == "It had not started to train: start it again." and not run.can_resume()
    assert "There is no run birds" in sentence_last(mmchat("train", "--resume", "--name", "birds"))
    assert not run.is_unfinished()


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
        ((str(classes), "--name", "scenes"), "is part of mmchat"),
        ((str(classes), "--name", "a/b"), "cannot be the name of an adapter"),
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
    [(), ("x", "--from-history"), ("x", "--rating", "good"), ("x", "--set", "batch"), ("x", "--resume", "--restart"),
     ("x", "--resume", "--recipe", "lora.toml"), ("--from-history", "--resume", "--tag", "t")],
)  # fmt: skip
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "lora.toml").write_text("[lora]\nrank = 4\n")
    assert CliRunner().invoke(train, arguments).exit_code == 2
