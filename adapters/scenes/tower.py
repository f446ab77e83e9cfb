"""Trains the vision tower of the built-in model alone, on the label of every cell of its grid.

Dense labels teach a tower in minutes what answers would teach it in hours. `pretrain.py` runs this before
the recipe's stages.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmchat.errors import DataError, RecipeError
from mmchat.model.quantization import compute_dtype
from mmchat.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)
from mmchat.training.config_table import Table, require
from mmchat.training.losses import autocast
from mmchat.training.optimizer import build_optimizers
from mmchat.training.train_step import schedule_factor


class CellsConfig(Table, frozen=True):
    """The [cells] table of the recipe."""

    steps: int
    pictures: int
    """Pictures per step."""
    learning_rate: float
    warmup: float = 0.02
    decay: float = 0.4
    weight_decay: float = 0.05
    clip: float = 1.0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for field in ("steps", "pictures", "checkpoint_every"):
            require(f"cells.{field}", getattr(self, field), getattr(self, field) >= 1, "at least 1")


class CellHeads(nn.Module):
    """One linear classifier per label channel on the tower's features, which is discarded afterwards."""

    def __init__(self, width: int, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(names) + 1) for name, names in classes.items()}
        )

    def loss(self, features: Tensor, cells: Tensor) -> Tensor:
        """features (pictures, cells, width), cells (pictures, grid, grid, channels; 0: nothing) -> a scalar.

        In each channel, all empty cells together weigh as much as all filled ones.
        """
        labels = cells.flatten(1, 2).long()
        total = features.new_zeros((), dtype=torch.float32)
        for channel, head in enumerate(self.heads.values()):
            label = labels[..., channel].flatten()
            logits = head(features).flatten(0, 1).float()
            losses = F.cross_entropy(logits, label, reduction="none")
            for mask in (label > 0, label == 0):
                if mask.any():
                    total = total + losses[mask].mean()
        return total


def train_tower(
    model: Any, config: CellsConfig, seed: int, arrays: Path, folder: Path, say: Any
) -> None:
    """Trains the tower of `model` on `images.npy` and `cells.npy` in `arrays`; checkpoints go to `folder`.

    Raises DataError and RecipeError for errors that the user can correct.
    """
    images, cells = _open_array(arrays / "images.npy"), _open_array(arrays / "cells.npy")
    if len(images) != len(cells) or config.pictures > len(images):
        raise DataError(
            f"{arrays} has {len(images)} pictures and labels of {len(cells)}, but a step takes "
            f"{config.pictures}: draw the data again, or lower cells.pictures."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(device)
    torch.manual_seed(seed + 1)
    classes = json.loads((arrays / "classes.json").read_text("utf-8"))
    heads = CellHeads(model.config.vision_config.hidden_size, classes)
    trained = nn.ModuleDict({"tower": model.model.vision_tower, "heads": heads}).to(device)
    optimizers = build_optimizers(_parameter_groups(trained, config), "muon", dtype)
    first = 0
    saved = load_checkpoint(folder)
    if saved is not None:
        tensors, state = saved
        weights = {
            k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")
        }
        try:
            trained.load_state_dict(weights)
            restore_optimizers(optimizers, tensors)
        except (RuntimeError, ValueError) as error:
            raise RecipeError(
                f"The checkpoint in {folder} belongs to another recipe: choose another --out."
            ) from error
        first = int(state["step"])
    for step in range(first, config.steps):
        rng = np.random.default_rng((seed, step))
        chosen = np.sort(rng.choice(len(images), config.pictures, replace=False))
        pixels = torch.from_numpy(images[chosen]).to(device).permute(0, 3, 1, 2).float()
        with autocast(device, dtype):
            features = model.encode_images(pixels / 127.5 - 1)  # as the processor does
            loss = heads.loss(features, torch.from_numpy(cells[chosen]).to(device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained.parameters(), config.clip)
        if not bool(torch.isfinite(norm)):
            raise RecipeError(f"Step {step + 1} of [cells] diverged: lower cells.learning_rate.")
        factor = schedule_factor("wsd", step, config.steps, config.warmup, config.decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            say(f"cells {step + 1}/{config.steps} loss={float(loss):.3f}")
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            tensors = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
            save_checkpoint(
                folder, step + 1, tensors | optimizer_tensors(optimizers), {"step": step + 1}
            )
    model.to("cpu")


def _parameter_groups(trained: nn.Module, config: CellsConfig) -> list[dict[str, Any]]:
    """Parameter groups for `build_optimizers`. Only matrices have weight decay."""
    linear = {id(m.weight) for m in trained.modules() if isinstance(m, nn.Linear)}
    groups = []
    for decayed in (True, False):
        chosen = [p for p in trained.parameters() if (p.ndim > 1) == decayed]
        groups.append(
            {
                "params": chosen,
                "linear": [id(p) in linear for p in chosen],
                "lr": config.learning_rate,
                "rate": config.learning_rate,
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
        )
    return groups


def _open_array(file: Path) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): draw the data again.") from error
    return array
