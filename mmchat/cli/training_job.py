"""One run of `mmchat train`: prepare, train, measure, install the adapter."""

import contextlib
import gc
import os
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mmchat.adapters.card import MAX_NAME_LENGTH, Metric, read_card, rename_adapter, write_card
from mmchat.cli.train_args import MODEL, TrainArgs, TrainingData, add_data, read_data, read_recipe
from mmchat.cli.training_panel import Watcher
from mmchat.data.snapshot import save_snapshot
from mmchat.display.numbers import format_count, format_percent, format_share
from mmchat.errors import AdapterError, MmchatError, RecipeError
from mmchat.memory.machine import trim
from mmchat.settings import paths, private_dir
from mmchat.training.finetune_config import LARGE_MODEL_PARAMETERS
from mmchat.training.run_folder import (
    KEEP,
    PAUSE,
    Measurement,
    RunFolder,
    Status,
    writing,
)

if TYPE_CHECKING:
    from mmchat.training.prepare import PreparedRun

REPLAY_QUESTIONS_PER_TYPE = 30


class TrainingJob:
    """One `mmchat train` in this process; of several processes only the first one writes files."""

    def __init__(self, args: TrainArgs, watcher: Watcher) -> None:
        self.args = args
        self.watcher = watcher
        self.main = os.environ.get("RANK", "0") == "0"
        self.recipe, self.folder = read_recipe(args)
        self.status = Status(
            name=self.recipe.name,
            model=self.recipe.model,
            state="preparing",
            message="reading the data",
            command=resume_command(self.recipe.name),
        )

    def run(self) -> Status:
        """Does all steps; returns the last status.

        Raises MmchatError for what can be fixed, after it has written it into the status.
        """
        if not self.main:
            return self._work()
        # During training `StopSignals` handles these. Before and after it there is nothing to end
        # early, and a pause interrupts.
        signal.signal(KEEP, signal.SIG_IGN)
        signal.signal(PAUSE, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, signal.default_int_handler)
        _check_unfinished(self.folder, self.args)
        with self.folder.working():
            if not self.args.resume:
                _clear(self.folder.folder)
            try:
                return self._work()
            except MmchatError as error:
                self._update(state="failed", message=str(error))
                raise
            except KeyboardInterrupt:
                kept = self.folder.checkpoint_step()
                saved = self.status.step <= kept
                self._update(state="paused", message=resume_hint(self.folder, kept, saved=saved))
                raise

    def _work(self) -> Status:
        self._update()
        data = read_data(self.args, self.recipe, self.folder, save=self.main)
        from mmchat.training.prepare import prepare

        prepared = prepare(
            add_data(self.recipe, data, self.args),
            data.train,
            data.held_out,
            allow_bad=self.args.allow_bad,
            say=lambda message: self._update(message=message),
        )
        for line in data_notes(data, prepared):
            self._say(line)
        result = self._train(prepared, data)
        if result is None or not self.main:
            return self.status
        _free_memory()  # the engines that measure need it
        if result.name == MODEL:
            message = f"The model is ready: mmchat models add {shlex.quote(str(result))}"
            self._update(state="finished", message=message)
            return self.status
        rows: list[Measurement] = []
        reason = ""
        if self.args.measure:
            try:
                rows = self._measure(prepared, data, result)
            except MmchatError as error:  # the adapter is complete without it
                reason = str(error)
        previous = install_adapter(result, self.recipe.name, rows)
        message = finished_message(self.recipe.name, rows, previous, reason)
        self._update(state="finished", message=message, rows=tuple(rows), adapter=self.recipe.name)
        return self.status

    def _train(self, prepared: "PreparedRun", data: TrainingData) -> Path | None:
        """Trains; returns the result's folder, or None if paused. Frees the weights at its end."""
        from mmchat.training.finetune import Trainer, TrainingPaused

        trainer = Trainer(
            prepared,
            data.sha256,
            self.folder,
            self.status,
            say=self._say,
            show=self.watcher.show,
        )
        try:
            return trainer.run()
        except TrainingPaused as paused:
            message = resume_hint(self.folder, paused.kept, saved=paused.saved)
        finally:
            self.status = trainer.status  # also if it failed
        self._update(state="paused", message=message)
        return None

    def _measure(
        self, prepared: "PreparedRun", data: TrainingData, adapter: Path
    ) -> list[Measurement]:
        from mmchat.cli.adapter_evaluation import BASE_SKILLS, HELD_OUT, QuestionFolder, measure
        from mmchat.training.replay import has_replay, replay_questions

        self._update(state="measuring", message="measuring before and after")
        question_folders = []
        if data.held_out:
            held_out = self.folder.folder / "held-out"
            shutil.rmtree(held_out, ignore_errors=True)
            save_snapshot(replace(data.train, examples=data.held_out, problems=()), held_out)
            question_folders.append(QuestionFolder(HELD_OUT, held_out))
        if has_replay(prepared.plan.folder):
            questions = replay_questions(prepared.plan.folder, REPLAY_QUESTIONS_PER_TYPE)
            question_folders.append(QuestionFolder(BASE_SKILLS, questions))
        if not question_folders:
            return []
        return measure(
            prepared.plan.name,
            adapter,
            question_folders,
            together=prepared.parameters <= LARGE_MODEL_PARAMETERS,
            progress=lambda message: self._update(message=message),
        )

    def _update(self, **changes: Any) -> None:
        self.status = msgspec.structs.replace(self.status, **changes)
        if self.main:
            self.folder.folder.mkdir(parents=True, exist_ok=True)
            self.folder.write_status(self.status)
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


def data_notes(data: TrainingData, prepared: "PreparedRun") -> list[str]:
    """What the person should know about the data before training starts."""
    lines = list(data.train.remarks)
    problems = [*data.train.problems, *prepared.problems]
    lines += [f"left out: {problem.place}: {problem.why}" for problem in problems[:5]]
    if len(problems) > 5:
        lines.append(f"and {len(problems) - 5} more were left out: see mmchat data inspect")
    if prepared.truncated:
        lines.append(
            f"{format_count(prepared.truncated, 'conversation was', 'conversations were')} too long and "
            "lost the last exchanges"
        )
    if not data.held_out:
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


def _check_unfinished(folder: RunFolder, args: TrainArgs) -> None:
    """Raises RecipeError if the result of an earlier run with this name would be lost."""
    if args.resume or args.restart:
        return
    if folder.is_unfinished():
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


def install_adapter(adapter: Path, name: str, rows: list[Measurement]) -> Path | None:
    """Moves the finished adapter to the person's adapters.

    Returns the new place of an adapter that had its name before; None if there was none.
    """
    with writing(paths().adapters):
        metrics: dict[str, float | Metric] = {}
        for row in rows:
            key = row.name.replace(" ", "_").replace("-", "_")
            metrics[f"{key}_without"] = Metric(row.before, row.n, row.before_interval)
            metrics[f"{key}_with"] = Metric(row.after, row.n, row.after_interval)
        card = read_card(adapter)
        write_card(adapter, msgspec.structs.replace(card, name=name, metrics=metrics))
        (adapter / "README.md").write_text(card_text(name, card.base.id, rows), encoding="utf-8")
        home = private_dir(paths().adapters)
        target, previous = home / name, None
        if os.path.lexists(target):
            previous = _move_aside(target)
        adapter.rename(target)
    return previous


def _move_aside(target: Path) -> Path:
    """Renames what is there to the first free name of NAME-before, NAME-before-2 and so on."""
    ends = ("-before" if number == 1 else f"-before-{number}" for number in range(1, 1_000_000))
    places = (target.with_name(target.name[: MAX_NAME_LENGTH - len(end)] + end) for end in ends)
    before = next(place for place in places if not os.path.lexists(place))
    try:
        if not target.is_symlink():  # the target of a link stays as it is
            return rename_adapter(target.name, before.name)
    except AdapterError:
        pass  # not an adapter, or a broken one
    return target.rename(before)


def card_text(name: str, base: str, rows: list[Measurement]) -> str:
    """The text of the adapter's card (README.md)."""
    lines = [f"# {name}", "", f"An adapter for `{base}`, made by `mmchat train` (recipe.toml)."]
    if rows:
        lines += ["", "| right answers | n | without it | with it |", "|---|---:|---:|---:|"]
        lines += [
            f"| {row.name} | {row.n} | {format_share(row.before, row.before_interval)} | "
            f"{format_share(row.after, row.after_interval)} |"
            for row in rows
        ]
        lines += ["", "Exact match with Wilson's 95 % intervals, answered by the 4-bit engine."]
    return "\n".join(lines) + "\n"


def finished_message(
    name: str, rows: list[Measurement], previous: Path | None, reason: str = ""
) -> str:
    """The sentences at the end of a run; `reason` says why there are no figures."""
    figures = "; ".join(
        f"{row.name} {format_percent(row.before, 1)} → {format_percent(row.after, 1)} (n = {row.n})"
        for row in rows
    )
    kept = f" The previous adapter of that name is kept as {previous.name}." if previous else ""
    why = f" It could not be measured: {reason}" if reason else ""
    return (
        f"{name} is ready{': ' + figures if figures else ''}. Use it: mmchat adapters use {name}, or "
        f"/adapter {name} in the chat.{kept}{why}"
    )


def resume_command(name: str) -> tuple[str, ...]:
    """The arguments of `mmchat` that resume the run."""
    return ("train", "--resume", "--name", name)


def resume_hint(run: RunFolder, kept: int, *, saved: bool) -> str:
    """A sentence for a run that was paused.

    kept: the step of its newest checkpoint, 0 if there is none. saved: whether the run
    has done no more steps than these.
    """
    if not run.can_resume():
        return "It had not started to train: start it again."
    if saved:
        message = (
            f"Saved after {format_count(kept, 'step')}." if kept else "It had not started to train."
        )
    elif kept:
        message = f"The newest checkpoint is at step {kept:,}; the steps after it are lost."
    else:
        message = "There was no checkpoint yet, so all steps are lost."
    return f"{message} Resume: mmchat {' '.join(resume_command(run.folder.name))}"
