"""What learns on a 4-bit base gets the gradient that its weights give, and what gets none ends the run."""

import copy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmchat.data.types import Dataset, Example
from mmchat.errors import RecipeError
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.quantization import dequantized_weight, is_four_bit, is_packed
from mmchat.training.finetune import Trainer
from mmchat.training.finetune_config import FinetuneConfig, StageConfig, read_config
from mmchat.training.losses import autocast
from mmchat.training.prepare import prepare
from mmchat.training.run_folder import RunFolder, Status
from mmchat.training.trainable import Trainable
from mmchat.turns import Turn
from tests.model import parts, tiny
from tests.model.forms import load, pack
from tests.training.tuned import dataset, examples

STAGE = StageConfig(method="qlora", steps=1, projector=False, learning_rate=1e-3)
IDS = torch.arange(5, 21)[None]
CLOSE = {"fp32": 1e-4, "bf16": 1e-2}
"""Relative, of the gradient of one matrix."""


def text_model(decoder: str, folder: Path) -> Path:
    """A tiny text model of a decoder family, in sizes that bitsandbytes packs."""
    tok = tiny.tokenizer(tiny.CHATML, ["<pad>", "<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    small = parts.DECODERS[decoder]()
    wider = {
        "vocab_size": len(tok), "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    config = type(small)(**{**small.to_dict(), **wider})
    return tiny._save(folder, tiny.spread(AutoModelForCausalLM.from_config(config), 0.1), tok)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("decoders")
    return lru_cache(lambda decoder: text_model(decoder, root / decoder))


def dequantized_twin(model: Any) -> Any:
    """The same model with every 4-bit layer as a plain one of the same numbers."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        if hasattr(module, "base_layer") and is_four_bit(module.base_layer):
            layer = module.base_layer
            plain = torch.nn.Linear(
                layer.in_features, layer.out_features, bias=layer.bias is not None
            )
            plain.weight = torch.nn.Parameter(
                dequantized_weight(layer).to(layer.compute_dtype), requires_grad=False
            )
            plain.bias = layer.bias
            module.base_layer = plain
    return twin


def gradients(loaded: LoadedModel, model: Any) -> dict[str, torch.Tensor]:
    """Of the mean loss of a few tokens, by the names of LoRA's matrices."""
    model.train()
    with autocast(loaded.device, loaded.compute_dtype):
        logits = model(input_ids=IDS).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:])
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if ".lora_" in n}


@pytest.mark.parametrize("packed_before", [False, True], ids=["fresh", "packed"])
@pytest.mark.parametrize("decoder", sorted(parts.DECODERS))
def test_lora_learns_on_four_bits_what_it_learns_on_their_numbers(
    base: Callable[[str], Path], dtype: str, decoder: str, packed_before: bool
) -> None:
    """With and without biases, after a forward in eval mode, on a base that had been packed too."""
    loaded = load(base(decoder), f"4bit-{dtype}")
    if packed_before:
        pack(loaded.model)
    trainable = Trainable(loaded, FinetuneConfig(name="t", stages=(STAGE,)))
    trainable.start_stage(STAGE)
    model = loaded.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:  # at 0 no gradient reaches A
                parameter.normal_(0, 0.1)
        twin = dequantized_twin(model)
        model.eval()
        model(input_ids=IDS)  # a look at held-out samples, or a sample answer
    assert not any(is_packed(module) for module in model.modules())
    found, wanted = gradients(loaded, model), gradients(loaded, twin)
    assert found.keys() == wanted.keys() and len(found) >= 2 * 2 * 6
    for name, gradient in found.items():
        assert gradient is not None and wanted[name].norm() > 0, name
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert float(error) <= CLOSE[dtype], name


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> Callable[..., Trainer]:
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / "home"))

    def make(folder: Path, *more: str, data: Dataset | None = None) -> Trainer:
        recipe = read_config(
            None,
            [f"model={folder}", "name=t", "data.replay=0", "steps=2", "batch=4", "row_tokens=128",
             "stages.0.method=qlora", *more],
        )  # fmt: skip
        (tmp_path / "run").mkdir()
        prepared = prepare(recipe, data or dataset(6), examples(2))
        return Trainer(prepared, "", RunFolder(tmp_path / "run"), Status("t", "", "preparing"))

    return make


def test_a_layer_that_lets_no_gradient_through_ends_the_run(
    run: Callable[..., Trainer], tmp_path: Path
) -> None:
    """As a packed layer does: what comes before it would learn nothing, and the run would end well."""
    tune = run(tiny.build("visual_prefix", tmp_path / "base"))
    weights = {name: tensor.clone() for name, tensor in tune.trainable.state().items()}
    for name, module in tune.loaded.model.named_modules():
        if name.endswith("self_attn.o_proj.base_layer"):
            module.register_forward_pre_hook(lambda module, given: (given[0].detach(),))
        if name.endswith("self_attn.o_proj.lora_A.default"):
            module.register_forward_pre_hook(lambda module, given: (given[0].detach(),))
    with pytest.raises(RecipeError) as told:
        tune.run()
    sentence = str(told.value)
    assert "Stage adapter, step 1: no gradient reached LoRA of " in sentence
    for name in ("q_proj", "k_proj", "v_proj"):
        assert f"LoRA of {name}" in sentence
    assert "LoRA of o_proj" not in sentence and "LoRA of down_proj" not in sentence
    for name, tensor in tune.trainable.state().items():
        assert torch.equal(tensor, weights[name])


def test_a_projector_without_gradient_ends_the_run(
    run: Callable[..., Trainer], tmp_path: Path
) -> None:
    tune = run(tiny.build("llava", tmp_path / "base"), "projector=true")
    projector = tune.loaded.model.get_submodule("model.multi_modal_projector")
    projector.register_forward_hook(lambda module, given, output: output.detach())
    with pytest.raises(
        RecipeError, match="no gradient reached the projector, so it would not learn"
    ):
        tune.run()


def test_conversations_without_pictures_ask_nothing_of_the_projector(
    run: Callable[..., Trainer], tmp_path: Path
) -> None:
    folder = tiny.build("visual_prefix", tmp_path / "base")
    words = (Turn("user", ("what colour is it?",)), Turn("assistant", ("It is red.",)))
    made = [Example(words, "", f"made, sample {number + 1}") for number in range(3)]
    data = Dataset("made", "here", made, (), "0" * 64)
    assert run(folder, "projector=true", data=data).run().is_dir()
