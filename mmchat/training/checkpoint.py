"""Saves checkpoints, and resumes a run from the newest. A killed process leaves only complete ones.

A checkpoint is a folder with `tensors.safetensors` (weights and optimizer state) and `state.json`.
It is written under a temporary name, synced and renamed, so a folder with a final name is complete.
Nothing is pickled.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmchat.errors import DataError, RecipeError
from mmchat.files import sync
from mmchat.training.finetune_config import FinetuneConfig, StageConfig, config_hash
from mmchat.training.run_folder import RunFolder
from mmchat.training.trainable import Trainable

MAX_CHECKPOINTS = 2
BLOCKWISE_STATE = ("qmap", "absmax")
"""Optimizer state that bitsandbytes keeps per block, so its shape is not the parameter's."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Writes `folder/step-NNNNNNN` and removes all but the newest earlier ones.

    Later checkpoints of an earlier, longer run are removed too, because they would pass for the
    newest. Raises RecipeError if the checkpoint cannot be written; the earlier ones stay.
    """
    final = folder / f"step-{step:07d}"
    temporary = folder / f".{final.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(
            {k: v.detach().contiguous().clone() for k, v in tensors.items()},
            temporary / "tensors.safetensors",
        )
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:  # a full disk can raise either
        shutil.rmtree(temporary, ignore_errors=True)
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(
            f"The checkpoint of step {step} could not be written to {folder} ({why}): fix that, then "
            "continue with --resume. The previous checkpoint is complete."
        ) from error
    saved = checkpoints(folder)
    end = saved.index(final) + 1
    for other in (*saved[: max(end - MAX_CHECKPOINTS, 0)], *saved[end:]):
        shutil.rmtree(other, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint's tensors and state; None if there is no checkpoint.

    Raises RecipeError if it is damaged.
    """
    saved = checkpoints(folder)
    if not saved:
        return None
    newest = saved[-1]
    try:
        tensors = load_file(newest / "tensors.safetensors")
        state: dict[str, Any] = json.loads((newest / "state.json").read_text("utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise RecipeError(
            f"The checkpoint {newest} is damaged ({error}): remove that folder, and --resume will "
            "continue from the previous one."
        ) from error
    return tensors, state


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as flat tensors: `optimizer.0.<parameter>.<name>`.

    `state_dict()` is not used, because bitsandbytes wraps the tensors in it. Its step is a Python
    number, which becomes a scalar integer tensor here.
    """
    return {
        f"optimizer.{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`. Raises ValueError if the state belongs to other parameters."""
    for key, value in tensors.items():
        if not key.startswith("optimizer."):
            continue
        number, index, name = key.removeprefix("optimizer.").split(".", 2)
        parameters = _parameters(optimizers[int(number)]) if int(number) < len(optimizers) else []
        parameter = parameters[int(index)] if int(index) < len(parameters) else None
        # torch accepts any shape here, then fails at the first step or learns nonsense.
        if parameter is None or (
            value.ndim and not name.startswith(BLOCKWISE_STATE) and value.shape != parameter.shape
        ):
            raise ValueError(f"{key} belongs to another parameter")
        state = optimizers[int(number)].state[parameter]
        if value.ndim:
            state[name] = value.to(parameter.device)
        else:  # a step: AdamW keeps it as a float on the CPU, bitsandbytes as a Python number
            state[name] = value if value.is_floating_point() else int(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters, in the order of the groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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
