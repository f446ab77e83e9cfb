"""The steps of `mmchat train`: read the data, choose, train, measure, keep the adapter."""

import contextlib
import gc
import os
import re
import shlex
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mmchat.adapters.card import is_name
from mmchat.cli.training_panel import Watcher
from mmchat.cli.training_result import finished_words, how_to_go_on, keep, resuming
from mmchat.data import read_splits, split
from mmchat.data.snapshot import has_snapshot, load_snapshot, save_snapshot
from mmchat.data.types import Dataset, Example
from mmchat.errors import DataError, MmchatError, RecipeError
from mmchat.memory.malloc import trim
from mmchat.settings import builtin_adapters, load_settings, paths
from mmchat.training.finetune_config import LARGE_MODEL_PARAMETERS, FinetuneConfig, read_config
from mmchat.training.run_folder import (
    KEEP,
    PAUSE,
    RECIPE,
    Row,
    RunFolder,
    Status,
    run_folder,
    writing,
)

if TYPE_CHECKING:
    from mmchat.training.prepared_run import PreparedRun

HISTORY = "history"
MODEL = "model"
"""The folder in a run's folder for the model that the method `full` trains."""
OLD_SKILLS_PER_TYPE = 30


@dataclass(frozen=True)
class Wish:
    """The arguments of the command."""

    data: Path | None
    name: str
    model: str
    recipe: Path | None
    overrides: tuple[str, ...]
    ratings: tuple[str, ...]
    since: str
    conversations: tuple[int, ...]
    tags: tuple[str, ...]
    from_history: bool
    resume: bool
    restart: bool
    allow_bad: bool
    images: Path | None
    measure: bool


@dataclass(frozen=True)
class Material:
    """The examples to train on, and those that are held out for measuring."""

    train: Dataset
    held_out: list[Example]

    @property
    def sha256(self) -> str:
        return self.train.sha256


class Job:
    """One `mmchat train` in this process; of several processes only the first one writes files."""

    def __init__(self, wish: Wish, watcher: Watcher) -> None:
        self.wish = wish
        self.watcher = watcher
        self.main = os.environ.get("RANK", "0") == "0"
        self.recipe, self.folder = recipe_of(wish)
        self.status = Status(
            name=self.recipe.name,
            model=self.recipe.model,
            state="preparing",
            said="reading the data",
            started=time.time(),
            command=resuming(self.recipe.name),
        )

    def run(self) -> Status:
        """Does all steps; returns the last status.

        Raises MmchatError for what can be fixed, after it has written it into the status.
        """
        if not self.main:
            return self._work()
        # Training handles these itself (`StopSignals`). Before and after it, there is nothing to end
        # early, and a pause interrupts.
        signal.signal(KEEP, signal.SIG_IGN)
        signal.signal(PAUSE, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        _check_begun(self.folder, self.wish)
        with self.folder.working():
            if not self.wish.resume:
                _clear(self.folder.folder)
            try:
                return self._work()
            except MmchatError as error:
                self._tell(state="failed", said=str(error))
                raise
            except KeyboardInterrupt:
                kept = self.folder.kept_steps()
                saved = self.status.step <= kept
                self._tell(state="paused", said=how_to_go_on(self.folder, kept, saved=saved))
                raise

    def _work(self) -> Status:
        self._tell()
        material = read_material(self.wish, self.recipe, self.folder, written=self.main)
        from mmchat.training.prepare import prepare

        prepared = prepare(
            with_data(self.recipe, material, self.wish),
            material.train,
            material.held_out,
            allow_bad=self.wish.allow_bad,
            say=lambda words: self._tell(said=words),
        )
        for line in notes_of(material, prepared):
            self._say(line)
        made = self._train(prepared, material)
        if made is None or not self.main:
            return self.status
        _free_memory()  # the engines that measure need it
        if made.name == MODEL:
            said = f"The model is ready: mmchat models add {shlex.quote(str(made))}"
            self._tell(state="finished", said=said)
            return self.status
        rows: list[Row] = []
        unmeasured = ""
        if self.wish.measure:
            try:
                rows = self._measure(prepared, material, made)
            except MmchatError as error:  # the adapter is complete without it
                unmeasured = str(error)
        kept = keep(made, self.recipe.name, rows)
        said = finished_words(self.recipe.name, rows, kept, unmeasured)
        self._tell(state="finished", said=said, rows=tuple(rows), adapter=self.recipe.name)
        return self.status

    def _train(self, prepared: "PreparedRun", material: Material) -> Path | None:
        """Trains; returns the result's folder, or None if paused. Frees the weights at its end."""
        from mmchat.training.finetune import Trainer, TrainingPaused

        tune = Trainer(
            prepared,
            material.sha256,
            self.folder,
            self.status,
            say=self._say,
            show=self.watcher.show,
        )
        try:
            return tune.run()
        except TrainingPaused as paused:
            said = how_to_go_on(self.folder, paused.kept, saved=paused.saved)
        finally:
            self.status = tune.status  # also if it failed
        self._tell(state="paused", said=said)
        return None

    def _measure(self, prepared: "PreparedRun", material: Material, made: Path) -> list[Row]:
        from mmchat.cli.adapter_evaluation import HELD_OUT, OLD_SKILLS, Asked, measure
        from mmchat.training.replay import has_replay, old_skills

        self._tell(state="measuring", said="measuring before and after")
        asked = []
        if material.held_out:
            held_out = self.folder.folder / "held-out"
            shutil.rmtree(held_out, ignore_errors=True)
            save_snapshot(
                replace(material.train, examples=material.held_out, problems=()), held_out
            )
            asked.append(Asked(HELD_OUT, held_out))
        if has_replay(prepared.plan.folder):
            asked.append(Asked(OLD_SKILLS, old_skills(prepared.plan.folder, OLD_SKILLS_PER_TYPE)))
        if not asked:
            return []
        return measure(
            prepared.plan.name,
            made,
            asked,
            together=prepared.parameters <= LARGE_MODEL_PARAMETERS,
            tell=lambda words: self._tell(said=words),
        )

    def _tell(self, **changes: Any) -> None:
        self.status = msgspec.structs.replace(self.status, **changes)
        if self.main:
            self.folder.folder.mkdir(parents=True, exist_ok=True)
            self.folder.tell(self.status)
            with contextlib.suppress(OSError):  # the terminal may have been closed
                self.watcher.show(self.status, self.folder.metrics())

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self.watcher.say(line)


def _free_memory() -> None:
    """Gives the memory that training used, also on a GPU, back for other processes."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def read_material(
    wish: Wish, recipe: FinetuneConfig, folder: RunFolder, *, written: bool = False
) -> Material:
    """Reads the data that `wish` names or, with --resume, the run's data.

    written: stores what the history holds now as the run's snapshot. Raises DataError and
    HistoryError.
    """
    source = recipe.data.source
    if wish.from_history or (wish.data is None and source == HISTORY):
        snapshot = folder.folder / "data"
        if wish.resume and has_snapshot(snapshot):
            whole = load_snapshot(snapshot)
        else:
            whole = _from_history(wish, recipe)
            if written:
                save_snapshot(whole, snapshot)
        return _divided(whole, recipe)
    path = wish.data if wish.data is not None else Path(source)
    images = wish.images or (Path(recipe.data.images) if recipe.data.images else None)
    train, held_out = read_splits(path, allow_bad=wish.allow_bad, images=images)
    if held_out is not None:
        return Material(train, list(held_out.examples))
    return _divided(train, recipe)


def _divided(whole: Dataset, recipe: FinetuneConfig) -> Material:
    train, held_out = split(whole.examples, recipe.data.held_out, recipe.seed)
    if not train:
        raise DataError(f"{whole.source} holds nothing to train on: see `mmchat data inspect`.")
    # The hash stays that of all the data.
    return Material(replace(whole, examples=train), held_out)


def _from_history(wish: Wish, recipe: FinetuneConfig) -> Dataset:
    from mmchat.data.from_history import read_history

    found = read_history(
        paths().history_db,
        ratings=wish.ratings or recipe.data.answers,
        since=wish.since or None,
        conversations=wish.conversations,
        tags=wish.tags,
    )
    if not found.examples:
        raise DataError(
            "There is nothing to train on in your history yet: rate answers as good or correct them "
            "in the chat (F1 shows the keys), then train."
        )
    return found


def with_data(recipe: FinetuneConfig, material: Material, wish: Wish) -> FinetuneConfig:
    """The recipe with the source and hash of its data."""
    source = HISTORY if wish.from_history else str(wish.data.absolute()) if wish.data else ""
    data = msgspec.structs.replace(
        recipe.data,
        source=source or recipe.data.source,
        images=str(wish.images.absolute()) if wish.images else recipe.data.images,
        sha256=material.sha256,
    )
    return msgspec.structs.replace(recipe, data=data)


def notes_of(material: Material, prepared: "PreparedRun") -> list[str]:
    """What the person should know about the data before training starts."""
    lines = list(material.train.remarks)
    problems = [*material.train.problems, *prepared.problems]
    lines += [f"left out: {problem.place}: {problem.why}" for problem in problems[:5]]
    if len(problems) > 5:
        lines.append(f"and {len(problems) - 5} more were left out: see mmchat data inspect")
    if prepared.truncated:
        lines.append(
            f"{prepared.truncated} conversations were too long and lost their last exchanges"
        )
    if not material.held_out:
        lines.append("There are too few different pictures to hold some out for measuring.")
    # What fits without changes is not mentioned.
    lines += [
        f"memory of {fit.use}: {fit.sentence}"
        for fit in prepared.memory_fits
        if fit.settings or not fit.fits
    ]
    if prepared.tight:
        lines.append(
            "There is little memory, so freed memory goes back to the system at once, which is slower."
        )
    return lines


def recipe_of(wish: Wish) -> tuple[FinetuneConfig, RunFolder]:
    """The recipe with its name and base, and the folder of its run.

    Raises RecipeError, and UsageError if --resume is given with another base.
    """
    settings = load_settings()
    if wish.resume:
        name = _name(wish.name or _default_name(wish), settings.model.name)
        folder = run_folder(name)
        if not folder.can_go_on():
            raise RecipeError(
                f"There is no run {name} to resume: leave --resume out, or give another --name."
            )
        return _going_on(wish, folder), folder
    recipe = read_config(wish.recipe, wish.overrides)
    name = _name(wish.name or recipe.name or _default_name(wish), settings.model.name)
    model = wish.model or recipe.model or settings.model.name
    return msgspec.structs.replace(recipe, name=name, model=model), run_folder(name)


def _going_on(wish: Wish, folder: RunFolder) -> FinetuneConfig:
    """The recipe to resume a run with. Raises RecipeError if it cannot be resumed."""
    name = folder.folder.name
    status = folder.status()
    if status is not None and status.state == "finished":
        where = "mmchat adapters list" if status.adapter else str(folder.folder / MODEL)
        raise RecipeError(
            f"The run {name} is finished ({where}): leave --resume out to train it again."
        )
    file = folder.folder / RECIPE
    begun, recipe = read_config(file), read_config(file, wish.overrides)
    if (recipe.seed, recipe.data.held_out) != (begun.seed, begun.data.held_out):
        raise RecipeError(
            f"seed and data.held_out decide what is held out, so the run {name} keeps its own: "
            "leave them out, or start again with --restart."
        )
    if wish.model and wish.model != recipe.model:
        raise click.UsageError(
            f"The run {name} trains {recipe.model}: leave --model out, or start again with "
            "--restart."
        )
    return recipe


def _default_name(wish: Wish) -> str:
    if wish.data is None:
        return "mine"
    word = wish.data.absolute()
    stem = word.stem if word.is_file() else word.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "mine"


def _name(name: str, model: str) -> str:
    if not is_name(name):
        raise RecipeError(
            f"{name!r} cannot be the name of an adapter: use letters, digits, - and _ "
            "(--name birds)."
        )
    if (builtin_adapters() / name).is_dir():
        raise RecipeError(f"{name} is part of mmchat: give your adapter another --name.")
    return name


def _check_begun(folder: RunFolder, wish: Wish) -> None:
    """Raises RecipeError if the result of an earlier run with this name would be lost."""
    if wish.resume or wish.restart:
        return
    if folder.is_begun():
        raise RecipeError(
            f"The run {folder.folder.name} was started and is not finished: continue it with "
            "--resume, start again with --restart, or give this one another --name."
        )
    model = folder.folder / MODEL
    if model.exists():
        raise RecipeError(
            f"{model} is the model of an earlier run {folder.folder.name}: move it elsewhere and add "
            "it from there (mmchat models add), or give this run another --name; --restart removes "
            "it."
        )


def _clear(folder: Path) -> None:
    """Removes an earlier run, except its lock, and the log that the app started for this one."""
    with writing(folder):
        for path in folder.iterdir():
            if path.name in ("lock", "log"):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
