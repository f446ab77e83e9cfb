"""Where a run goes on from: its newest checkpoint, checked against recipe, data and base."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmchat.errors import DataError, RecipeError
from mmchat.training.checkpoint import load_checkpoint, restore_optimizers
from mmchat.training.finetune_config import FinetuneConfig, StageConfig, config_hash
from mmchat.training.run_folder import RunFolder
from mmchat.training.trainable import Trainable


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A stage, the steps of it that are done, and the optimizers' state then."""

    stage_index: int
    step: int
    kept_steps: int
    """Of all stages."""
    optimizer: str
    """Its name; "" if the checkpoint does not say it."""
    optimizer_tensors: dict[str, Tensor]


def read_resume_point(
    folder: RunFolder,
    recipe: FinetuneConfig,
    trainable: Trainable,
    data_sha256: str,
    base_hash: str,
    say: Callable[[str], None],
) -> ResumePoint | None:
    """Puts the weights of the newest checkpoint into `trainable`; -> where the run goes on, if there is one.

    Raises DataError if it began with other data, RecipeError if with another base or other stages.
    """
    saved = load_checkpoint(folder.folder / "checkpoints")
    if saved is None:
        return None
    tensors, state = saved
    if state.get("data") != data_sha256:
        raise DataError(
            f"The data is not what the run {recipe.name} began with: restore it, or begin again with "
            "--restart."
        )
    if state.get("base", base_hash) != base_hash:
        raise RecipeError(
            f"The run {recipe.name} began with another {recipe.model} than the one of that name now: "
            "restore it, or begin again with --restart."
        )
    names = [stage.name for stage in recipe.stages]
    if state.get("stage") not in names:
        raise RecipeError(
            f"The run {recipe.name} was in stage {state.get('stage')}, which the recipe does not have: "
            "restore it, or begin again with --restart."
        )
    if state.get("recipe") != config_hash(recipe):
        say("The recipe has changed since the last checkpoint: going on with the new one.")
    try:
        trainable.load_state(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
    except ValueError as error:
        raise _misfit(folder, "other weights were trained then", error) from error
    index, step = names.index(state["stage"]), int(state["step"])
    kept = sum(stage.steps for stage in recipe.stages[:index]) + step
    if step >= recipe.stages[index].steps:
        return ResumePoint(index + 1, 0, kept, "", {})
    optimizer_tensors = {k: v for k, v in tensors.items() if k.startswith("optimizer.")}
    return ResumePoint(index, step, kept, str(state.get("optimizer", "")), optimizer_tensors)


def restore_stage_optimizers(
    point: ResumePoint | None,
    optimizers: list[torch.optim.Optimizer],
    stage: StageConfig,
    folder: RunFolder,
    say: Callable[[str], None],
) -> None:
    """Puts the state of `point` into `optimizers`, if they are of the same kind.

    Raises RecipeError if it is the state of other weights.
    """
    if point is None:
        return
    if point.optimizer_tensors and point.optimizer not in ("", stage.optimizer):
        say(
            f"Stage {stage.name} goes on with {stage.optimizer} in place of {point.optimizer}: what "
            "that one had gathered is left out."
        )
        return
    try:
        restore_optimizers(optimizers, point.optimizer_tensors)
    except ValueError as error:
        raise _misfit(folder, f"stage {stage.name} trained other weights then", error) from error


def _misfit(folder: RunFolder, why: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"The checkpoint in {folder.folder} does not fit, because {why} ({error}): begin again with "
        "--restart."
    )
