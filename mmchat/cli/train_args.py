"""The arguments of `mmchat train`, and what they choose: the recipe, the run's folder, the data."""

from dataclasses import dataclass, replace
from pathlib import Path

import click
import msgspec

from mmchat.adapters.card import is_name, name_from_text
from mmchat.data import read_splits, split
from mmchat.data.snapshot import has_snapshot, load_snapshot, save_snapshot
from mmchat.data.types import Dataset, Example
from mmchat.errors import DataError, RecipeError
from mmchat.settings import builtin_adapters, load_settings, paths
from mmchat.training.finetune_config import FinetuneConfig, read_config
from mmchat.training.run_folder import RECIPE, RunFolder, run_folder

HISTORY = "history"
MODEL = "model"
"""The folder in a run's folder for the model that the method `full` trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainArgs:
    """One field for each option of `mmchat train`, except those about its output."""

    data: Path | None = None
    name: str = ""
    model: str = ""
    from_history: bool = False
    ratings: tuple[str, ...] = ()
    since: str = ""
    conversations: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    """`KEY=VALUE` for the recipe."""
    resume: bool = False
    restart: bool = False
    allow_bad: bool = False
    images: Path | None = None
    measure: bool = True
    """Count the right answers before and after."""

    def check(self) -> None:
        """Raises UsageError if two options contradict each other."""
        for override in self.overrides:
            if "=" not in override:
                raise click.UsageError(f"--set takes KEY=VALUE, not {override!r}.")
        chooses_answers = self.ratings or self.since or self.conversations or self.tags
        if self.data is not None and self.from_history:
            raise click.UsageError("Give DATA or --from-history, not both.")
        if chooses_answers and not self.from_history:
            raise click.UsageError(
                "--rating, --since, --conversation and --tag need --from-history."
            )
        if self.resume and self.restart:
            raise click.UsageError("Give --resume or --restart, not both.")
        if self.data is None and not self.from_history and not self.resume:
            raise click.UsageError("Give DATA or --from-history.")
        if self.resume and self.recipe is not None:
            raise click.UsageError(
                "A run continues with its own recipe: leave --recipe out, and change a key with "
                "--set."
            )
        if self.resume and chooses_answers:
            raise click.UsageError(
                "A run continues with its own data: leave --rating, --since, --conversation and "
                "--tag out."
            )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The examples to train on, and those that are held out for measuring."""

    train: Dataset
    held_out: list[Example]

    @property
    def sha256(self) -> str:
        """The hash of all the data, with what is held out."""
        return self.train.sha256


def read_recipe(args: TrainArgs) -> tuple[FinetuneConfig, RunFolder]:
    """The recipe with its name and base, and the folder of its run.

    Raises RecipeError, and UsageError if --resume is given with another base.
    """
    settings = load_settings()
    if args.resume:
        name = _checked_name(args.name or _default_name(args))
        folder = run_folder(name)
        if not folder.can_resume():
            raise RecipeError(
                f"There is no run {name} to resume: leave --resume out, or give another --name."
            )
        return _recipe_to_resume(args, folder), folder
    recipe = read_config(args.recipe, args.overrides)
    name = _checked_name(args.name or recipe.name or _default_name(args))
    model = args.model or recipe.model or settings.model.name
    return msgspec.structs.replace(recipe, name=name, model=model), run_folder(name)


def _recipe_to_resume(args: TrainArgs, folder: RunFolder) -> FinetuneConfig:
    """The recipe to resume a run with. Raises RecipeError if it cannot be resumed."""
    name = folder.folder.name
    status = folder.status()
    if status is not None and status.state == "finished":
        where = "mmchat adapters list" if status.adapter else str(folder.folder / MODEL)
        raise RecipeError(
            f"The run {name} is finished ({where}): leave --resume out to train it again."
        )
    file = folder.folder / RECIPE
    original, recipe = read_config(file), read_config(file, args.overrides)
    if (recipe.seed, recipe.data.held_out) != (original.seed, original.data.held_out):
        raise RecipeError(
            f"seed and data.held_out decide what is held out, so the run {name} keeps its own: "
            "leave them out, or start again with --restart."
        )
    if args.model and args.model != recipe.model:
        raise click.UsageError(
            f"The run {name} trains {recipe.model}: leave --model out, or start again with "
            "--restart."
        )
    return recipe


def _default_name(args: TrainArgs) -> str:
    if args.data is None:
        return "mine"
    path = args.data.absolute()
    return name_from_text(path.stem if path.is_file() else path.name, default="mine")


def _checked_name(name: str) -> str:
    if not is_name(name):
        raise RecipeError(
            f"{name!r} cannot be the name of an adapter: use letters, digits, - and _ "
            "(--name birds)."
        )
    if (builtin_adapters() / name).is_dir():
        raise RecipeError(f"{name} is part of mmchat: give your adapter another --name.")
    return name


def read_data(
    args: TrainArgs, recipe: FinetuneConfig, folder: RunFolder, *, save: bool = False
) -> TrainingData:
    """Reads the data that `args` name or, with --resume, the run's data.

    save: stores what the history holds now as the run's snapshot. Raises DataError and
    HistoryError.
    """
    source = recipe.data.source
    if args.from_history or (args.data is None and source == HISTORY):
        snapshot = folder.folder / "data"
        if args.resume and has_snapshot(snapshot):
            dataset = load_snapshot(snapshot)
        else:
            dataset = _read_history(args, recipe)
            if save:
                save_snapshot(dataset, snapshot)
        return _hold_out(dataset, recipe)
    path = args.data if args.data is not None else Path(source)
    images = args.images or (Path(recipe.data.images) if recipe.data.images else None)
    train, held_out = read_splits(path, allow_bad=args.allow_bad, images=images)
    if held_out is not None:
        return TrainingData(train, list(held_out.examples))
    return _hold_out(train, recipe)


def _hold_out(dataset: Dataset, recipe: FinetuneConfig) -> TrainingData:
    train, held_out = split(dataset.examples, recipe.data.held_out, recipe.seed)
    if not train:
        raise DataError(f"{dataset.source} holds nothing to train on: see `mmchat data inspect`.")
    return TrainingData(replace(dataset, examples=train), held_out)


def _read_history(args: TrainArgs, recipe: FinetuneConfig) -> Dataset:
    from mmchat.data.from_history import read_history

    dataset = read_history(
        paths().history_db,
        ratings=args.ratings or recipe.data.answers,
        since=args.since or None,
        conversations=args.conversations,
        tags=args.tags,
    )
    if not dataset.examples:
        raise DataError(
            "There is nothing to train on in your history yet: rate answers as good or correct them "
            "in the chat (F1 shows the keys), then train."
        )
    return dataset


def add_data(recipe: FinetuneConfig, data: TrainingData, args: TrainArgs) -> FinetuneConfig:
    """The recipe with the source and hash of its data."""
    source = HISTORY if args.from_history else str(args.data.absolute()) if args.data else ""
    table = msgspec.structs.replace(
        recipe.data,
        source=source or recipe.data.source,
        images=str(args.images.absolute()) if args.images else recipe.data.images,
        sha256=data.sha256,
    )
    return msgspec.structs.replace(recipe, data=table)
