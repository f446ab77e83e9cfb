"""Saves and loads checkpoints. A killed process leaves only complete ones.

A checkpoint is a folder with `tensors.safetensors` (weights and optimizer state) and `state.json`.
It is written under a temporary name, synced and renamed, so a folder with a final name is complete.
Nothing is pickled.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmchat.errors import RecipeError
from mmchat.files import sync

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
