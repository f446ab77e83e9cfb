"""A tiny prepared folder and the recipe of a tiny model made from nothing, for the tests of training."""

import json
from pathlib import Path

import numpy as np

RECIPE = """
name = "tiny"
seed = 3

[base]
vocabulary_size = 300
[base.vision]
image_size = 32
stem_channels = [8, 16, 16]
hidden_size = 16
conv_channels = 8
num_conv_layers = 1
intermediate_size = 32
num_attention_heads = 2
[base.projector]
projector_type = "shuffle_mlp"
projector_positions = true
[base.text]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 512
tie_word_embeddings = true

[cells]
steps = 3
pictures = 4
learning_rate = 1e-2
checkpoint_every = 1

[data]
replay = 0
cache_features = false

[[stages]]
name = "answers"
method = "full"
projector = true
optimizer = "muon"
schedule = "wsd"
steps = 3
batch = 4
row_tokens = 160
learning_rate = 1e-2
projector_learning_rate = 1e-2
checkpoint_every = 1
evaluate_every = 3

[[stages]]
name = "together"
method = "full"
projector = true
vision_blocks = "all"
optimizer = "muon"
steps = 2
batch = 4
row_tokens = 160
learning_rate = 1e-2
projector_learning_rate = 1e-2
vision_learning_rate = 1e-2
checkpoint_every = 1
evaluate_every = 2
"""


def _dialog(kind: str, *texts: str) -> dict[str, object]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"type": kind, "messages": messages}


def write_prepared(folder: Path, pictures: int = 12) -> Path:
    """`folder/train` and `folder/held-out`: one colour a picture, a few dialogs about it."""
    for number, split in enumerate(("train", "held-out")):
        out = folder / split
        out.mkdir(parents=True)
        rng = np.random.default_rng(number)
        np.save(out / "images.npy", rng.integers(0, 256, (pictures, 32, 32, 3), np.uint8))
        np.save(out / "cells.npy", rng.integers(0, 3, (pictures, 4, 4, 2), np.uint8))
        classes = {"colour": ["red", "blue"], "shape": ["star", "ring"]}
        (out / "classes.json").write_text(json.dumps(classes))
        samples: list[dict[str, object]] = []
        for index in range(pictures):
            colour = ("red", "blue")[index % 2]
            dialogs = [
                _dialog("colour", "what colour is it?", f"It is {colour}."),
                _dialog("is_there", "is it there", "Yes.", "and a star?", f"No, a {colour} ring."),
                _dialog("read", "what does it say?", f'It says "{index}A".'),
            ]
            samples.append({"images": [index], "dialogs": dialogs})
        samples.append({"images": [], "dialogs": [_dialog("greet", "hi", "Hello!")]})
        parts = [{"type": "text", "text": "see "}, {"type": "image"}, {"type": "image"}]
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "Two of them."},
        ]
        samples.append({"images": [0, 1], "dialogs": [{"type": "compare", "messages": messages}]})
        (out / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return folder
