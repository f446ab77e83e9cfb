"""What adapters can be made of, beside what stock peft computes: LoRA's kinds, the tower, the head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.adapters import card as adapters
from mmchat.adapters.active import ActiveAdapter, read_adapter
from mmchat.adapters.lora import plain_weight
from mmchat.engine.backend import TorchBackend
from mmchat.errors import AdapterError
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_model
from mmchat.model.quantization import set_packing
from mmchat.settings import paths
from tests.adapters.adapting import LAST_BLOCK, active, logits, make, save_lora, with_peft
from tests.model.forms import assert_as_exact, exact_form, form_of, load

# peft, as it wraps the model that a test trains, asks it for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PATTERNS = {
    "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
    "alpha_pattern": {"self_attn.v_proj": 3, "v_proj": 30, "layers.1.mlp.up_proj": 16},
    "layers_to_transform": [1],
    "target_modules": ["q_proj", "v_proj", "up_proj"],
    "exclude_modules": r".*(vision|projector).*",
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 6},
    "dora": {"use_dora": True},
    "dora_rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {"use_rslora": True, **PATTERNS},
}


@pytest.mark.parametrize("kind", KINDS)
def test_lora_gives_what_peft_gives_and_comes_off_exactly(base: LoadedModel, kind: str) -> None:
    before = logits(base)
    folder = make(base, kind, projector=False, lora=True, **KINDS[kind])
    active(base).switch(kind)
    ours = logits(base)
    stock = logits(with_peft(base, folder))
    if base.compute_dtype is torch.float32:
        torch.testing.assert_close(ours, stock, atol=5e-5, rtol=5e-5)
    else:
        exact = load(base.folder, exact_form(form_of(base)))
        assert_as_exact(ours, stock, logits(with_peft(exact, folder)))
    assert not torch.allclose(ours, before, atol=0.05)
    active(base).switch("")
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize("kind", ["plain", "dora", "patterns"])
def test_every_layer_gives_what_its_merged_weight_would(base: LoadedModel, kind: str) -> None:
    make(base, f"layer-{kind}", projector=False, lora=True, **KINDS[kind])
    close = 1e-4 if base.compute_dtype == torch.float32 else 0.1
    for layer, delta in read_adapter(base, f"layer-{kind}").lora:
        hidden = torch.randn(3, layer.in_features, dtype=base.compute_dtype)
        whole = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        whole.weight = torch.nn.Parameter(plain_weight(layer))
        merged, _ = delta.merged(whole)
        with torch.no_grad():
            given = delta(layer, (hidden,), layer(hidden)).float()
            torch.testing.assert_close(
                given, hidden.float() @ merged.T, atol=close * 10, rtol=close * 10
            )


def test_a_bias_of_lora_is_added(base: LoadedModel) -> None:
    folder = make(base, "biased", projector=False, lora=True)
    weights = folder / adapters.LORA / adapters.LORA_WEIGHTS
    active(base).switch("biased")
    without = logits(base)
    state = load_file(weights)
    for key in list(state):
        if key.endswith("lora_B.weight"):
            state[key.replace("weight", "bias")] = torch.full((len(state[key]),), 0.1)
    save_file(state, weights)
    config = folder / adapters.LORA / adapters.LORA_CONFIG
    config.write_text(config.read_text().replace('"lora_bias": false', '"lora_bias": true'))
    active(base).switch("biased")
    assert not torch.allclose(logits(base), without, atol=0.01)


def test_tensors_of_the_tower_are_put_on_and_taken_off_exactly(base: LoadedModel) -> None:
    before = logits(base)
    own = {
        name: (tensor.data_ptr(), tensor.clone())
        for name, tensor in base.model.model.vision_tower.state_dict().items()
    }
    folder = make(base, "eyes", projector=False, tower=True)
    assert adapters.read_card(folder).trained == ("vision_tower",)
    active(base).switch("eyes")
    changed = logits(base)
    assert not torch.allclose(changed, before, atol=0.01)
    file = load_file(folder / adapters.VISION_TOWER)
    for name, tensor in base.model.model.vision_tower.state_dict().items():
        expected = file[name] if name.startswith(LAST_BLOCK) else own[name][1]
        assert torch.equal(tensor, expected.to(tensor.dtype))
    active(base).switch("")
    assert torch.equal(logits(base), before)
    for name, tensor in base.model.model.vision_tower.state_dict().items():
        assert (tensor.data_ptr(), True) == (own[name][0], torch.equal(tensor, own[name][1]))
    whole = make(base, "whole", lora=True, tower=True)
    alone = make(base, "alone", lora=True)
    assert adapters.adapter_hash(whole) != adapters.adapter_hash(alone)


def test_what_a_picture_gives_is_kept_by_the_tower_that_read_it(base: LoadedModel) -> None:
    make(base, "eyes", projector=False, tower=True)
    make(base, "words", lora=True)
    own = active(base).vision_hash
    active(base).switch("words")
    assert active(base).vision_hash == own == base.weights_hash
    active(base).switch("eyes")
    assert active(base).vision_hash != own and active(base).vision_hash.startswith(own)
    active(base).switch("")
    assert active(base).vision_hash == own


def test_lora_on_the_head_is_taken_where_the_file_names_it(
    checkpoint: Callable[[str], Path],
) -> None:
    base = load_model(str(checkpoint("llama")), quantization="fp32", device="cpu")
    folder = paths().adapters / "head"
    folder.mkdir(parents=True)
    adapters.write_card(folder, adapters.Card("head", adapters.Base("tiny", base.weights_hash)))
    save_lora(base.folder, folder / adapters.LORA, target_modules=["lm_head", "q_proj"])
    ids = torch.arange(5, 25)[None]
    before = base.model(ids).logits
    active(base).switch("head")
    reference = with_peft(base, folder).model(input_ids=ids).logits
    torch.testing.assert_close(base.model(ids).logits, reference, atol=1e-5, rtol=1e-5)
    active(base).switch("")
    assert torch.equal(base.model(ids).logits, before)


def test_names_of_older_transformers_mean_the_same_layers(base: LoadedModel) -> None:
    folder = make(base, "old", projector=False, lora=True)
    active(base).switch("old")
    expected = logits(base)
    weights = folder / adapters.LORA / adapters.LORA_WEIGHTS
    state = load_file(weights)
    now, then = "model.language_model.layers", "language_model.model.layers"
    save_file({key.replace(now, then): tensor for key, tensor in state.items()}, weights)
    active(base).switch("old")
    assert torch.equal(logits(base), expected)
    both = {key.replace(now, then): tensor.clone() for key, tensor in state.items()} | state
    save_file(both, weights)
    with pytest.raises(AdapterError, match="names a layer twice"):
        active(base).switch("old")


def test_an_adapter_that_was_on_comes_back_from_memory(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(base, "first", lora=True, tower=True)
    make(base, "second", lora=True)
    said = {}
    for name in ("first", "second", ""):
        active(base).switch(name)
        said[name] = logits(base)
    with monkeypatch.context() as patched:
        patched.setattr("mmchat.adapters.active.read_adapter", None)
        for name in ("second", "first", "", "first", "first", "second", ""):
            active(base).switch(name)
            assert torch.equal(logits(base), said[name]) and active(base).name == name
    active(base).switch("first")
    assert active(base).is_current()
    file = first / adapters.PROJECTOR
    save_file({key: tensor * 2 for key, tensor in load_file(file).items()}, file)
    assert not active(base).is_current() and base.is_current()
    active(base).switch("first")
    assert active(base).is_current() and not torch.equal(logits(base), said["first"])


def test_the_longest_unused_is_forgotten_when_there_is_no_room(base: LoadedModel) -> None:
    make(base, "one"), make(base, "two"), make(base, "three")
    size = read_adapter(base, "one").nbytes
    switch = ActiveAdapter(base, cache_bytes=2 * size)
    before = logits(base)
    for name in ("one", "two", "one", "three"):
        switch.switch(name)
    assert {folder.name for folder in switch._cache} == {"one", "three"}
    small = ActiveAdapter(base, cache_bytes=1)  # it is used however large it is, and not kept
    switch.switch("")
    small.switch("two")
    assert not torch.equal(logits(base), before) and not small._cache
    small.switch("")
    switch.switch("")
    assert torch.equal(logits(base), before)


def test_gradients_flow_through_an_adapter_that_was_put_on_in_inference_mode(
    base: LoadedModel,
) -> None:
    make(base, "mode", lora=True)
    base = load(base.folder, form_of(base))
    set_packing(base.model, allowed=False)  # as training does
    with torch.inference_mode():
        active(base).switch("mode")
    ids = torch.arange(5, 9)[None]
    embedded = base.model.get_input_embeddings()(ids).detach().requires_grad_()
    base.model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None and bool(embedded.grad.abs().sum() > 0)


def test_the_backend_looks_at_a_picture_again_only_where_the_tower_changes(
    loaded: Callable[[str, str], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmchat.client.protocol import Delta, Options
    from mmchat.turns import Turn
    from tests.model.tiny import shown

    base = loaded("visual_prefix", "fp32")
    backend = TorchBackend()
    backend.load(base.name, "", "fp32", "cpu", lambda stage, fraction: None)
    make(base, "eyes", projector=False, tower=True)
    make(base, "words", lora=True)
    held = backend._loaded
    assert held is not None
    read: list[str] = []
    encode = held.model.encode_images

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        read.append(backend.status().adapter)
        features: torch.Tensor = encode(pixels)
        return features

    def answer() -> str:
        turns = [Turn("user", (shown(0), "what is it?"))]
        events = backend.generate(turns, Options(max_tokens=12), lambda: False)
        return "".join(event.text for event in events if isinstance(event, Delta))

    monkeypatch.setattr(held.model, "encode_images", counted)
    said = {}
    for name in ("", "words", "eyes"):
        backend.use_adapter(name)
        said[name] = answer()
    assert read == ["", "eyes"] and len(set(said.values())) == 3
    for name in ("eyes", "", "words"):
        backend.use_adapter(name)
        assert answer() == said[name]
    assert read == ["", "eyes"]
