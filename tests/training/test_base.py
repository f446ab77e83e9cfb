"""A base that was saved is a complete model folder, each weight in it once."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmchat.training.base import build_processor, save_base
from tests.training.conftest import Tiny


def test_a_saved_base_is_bf16_with_tied_weights_once(tiny: Tiny, tmp_path: Path) -> None:
    processor = build_processor(tiny.tokenizer, tiny.model.config)
    save_base(tiny.model, processor, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in tiny.model.parameters())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto").state_dict()
    # The model that is trained stays what it was.
    for name, tensor in tiny.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.to(torch.bfloat16), again[name])
