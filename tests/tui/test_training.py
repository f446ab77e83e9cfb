"""The training screen, against a real process with a real run folder that does what it is told."""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, RadioSet, Static

from mmchat.chat.answer_queue import AnswerQueue
from mmchat.chat.events import LoadFinished
from mmchat.client.protocol import EngineStatus
from mmchat.settings import load_settings, paths
from mmchat.training.run_folder import RECIPE, RunFolder, list_runs, run_folder
from mmchat.tui.app import ChatApp
from mmchat.tui.runs import Runs, TrainingPlan, free_name, name_problem, plan_training
from mmchat.tui.screens.dialogs import ConfirmScreen, PickScreen
from mmchat.tui.screens.training import TrainingScreen
from mmchat.tui.widgets.status import TitleLine
from mmchat.tui.widgets.training import Answers, LossChart, RunView, Table
from mmchat.tui.widgets.training_setup import PathField, SetupView, plan_sentences
from tests.tui import fake_train
from tests.tui.conftest import NOW, answered, drawn, say, until
from tests.tui.fake_train import ROWS, calls, tell

NewApp = Callable[..., ChatApp]
Compare = Callable[..., bool]
FAKE = (sys.executable, "-m", "tests.tui.fake_train")
HISTORY = ["train", "--from-history", "--model", "scenes"]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mmchat train` is the stand-in, and is looked at often."""
    monkeypatch.setattr("mmchat.tui.runs.MMCHAT", FAKE)
    monkeypatch.setattr("mmchat.tui.screens.training.POLL_SECONDS", 0.05)
    monkeypatch.setattr("mmchat.tui.screens.training.TYPING_SECONDS", 0.05)
    monkeypatch.setattr("mmchat.tui.app.POLL_SECONDS", 0.1)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def new_app(fresh: Path, new_app: NewApp) -> Iterator[NewApp]:
    """Apps in a home without runs; what still runs in the end is ended."""
    import shutil

    for name in ("runs", "fake", "adapters"):
        shutil.rmtree(fresh / name, ignore_errors=True)
    yield new_app
    end_runs()


def end_runs() -> None:
    deadline = time.monotonic() + 30
    for run in list_runs():
        while run.is_running():
            status = run.status()
            assert time.monotonic() < deadline and status is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)
            time.sleep(0.005)


def screen(pilot: Pilot[None]) -> TrainingScreen:
    found = pilot.app.screen
    assert isinstance(found, TrainingScreen)
    return found


async def opened(pilot: Pilot[None], *keys: str) -> TrainingScreen:
    """F9, or other keys, and one of the two views there."""
    await pilot.press(*(keys or ("f9",)))
    await until(pilot, lambda: isinstance(pilot.app.screen, TrainingScreen))
    await until(pilot, lambda: any(view.display for view in _views(pilot)))
    return screen(pilot)


def _views(pilot: Pilot[None]) -> list[Any]:
    shown = pilot.app.screen
    return [*shown.query(SetupView), *shown.query(RunView)]


def plan(pilot: Pilot[None]) -> str:
    return str(pilot.app.screen.query_one("#train-plan", Static).content)


def setup_complaint(pilot: Pilot[None]) -> str:
    line = pilot.app.screen.query_one("#train-error", Static)
    return str(line.content) if line.display else ""


def said(pilot: Pilot[None]) -> str:
    return str(pilot.app.screen.query_one("#run-note", Static).content)


def keys(pilot: Pilot[None]) -> set[str]:
    """The keys that do something now."""
    return {
        binding.binding.description
        for binding in pilot.app.screen.active_bindings.values()
        if binding.binding.show and binding.enabled
    }


def state(name: str) -> str:
    status = run_folder(name).status()
    return status.state if status else ""


async def started(pilot: Pilot[None], name: str = "birds", allowed: int = 4) -> RunFolder:
    """A run that was begun through the screen and has done some steps."""
    tell("allowed", allowed)
    shown = await opened(pilot)
    await until(pilot, lambda: "34 pictures" in plan(pilot))
    shown.query_one("#train-name", Input).value = name
    await pilot.press("enter")
    await until(pilot, lambda: shown.query_one(RunView).display)
    await until(pilot, lambda: f"step {allowed} of 10" in drawn(pilot.app))  # type: ignore[arg-type]
    return run_folder(name)


# Beginning one


async def test_it_says_what_it_would_learn_from(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        assert plan(pilot).splitlines() == [
            "It will learn from 30 corrected answers and 12 good answers about 34 pictures (from history).",
            "6 of them are kept back to measure what was learned.",
            "1 cannot be used and is left out.",
            "50 % of the data is what the model knows already, to prevent forgetting.",
            "That takes 240 steps, about 6 minutes, up to 1.2 GB of memory.",
            "It trains 412,000 parameters.",
        ]
        assert calls() == [[*HISTORY, "--dry-run", "--json"]]
        assert app.screen.query_one("#train-name", Input).value == "mine"
        assert keys(pilot) == {"Runs", "Back"}
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat)
    assert list_runs() == []


async def test_the_command_typed_whole_is_run_by_enter(new_app: NewApp) -> None:
    """It could take a folder more, which are offered after a space and not in its place."""
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("slash", *"train", "enter")
        await until(pilot, lambda: isinstance(app.screen, TrainingScreen))
        assert app.chat.composer.input.text == ""


async def test_start_and_watch(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        run = await started(pilot)
        assert calls()[1:] == [[*HISTORY, "--name", "birds"]]
        status = run.status()
        assert status is not None
        assert os.getsid(status.pid) == status.pid != os.getsid(0)  # the app's end is not its own
        assert (run.folder / "log").stat().st_mode & 0o777 == 0o600
        await until(pilot, lambda: "about 2 minutes left" in drawn(app))
        shown = drawn(app)
        for part in (
            "birds",
            "training on scenes · 40 %",
            "812 tokens/s",
            "6.1 samples/s",
            "1.2 GB",
        ):
            assert part in shown, part
        for part in ("rate 2.1e-4", "2 % waiting for data", "✓ What is this?   a florp"):
            assert part in shown, part
        assert "[red] one?   wanted a florp, said a circle [31m" in shown
        assert app.screen.query_one(LossChart).size.height >= 6
        assert any("⠀" < character <= "⣿" for character in shown), "no curve is drawn"
        assert keys(pilot) == {"Pause", "Stop and keep", "Runs", "Back"}
        tell("allowed", 6)
        await until(pilot, lambda: "step 6 of 10" in drawn(app))
        assert "● held-out" in drawn(app)


async def test_a_folder_is_completed_and_learned_from(new_app: NewApp, tmp_path: Path) -> None:
    (tmp_path / "My Birds!" / "deeper").mkdir(parents=True)
    (tmp_path / "My Birds!" / "data.jsonl").touch()
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        shown = await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        shown.query_one(RadioSet).focus()
        await pilot.press("down", "enter")
        field = shown.query_one(PathField)
        await until(pilot, lambda: field.input.has_focus)
        await until(pilot, lambda: "Type a folder" in plan(pilot))
        field.input.value = f"{tmp_path}/my"
        listed = field.query_one(OptionList)
        await until(pilot, lambda: listed.display)
        await pilot.press("tab")
        assert field.input.value == f"{tmp_path}/My Birds!/"
        await until(pilot, lambda: listed.display and listed.option_count == 2)
        assert {str(listed.get_option_at_index(n).prompt) for n in (0, 1)} == {
            "data.jsonl",
            "deeper/",
        }
        await pilot.press("enter")
        assert not listed.display
        assert shown.query_one("#train-name").has_focus
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        assert shown.query_one("#train-name", Input).value == "My-Birds"
        source = ["train", f"{tmp_path}/My Birds!", "--model", "scenes"]
        assert calls()[-1] == [*source, "--dry-run", "--json"]
        await pilot.press("enter")
        await until(pilot, lambda: state("My-Birds") == "training")
        assert calls()[-1] == [*source, "--name", "My-Birds"]


async def test_the_command_takes_a_path(new_app: NewApp, tmp_path: Path) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        box = app.chat.composer.input
        box.set_text(f"/train {tmp_path.parent}/{tmp_path.name[:-1]}")
        await until(pilot, lambda: box.suggesting)
        await pilot.press("enter")
        assert box.text == f"/train {tmp_path}/"
        await until(pilot, lambda: "this folder" in drawn(app))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TrainingScreen))
        await until(pilot, lambda: calls())
        assert calls()[0][:2] == ["train", str(tmp_path)]
        assert not screen(pilot).setup.from_history


async def test_what_cannot_be_learned_from_is_said(new_app: NewApp) -> None:
    tell("refuse", "There is no rated answer yet: rate some first.")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        shown = await opened(pilot)
        # Until the command has ended, its own line is shown as it wrote it.
        said = "There is no rated answer yet: rate some first."
        await until(pilot, lambda: plan(pilot) == said)
        await pilot.press("enter")
        await until(pilot, lambda: "nothing to start yet" in setup_complaint(pilot))
        shown.setup.choose("/nowhere/at all")
        await until(pilot, lambda: plan(pilot) == "/nowhere/at all does not exist.")
    assert len(calls()) == 1
    assert list_runs() == []


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "Give the adapter a name"),
        ("../birds", "A name has letters"),
        ("a b", "A name has letters"),
        ("none", "is reserved"),
        ("taken", "There is an adapter taken already"),
        ("begun", "There is a run begun already"),
    ],
)
async def test_names_that_cannot_be_used(new_app: NewApp, name: str, problem: str) -> None:
    (paths().adapters / "taken").mkdir(parents=True)
    (paths().adapters / "taken" / "adapter.toml").touch()
    _write(run_folder("begun"), "paused")
    (run_folder("begun").folder / "seen").write_text("9e99")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("ctrl+n")  # the paused one is shown first
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        app.screen.query_one("#train-name", Input).value = name
        await pilot.press("enter")
        await until(pilot, lambda: problem in setup_complaint(pilot))


async def test_one_at_a_time(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await started(pilot)
        screen(pilot).action_new()
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        app.screen.query_one("#train-name", Input).value = "other"
        await pilot.press("enter")
        await until(pilot, lambda: "birds is being trained" in setup_complaint(pilot))
        assert state("other") == ""


async def test_a_run_that_ends_at_once(new_app: NewApp) -> None:
    tell("die", "The model scenes has no room for this: choose a smaller one.")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "no room for this" in said(pilot))
        assert said(pilot) == "The model scenes has no room for this: choose a smaller one."
        assert "failed, on scenes" in drawn(app)
        assert keys(pilot) == {"Another", "Runs", "Back"}  # nothing is there to go on with


async def test_a_run_that_never_learned_is_begun_anew(new_app: NewApp) -> None:
    tell("unready", "None of the 42 conversations can be used.")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "None of the 42" in said(pilot))
        assert keys(pilot) == {"Another", "Runs", "Back"}
        await pilot.press("r")
        tell("unready", "")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        assert app.screen.query_one("#train-name", Input).value == "mine"  # it is free
        await pilot.press("enter")
        await until(pilot, lambda: state("mine") == "training")
        assert calls()[-1] == [*HISTORY, "--name", "mine"]
        assert not any("--resume" in call for call in calls())


def test_until_it_speaks_a_run_shows_nothing_of_one_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mmchat.tui.runs.MMCHAT", (sys.executable, "-c", "import signal; signal.pause()")
    )
    _write(run_folder("birds"), "finished", rows=ROWS, adapter="birds")
    runs = Runs()
    run = runs.start("birds", ["x"], "other")
    child = runs._children["birds"][0]
    try:
        for what, words in (("preparing", "Starting…"), ("failed", "It ended at once")):
            seen = runs.snapshot(run)
            assert seen is not None
            status = seen.status
            assert (status.state, status.model, status.name) == (what, "other", "birds")
            assert status.message.startswith(words)
            assert (status.rows, status.samples, status.step, status.adapter) == ((), (), 0, "")
            child.kill()
            child.wait()
    finally:
        child.kill()


# StopSignals it


async def test_pause_and_go_on(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        run = await started(pilot)
        await pilot.press("p")
        await until(pilot, lambda: "Paused at step 4" in said(pilot))
        assert not run.is_running()
        assert keys(pilot) == {"Resume", "Another", "Runs", "Back"}
        await pilot.press("r")
        await until(pilot, lambda: state("birds") == "training")
        assert calls()[-1] == ["train", "--resume", "--name", "birds"]
        tell("allowed", 10)
        await until(pilot, lambda: "The adapter birds is ready" in said(pilot))
        steps = [line["step"] for line in run.metrics() if "loss" in line]
        assert steps == list(range(1, 11))


async def test_stop_and_keep_asks_once(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await started(pilot)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("enter")  # on "Keep training"
        await until(
            pilot, lambda: app.screen is not None and not isinstance(app.screen, ConfirmScreen)
        )
        assert state("birds") == "training"
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: "Stopped early" in said(pilot))
        assert state("birds") == "finished"
        assert "Use it" in keys(pilot)


async def test_what_has_ended_meanwhile_is_not_stopped(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(RunFolder, "signal", lambda run, number: told.append(number))
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await started(pilot)
        shown = screen(pilot)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        tell("allowed", 10)
        await until(pilot, lambda: shown._run and shown._run.status.state == "finished")
        await pilot.press("y")
        await until(pilot, lambda: app.screen is shown)
        await until(pilot, lambda: all(w.group not in ("dialog", "tell") for w in app.workers))
        assert told == [] and "The adapter birds is ready" in said(pilot)


async def test_it_fails(new_app: NewApp) -> None:
    tell("fail", "adapter step 3: the loss is nan [red]\x1b[31m. Lower the rates.")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        tell("allowed", 9)
        await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "the loss is nan" in said(pilot))
        assert said(pilot) == "adapter step 3: the loss is nan [red][31m. Lower the rates."
        assert {"Resume", "Another"} < keys(pilot)
        await until(pilot, lambda: app.chat.status.training == "mine failed: /train")
        tell("fail", "")
        await pilot.press("r")
        await until(pilot, lambda: state("mine") == "training")


async def test_it_is_killed(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        run = await started(pilot)
        status = run.status()
        assert status is not None
        os.kill(status.pid, signal.SIGKILL)
        await until(pilot, lambda: "It was killed" in said(pilot))
        assert {"Resume", "Another"} < keys(pilot)
        await pilot.press("p")  # nothing to pause: nothing happens
        await pilot.press("r")
        await until(pilot, lambda: state("birds") == "training")


async def test_it_breaks_down(new_app: NewApp) -> None:
    tell("break", "yes")
    tell("allowed", 9)
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        await pilot.press("enter")
        log = run_folder("mine").folder / "log"
        await until(pilot, lambda: f"a bug in training (its log: {log})" in said(pilot))
        assert "failed, on scenes" in drawn(app)


# Away, and back


async def test_training_goes_on_beside_the_chat(new_app: NewApp) -> None:
    app = new_app()
    async with app.run_test(size=(120, 35)) as pilot:
        await started(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat)
        await until(pilot, lambda: "training birds 40 %" in drawn(app))
        await say(pilot, "say hello")
        await answered(pilot)
        tell("allowed", 10)
        await until(pilot, lambda: "birds is trained: /train" in drawn(app))
        await opened(pilot)
        assert screen(pilot).query_one(RunView).display
        await pilot.press("escape")
        await until(pilot, lambda: "birds" not in drawn(app).splitlines()[-1])
        await opened(pilot)
        assert screen(pilot).setup.display  # seen is seen


async def test_the_app_is_closed_and_opened_again(new_app: NewApp) -> None:
    async with new_app().run_test(size=(80, 24)) as pilot:
        run = await started(pilot)
    assert run.is_running()
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "training birds 40 %" in drawn(app))
        await opened(pilot)
        await until(pilot, lambda: "step 4 of 10" in drawn(app))
        await pilot.press("p")
        await until(pilot, lambda: "Paused at step 4" in said(pilot))
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "birds is paused: /train" in drawn(app))
        await opened(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: app.chat.status.training == "")
        await opened(pilot)  # a paused one is there again all the same
        await pilot.press("r")
        await until(pilot, lambda: state("birds") == "training")
    tell("allowed", 10)
    deadline = time.monotonic() + 20
    while state("birds") != "finished":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "birds is trained: /train" in drawn(app))


async def test_all_runs_can_be_looked_at(new_app: NewApp) -> None:
    for name, what in (("one", "finished"), ("two", "failed"), ("three", "paused")):
        _write(run_folder(name), what, message=f"This is {name}.")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, PickScreen))
        await until(pilot, lambda: "failed, on scenes · 40 %" in drawn(app))
        await pilot.press(*"two")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TrainingScreen))
        await until(pilot, lambda: "This is two." in said(pilot))


async def test_a_run_that_vanishes(new_app: NewApp) -> None:
    import shutil

    _write(run_folder("birds"), "paused")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "step 4 of 10" in drawn(app))
        shutil.rmtree(run_folder("birds").folder)
        await until(pilot, lambda: "The files of that run were deleted." in setup_complaint(pilot))


async def test_files_that_are_broken_or_of_another_time(new_app: NewApp) -> None:
    runs = paths().data / "runs"
    for name, text in (
        ("empty", ""),
        ("half", '{"name": "half", "mod'),
        ("other", '{"name": "other", "model": "m", "state": "dreaming"}'),
        ("list", "[]"),
        ("old", '{"name": "old", "model": "m", "state": "paused"}'),
    ):
        (runs / name).mkdir(parents=True)
        (runs / name / "status.json").write_text(text)
        (runs / name / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\nno\n\xff\n{"st')
    (runs / "file").touch()
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "old is paused: /train" in drawn(app))
        await opened(pilot)
        await until(pilot, lambda: "It is paused." in said(pilot))
        await pilot.press("ctrl+t")
        await until(pilot, lambda: app.theme == "textual-light")


# Its adapter


async def test_use_it_and_undo(new_app: NewApp) -> None:
    tell("allowed", 10)
    app = new_app(model__adapter="before")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        app.screen.query_one("#train-name", Input).value = "birds"
        await pilot.press("enter")
        await until(pilot, lambda: "The adapter birds is ready" in said(pilot))
        table = str(app.screen.query_one(Table).content)
        assert "held-out answers     12     8.0 % (0.2 to 38.5)     92.0 % (61.5 to 99.8)" in table
        assert keys(pilot) == {"Use it", "Another", "Runs", "Back"}
        await pilot.press("enter")
        await until(pilot, lambda: "birds now answers in the chat." in said(pilot))
        assert app.answers.settings.model.adapter == "birds"
        assert said(pilot).endswith("Press u to go back to scenes · before.")
        assert keys(pilot) == {"Undo", "Another", "Runs", "Back"}
        await pilot.press("escape")
        await say(pilot, "say hello")
        await answered(pilot)
        origin = app.chat.transcript.branch[-1].origin
        assert origin is not None and origin.adapter == "birds"
        await opened(pilot)  # what is used can be undone, later too
        await pilot.press("u")
        await until(pilot, lambda: app.answers.settings.model.adapter == "before")
        await until(pilot, lambda: "The adapter birds is ready" in said(pilot))
        assert "Undo" not in keys(pilot) and "Use it" in keys(pilot)


async def test_an_adapter_of_another_model(new_app: NewApp) -> None:
    _write(run_folder("birds"), "finished", model="other", adapter="birds")
    app = new_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: app.answers.settings.model.adapter == "birds")
        assert app.answers.settings.model.name == "other"
        await until(pilot, lambda: "Press u to turn it off." in said(pilot))
        await pilot.press("u")
        await until(pilot, lambda: app.answers.settings.model.name == "scenes")
        assert app.answers.settings.model.adapter == ""


async def test_another_server_knows_no_adapters(new_app: NewApp) -> None:
    _write(run_folder("birds"), "finished", adapter="birds")
    app = new_app(engine__url="http://127.0.0.1:9/v1")
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: app._notifications)
        assert "has no adapters" in next(iter(app._notifications)).message
        assert app.answers.settings.model.adapter == ""


# The parts


async def test_ask_plan_and_what_may_go_wrong(fresh: Path) -> None:
    (fresh / "fake").mkdir(exist_ok=True)
    tell("refuse", "")
    tell("plan.json", '{"examples": 1, "problems": [{"place": "a:3", "why": "no"}], "new": true}')
    found = await plan_training(["--from-history"], "scenes")
    assert isinstance(found, TrainingPlan)
    assert plan_sentences(found) == [
        "It will learn from 1 example.",
        "1 cannot be used and is left out.",
    ]
    tell("remark", "drawing replay samples\x1b[31m")
    said: list[str] = []
    await plan_training(["x"], "scenes", said.append)
    assert said == ["drawing replay samples[31m"]
    tell("remark", "")
    tell("plan.json", "no json")
    assert (
        await plan_training(["x"], "scenes")
        == "The training could not be planned (it printed no reason)."
    )
    asked = asyncio.create_task(plan_training(["x"], "scenes"))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


@pytest.mark.parametrize(
    ("wanted", "name"), [("birds", "birds"), ("Möwen & Co.", "M-wen-Co"), ("..", "mine")]
)
def test_free_names(home: Path, wanted: str, name: str) -> None:
    assert free_name(wanted) == name
    _write(run_folder(name), "paused")
    assert free_name(wanted) == f"{name}-2"
    assert name_problem(f"{name}-2") == ""


def _real_dry_run_is_there() -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "mmchat", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    return "--from-history" in done.stdout and "--dry-run" in done.stdout


@pytest.mark.slow  # it reads and draws as a run does
async def test_the_real_command_prints_such_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("torch") is None or not _real_dry_run_is_there():
        pytest.skip("this mmchat train makes no plans")
    monkeypatch.setattr("mmchat.tui.runs.MMCHAT", (sys.executable, "-P", "-m", "mmchat"))
    from tests.tui.conftest import draw

    for number in range(12):
        picture = draw(tmp_path / f"{number}.png")
        with picture.open("ab") as file:
            file.write(bytes([number]))  # twelve pictures, not one
        picture.with_suffix(".txt").write_text("a red circle")
    found = await plan_training([str(tmp_path)], "scenes")
    assert isinstance(found, TrainingPlan), found
    assert found.examples and found.pictures and found.steps and found.seconds
    assert "It will learn from" in plan_sentences(found)[0]
    empty = await plan_training([str(tmp_path / "nothing")], "scenes")
    assert isinstance(empty, str) and "nothing" in empty


# What it looks like


def _write(run: RunFolder, what: Any, **fields: Any) -> None:
    """A run that stands still, as its process left it after a checkpoint."""
    (run.folder / "checkpoints" / "step-0000004").mkdir(parents=True, exist_ok=True)
    (run.folder / RECIPE).touch()
    status = fake_train.status(run.folder.name, what, 10 if what == "finished" else 4, **fields)
    status = msgspec.structs.replace(status, updated=time.time())
    (run.folder / "status.json").write_bytes(msgspec.json.encode(status))


@contextlib.contextmanager
def _still(run: RunFolder, working: bool) -> Iterator[None]:
    with run.working() if working else contextlib.nullcontext():
        yield


READY = EngineStatus(
    "0", 1, "ready", model="scenes", quantization="4bit", device="cpu", context_length=8192
)


def _compare(
    snap_compare: Compare, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], before: Any
) -> bool:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(AnswerQueue, "load", lambda self: self._emit(LoadFinished(READY)))
    monkeypatch.setattr("mmchat.tui.controllers.conversations.examples", list)
    theme = "textual-dark" if size[0] < 100 else "textual-light"
    app = ChatApp(load_settings({"app.theme": theme}), clock=lambda: NOW)
    return snap_compare(app, terminal_size=size, run_before=before)


def _curve(run: RunFolder, steps: int) -> None:
    with run.metrics_file.open("w") as file:
        for step in range(1, steps + 1):
            line = {"stage": "adapter", "step": step, "of": 60, "loss": 3 / (1 + step / 8)}
            if step % 10 == 0:
                line["held_out_loss"] = 0.2 + 3 / (1 + step / 8)
            file.write(json.dumps(line) + "\n")


SIZES = pytest.mark.parametrize("size", [(80, 24), (120, 35)], ids=["80x24", "120x35"])
STATES: dict[str, dict[str, Any]] = {
    "preparing": {"message": "reading 42 conversations as scenes does", "samples": ()},
    "training": {},
    "measuring": {"message": "asking 500 old questions"},
    "paused": {"message": "Paused at step 4; mmchat train --resume --name birds goes on."},
    "failed": {
        "message": "adapter step 4: the loss is nan (its samples: a.json:3). The last checkpoint is "
        "whole: lower the learning rates and go on with --resume."
    },
    "finished": {"rows": ROWS, "adapter": "birds"},
}


@SIZES
@pytest.mark.parametrize("what", STATES)
def test_each_state(
    what: str, size: tuple[int, int], snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def before(pilot: Pilot[None]) -> None:
        shown = await opened(pilot)
        if what != "preparing":
            await until(pilot, lambda: shown.query_one(Answers).size.height)
            await until(pilot, lambda: shown.query_one(LossChart).size.height)
        await until(pilot, lambda: shown.query_one("#run-note").display == (what != "training"))
        await pilot.pause()

    run = run_folder("birds")
    run.folder.mkdir(parents=True)
    (run.folder / RECIPE).touch()
    fields = {"steps": 60, "loss": 0.412, "held_out_loss": 0.498, "seconds_left": 190.0}
    status = fake_train.status("birds", what, 60 if what == "finished" else 24)
    status = msgspec.structs.replace(status, **(fields | STATES[what]), updated=time.time(), pid=1)
    (run.folder / "status.json").write_bytes(msgspec.json.encode(status))
    if what != "preparing":
        _curve(run, 60 if what == "finished" else 24)
    with _still(run, what in ("preparing", "training", "measuring")):
        assert _compare(snap_compare, monkeypatch, size, before)


@SIZES
def test_setup(
    size: tuple[int, int], snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def before(pilot: Pilot[None]) -> None:
        shown = await opened(pilot)
        await until(pilot, lambda: "34 pictures" in plan(pilot))
        name = shown.query_one("#train-name", Input)
        name.cursor_blink = False
        await until(pilot, lambda: name.has_focus and name.selection == (0, len(name.value)))
        await pilot.pause()

    assert _compare(snap_compare, monkeypatch, size, before)


@SIZES
def test_the_chat_beside_it(
    size: tuple[int, int], snap_compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def before(pilot: Pilot[None]) -> None:
        app = pilot.app
        assert isinstance(app, ChatApp)
        app.chat.composer.input.cursor_blink = False
        await until(pilot, lambda: "4-bit" in app.chat.query_one(TitleLine).model)
        await until(pilot, lambda: app.chat.status.training)
        await pilot.pause()

    run = run_folder("a-very-long-name-of-birds")
    _write(run, "training")
    with run.working():
        assert _compare(snap_compare, monkeypatch, size, before)
