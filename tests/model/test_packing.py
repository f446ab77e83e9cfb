"""4-bit layers that bitsandbytes repacks for inference on CPUs with AVX512-BF16, also if this CPU has no such kernel."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmchat.adapters.lora import plain_weight
from mmchat.model import quantization
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.quantization import (
    dequantized_weight,
    has_packed_kernel,
    is_four_bit,
    is_packed,
    set_packing,
)
from tests.model.forms import assert_as_exact, load, pack

Checkpoint = Callable[[str], Path]
IDS = torch.arange(5, 25)[None]


def four_bit_layers(loaded: LoadedModel) -> list[torch.nn.Module]:
    return [module for module in loaded.model.modules() if is_four_bit(module)]


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = loaded.model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_packed_layer_gives_its_numbers_and_is_unpacked_to_them(
    checkpoint: Checkpoint, dtype: str
) -> None:
    loaded = load(checkpoint("llama"), f"4bit-{dtype}")
    before = [dequantized_weight(layer) for layer in four_bit_layers(loaded)]
    pack(loaded.model)
    packed = [plain_weight(layer) for layer in four_bit_layers(loaded)]
    assert all(is_packed(layer) for layer in four_bit_layers(loaded))
    for one, other in zip(before, packed, strict=True):
        # Packing rounds the scales to bfloat16.
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-2)
    set_packing(loaded.model, allowed=False)
    for layer, weight in zip(four_bit_layers(loaded), packed, strict=True):
        assert not is_packed(layer)
        assert torch.equal(dequantized_weight(layer), weight)
    logits(loaded)
    assert not any(is_packed(layer) for layer in four_bit_layers(loaded))


def test_packing_changes_an_answer_by_no_more_than_rounding(checkpoint: Checkpoint) -> None:
    plain, packed = (load(checkpoint("llama"), "4bit-bf16") for _ in range(2))
    set_packing(plain.model, allowed=False)
    assert_as_exact(logits(packed), logits(plain), logits(load(checkpoint("llama"), "4bit-fp32")))
    assert all(is_packed(layer) == has_packed_kernel() for layer in four_bit_layers(packed))


def test_what_computes_in_float32_is_never_packed(checkpoint: Checkpoint) -> None:
    loaded = load(checkpoint("llama"), "4bit-fp32")
    logits(loaded)
    assert not any(is_packed(layer) for layer in four_bit_layers(loaded))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_layers_of_sizes_that_cannot_be_packed_are_four_bit_all_the_same(
    checkpoint: Checkpoint, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for file in checkpoint("llama").glob("*token*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(quantization, "has_packed_kernel", lambda: True)
    loaded = load(tmp_path, f"4bit-{dtype}")
    assert len(four_bit_layers(loaded)) == 7
    assert logits(loaded).isfinite().all()
    assert not any(is_packed(layer) for layer in four_bit_layers(loaded))
