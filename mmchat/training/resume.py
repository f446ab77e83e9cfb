"""Resumes a run from its newest checkpoint, checked against recipe, data and base."""

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
    """The stage and step at which a run continues, and the optimizers' state."""

    stage_index: int
    step: int
    kept_steps: int
    """Steps in the checkpoint, over all stages."""
    optimizer: str
    """Its name; "" if the checkpoint does not have it."""
    optimizer_tensors: dict[str, Tensor]


def load_resume_point(
    folder: RunFolder,
    recipe: FinetuneConfig,
    trainable: Trainable,
    data_sha256: str,
    base_hash: str,
    say: Callable[[str], None],
) -> ResumePoint | None:
    """Loads the newest checkpoint into `trainable`; -> where the run continues, None without a checkpoint.

    Raises DataError if the run has other data, RecipeError if it has another base or other stages.
    """
    saved = load_checkpoint(folder.folder / "checkpoints")
    if saved is None:
        return None
    tensors, state = saved
    if state.get("data") != data_sha256:
        raise DataError(
            f"The data has changed since the run {recipe.name} started: restore the data, or start again "
            "with --restart."
        )
    if state.get("base", base_hash) != base_hash:
        raise RecipeError(
            f"The model {recipe.model} has other weights than when the run {recipe.name} started: restore "
            "the model, or start again with --restart."
        )
    names = [stage.name for stage in recipe.stages]
    if state.get("stage") not in names:
        raise RecipeError(
            f"The run {recipe.name} was in stage {state.get('stage')}, which is not in the recipe: restore "
            "the stage, or start again with --restart."
        )
    if state.get("recipe") != config_hash(recipe):
        say("The recipe has changed since the last checkpoint: continuing with the new one.")
    try:
        trainable.load_state(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
    except ValueError as error:
        raise _mismatch(folder, "it has other trained weights", error) from error
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
    """Loads the state in `point` into `optimizers`, if they are of the same type.

    Raises RecipeError if the state belongs to other weights.
    """
    if point is None:
        return
    if point.optimizer_tensors and point.optimizer not in ("", stage.optimizer):
        say(
            f"Stage {stage.name} continues with {stage.optimizer} instead of {point.optimizer}: the old "
            "optimizer's state is not used."
        )
        return
    try:
        restore_optimizers(optimizers, point.optimizer_tensors)
    except ValueError as error:
        raise _mismatch(folder, f"stage {stage.name} had other trained weights", error) from error


def _mismatch(folder: RunFolder, why: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"The checkpoint in {folder.folder} does not fit, because {why} ({error}): start again with "
        "--restart."
    )
