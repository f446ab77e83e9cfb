"""Checkpoints that a kill cannot spoil.

A checkpoint is a folder: `tensors.safetensors` (weights and optimizer state) and
`state.json`. It is written under a temporary name, synced and renamed, so a
folder with a final name is whole. Nothing is pickled.
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

KEPT = 2
OF_BLOCKS = ("qmap", "absmax")
"""What bitsandbytes keeps a block of a parameter, and not a number of it."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Writes `folder/step-NNNNNNN` and removes all others but the newest before it.

    What a longer run before had left behind it goes too: its numbers are higher, and it would pass
    for the newest. Raises RecipeError where it cannot be written; the checkpoints before stay.
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
    except (OSError, SafetensorError) as error:  # a full disk is either, by who meets it
        shutil.rmtree(temporary, ignore_errors=True)
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(
            f"The checkpoint of step {step} was not written to {folder} ({why}): mend that, and "
            "go on with --resume; the one before is whole."
        ) from error
    found = checkpoints(folder)
    place = found.index(final) + 1
    for other in (*found[: max(place - KEPT, 0)], *found[place:]):
        shutil.rmtree(other, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint's tensors and state, or None where there is none.

    Raises RecipeError where it is damaged.
    """
    found = checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        tensors = load_file(newest / "tensors.safetensors")
        state: dict[str, Any] = json.loads((newest / "state.json").read_text("utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise RecipeError(
            f"The checkpoint {newest} is damaged ({error}): remove that folder, and --resume goes "
            "on from the one before."
        ) from error
    return tensors, state


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state, flat: `optimizer.0.<parameter>.<name>`.

    As it is, and not by `state_dict()`: bitsandbytes' own wraps tensors and keeps its step as a
    Python number, which is a whole number of no dimension here.
    """
    return {
        f"optimizer.{number}.{index}.{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`.

    Raises ValueError where the state is that of other parameters.
    """
    for key, value in tensors.items():
        if not key.startswith("optimizer."):
            continue
        number, index, name = key.removeprefix("optimizer.").split(".", 2)
        parameters = _parameters(optimizers[int(number)]) if int(number) < len(optimizers) else []
        parameter = parameters[int(index)] if int(index) < len(parameters) else None
        # torch takes any shape, and fails at the first step or learns nonsense.
        if parameter is None or (
            value.ndim and not name.startswith(OF_BLOCKS) and value.shape != parameter.shape
        ):
            raise ValueError(f"{key} is of another parameter")
        state = optimizers[int(number)].state[parameter]
        if value.ndim:
            state[name] = value.to(parameter.device)
        else:  # a step: AdamW keeps it as a float on the CPU, bitsandbytes as a Python number
            state[name] = value if value.is_floating_point() else int(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
