"""Model and adapter folders that can be listed and read; nothing in them can answer."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mmchat.model.adapters import Base, Card, write_card
from mmchat.model.checkpoint import weights_hash


def make_model(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "hidden_size": 8, "vocab_size": 16}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)
    save_file({"model.layers.0.mlp.up_proj.weight": weights}, folder / "model.safetensors")
    return folder


def make_adapter(folder: Path, model: Path) -> Path:
    folder.mkdir(parents=True)
    card = Card(
        name=folder.name,
        base=Base(id=model.name, hash=weights_hash(model)),
        trained=("projector",),
        figures={"exact_match": 0.96},
    )
    write_card(folder, card)
    save_file({"weight": np.ones((2, 2), np.float32)}, folder / "projector.safetensors")
    return folder
