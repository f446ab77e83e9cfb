"""Model and adapter folders that can be listed and read; nothing in them can answer."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mmchat.adapters.card import Base, Card, write_card
from mmchat.model_files import weights_hash
from tests.memory.published import write_headers


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
        metrics={"exact_match": 0.96},
    )
    write_card(folder, card)
    save_file({"weight": np.ones((2, 2), np.float32)}, folder / "projector.safetensors")
    return folder


def make_sparse_llama(folder: Path, *, hidden: int, layers: int, vocabulary: int) -> Path:
    """A Llama of any size that takes no disk."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    wide = 11 * hidden // 4
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (wide, hidden) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, wide)
        shapes |= {
            f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")
        }
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": 32,
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    return write_headers(folder, config, shapes)
