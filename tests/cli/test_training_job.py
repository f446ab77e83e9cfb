"""What a `Job` does around the training itself, which is played here."""

import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import pytest
import tomli_w

from mmchat.adapters.card import Base, Card, write_card
from mmchat.cli import train_args, training_job
from mmchat.cli.train_args import TrainArgs, read_data, read_recipe
from mmchat.cli.training_job import TrainingJob, resume_hint
from mmchat.cli.training_panel import LogLines
from mmchat.data.snapshot import load_snapshot, save_snapshot
from mmchat.errors import EngineError, RecipeError
from mmchat.training.finetune_config import read_config, to_tables
from mmchat.training.run_folder import KEEP, PAUSE, RECIPE, RunFolder, Status, run_folder
from tests.training.tuned import dataset

STEPS = 90
GO_ON = "Resume: mmchat train --resume --name birds"


def _args(**changes: Any) -> TrainArgs:
    return replace(TrainArgs(name="birds", from_history=True), **changes)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train_args, "_read_history", lambda args, recipe: dataset(10))
    before = {number: signal.getsignal(number) for number in (KEEP, PAUSE)}
    yield tmp_path / "home"
    for number, handler in before.items():
        signal.signal(number, handler)


class Played:
    """A `Trainer` of ninety steps; `learns` is what happens at step 45."""

    learns: Callable[["Played"], None]
    last: "weakref.ref[Played]"

    def __init__(self, prepared: Any, sha256: str, folder: RunFolder, status: Status, **_: Any):
        self.status, self.folder, self.itself = status, folder, self
        Played.last = weakref.ref(self)

    def run(self) -> Path:
        recipe = to_tables(read_config(None, ["name=birds", "model=scenes"]))
        (self.folder.folder / RECIPE).write_text(tomli_w.dumps(recipe))
        self._at(45)
        type(self).learns(self)
        self._at(STEPS)
        made = self.folder.folder / "adapter"
        made.mkdir(exist_ok=True)
        write_card(made, Card("birds", Base("scenes", "h")))
        return made

    def _at(self, step: int) -> None:
        self.status = msgspec.structs.replace(
            self.status, state="training", step=step, steps=STEPS, loss=0.5
        )
        checkpoint = self.folder.folder / "checkpoints" / f"step-{step // 10 * 10:07d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.json").write_text("{}")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    prepared = SimpleNamespace(
        problems=[], truncated=0, memory_fits=(), tight=False, parameters=9, plan=SimpleNamespace()
    )
    monkeypatch.setattr("mmchat.training.finetune.Trainer", Played)
    monkeypatch.setattr("mmchat.training.prepare.prepare", lambda *_, **__: prepared)
    monkeypatch.setattr(Played, "learns", lambda self: None, raising=False)
    monkeypatch.setattr(TrainingJob, "_measure", lambda *_: [])
    return Played


def _job(**changes: Any) -> TrainingJob:
    return TrainingJob(_args(**changes), LogLines())


def _told() -> Status:
    status = run_folder("birds").status()
    assert status is not None
    return status


def _raising(error: BaseException) -> Callable[[Any], None]:
    def raises(self: Any) -> None:
        raise error

    return raises


@pytest.mark.parametrize(
    ("kept", "saved", "said"),
    [
        (40, True, "Saved after 40 steps."),
        (1, False, "The newest checkpoint is at step 1; the steps after it are lost."),
        (0, True, "It had not started to train."),
        (0, False, "There was no checkpoint yet, so all steps are lost."),
    ],
)
def test_a_pause_says_what_is_kept(tmp_path: Path, kept: int, saved: bool, said: str) -> None:
    run = RunFolder(tmp_path / "birds")
    run.folder.mkdir()
    assert resume_hint(run, 0, saved=True) == "It had not started to train: start it again."
    (run.folder / RECIPE).touch()
    assert resume_hint(run, kept, saved=saved) == f"{said} {GO_ON}"


def test_a_pause_that_saved_nothing_does_not_say_saved(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmchat.training.finetune import TrainingPaused

    monkeypatch.setattr(played, "learns", _raising(TrainingPaused(saved=False, kept=40)))
    status = _job().run()
    assert (status.state, status.step) == ("paused", 45)
    assert status.message == _told().message
    assert status.message.startswith("The newest checkpoint is at step 40")


def test_ended_at_once_it_says_what_the_newest_checkpoint_holds(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(played, "learns", _raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _job().run()
    assert _told().state == "paused" and run_folder("birds").checkpoint_step() == 40
    assert _told().message.startswith("The newest checkpoint is at step 40")


def test_a_failed_run_keeps_where_it_stood(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(played, "learns", _raising(RecipeError("the loss is no number")))
    with pytest.raises(RecipeError):
        _job().run()
    told = _told()
    assert (told.state, told.message) == ("failed", "the loss is no number")
    assert (told.step, told.steps, told.loss) == (45, STEPS, 0.5)


def test_training_has_given_its_memory_back_when_it_is_measured(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def measured(*_: Any) -> list[Any]:
        given.append("measured")
        assert played.last() is None
        return []

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given.append("the card's"))
    monkeypatch.setattr(training_job, "trim", lambda: given.append("the heap's"))
    monkeypatch.setattr(TrainingJob, "_measure", measured)
    _job().run()
    assert given == ["the card's", "the heap's", "measured"]


@pytest.mark.parametrize("how", [KeyboardInterrupt(), ValueError("a bug")])
def test_only_what_is_not_finished_goes_on(
    played: type[Played], monkeypatch: pytest.MonkeyPatch, home: Path, how: BaseException
) -> None:
    """Measuring that was interrupted, or broke down, is done again; what is finished stays so."""
    with monkeypatch.context() as then:
        then.setattr(TrainingJob, "_measure", _raising_any(how))
        with pytest.raises(type(how)):
            _job().run()
    assert _told().state == "paused" and not (home / "adapters").exists()
    assert _job(resume=True).run().state == "finished"
    with pytest.raises(RecipeError, match=r"birds is finished \(mmchat adapters list\)"):
        _job(resume=True)
    assert [path.name for path in (home / "adapters").iterdir()] == ["birds"]
    assert _told().state == "finished"


def test_what_cannot_be_measured_is_finished(
    played: type[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingJob, "_measure", _raising_any(EngineError("no engine")))
    status = _job().run()
    assert status.state == "finished" and "could not be measured: no engine" in status.message


def _raising_any(error: BaseException) -> Callable[..., None]:
    def raises(*_: Any) -> None:
        raise error

    return raises


def test_a_finished_model_is_not_removed_without_a_word(played: type[Played]) -> None:
    run = run_folder("birds")
    model = run.folder / "model"
    model.mkdir(parents=True)
    run.write_status(Status("birds", "scenes", "finished"))
    with pytest.raises(RecipeError, match=r"/birds/model is the model .*elsewhere.*--restart"):
        _job().run()
    assert model.is_dir() and _told().state == "finished"
    (run.folder / RECIPE).touch()
    with pytest.raises(RecipeError, match=r"birds is finished \(.*/birds/model\)"):
        _job(resume=True)
    _job(restart=True).run()
    assert not model.exists()


def test_checkpoints_without_a_readable_status_are_not_removed_without_a_word(
    played: type[Played],
) -> None:
    run = run_folder("birds")
    checkpoint = run.folder / "checkpoints" / "step-0000040"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (run.folder / "status.json").write_text("{broken")
    with pytest.raises(RecipeError, match="was started and is not finished"):
        _job().run()
    assert checkpoint.is_dir()


def test_the_history_is_read_anew_but_to_go_on_and_only_a_job_keeps_it(home: Path) -> None:
    """A dry run beside a running one of that name, too."""
    recipe, run = read_config(None), run_folder("birds")
    snapshot = run.folder / "data"
    save_snapshot(dataset(4), snapshot)
    with run.working():
        found = read_data(_args(), recipe, run)
        assert len(found.train.examples) + len(found.held_out) == 10
        assert len(load_snapshot(snapshot).examples) == 4
        again = read_data(_args(resume=True), recipe, run)
        assert again.sha256 == dataset(4).sha256
        read_data(_args(), recipe, run, save=True)
        assert len(load_snapshot(snapshot).examples) == 10


def test_a_run_keeps_what_it_holds_out_and_its_base() -> None:
    run = run_folder("birds")
    run.folder.mkdir(parents=True)
    (run.folder / RECIPE).write_text('model = "scenes"\nseed = 7\n[data]\nheld_out = 0.2\n')
    for override in ("seed=8", "data.held_out=0.3"):
        with pytest.raises(RecipeError, match=r"decide what is held out.*--restart"):
            read_recipe(_args(resume=True, overrides=(override,)))
    with pytest.raises(click.UsageError, match="birds trains scenes: leave --model out"):
        read_recipe(_args(resume=True, model="other"))
    same = ("seed=7", "data.held_out=0.2", "batch=3")
    recipe, _ = read_recipe(_args(resume=True, model="scenes", overrides=same))
    assert recipe.stages[0].batch == 3
