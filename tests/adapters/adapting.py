"""Adapters of random weights for tiny bases, and what a model says with one on."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmchat.adapters import card as adapters
from mmchat.adapters.active import ActiveAdapter
from mmchat.adapters.card import Base, Card
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_model
from mmchat.model.quantization import set_packing
from mmchat.prompt.model_inputs import build_prompt
from mmchat.settings import paths, private_dir
from mmchat.turns import Turn
from tests.model.forms import form_of, load
from tests.model.tiny import shown

TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
LAST_BLOCK = "blocks.0."
"""Of the tiny tower's names, those of the last block."""


def active(base: LoadedModel) -> ActiveAdapter:
    """What switches the adapters of a base, always the same."""
    found: ActiveAdapter | None = getattr(base, "active_adapter", None)
    if found is None:
        found = ActiveAdapter(base)
        base.active_adapter = found  # type: ignore[attr-defined]
    return found


def logits(model: LoadedModel) -> torch.Tensor:
    """(1, tokens, vocabulary) of a question about a picture."""
    prompt = build_prompt(model, [Turn("user", (shown(0), "what is it?"))], 8)
    with torch.no_grad():
        out: torch.Tensor = model.model(input_ids=prompt.input_ids, **prompt.model_inputs).logits
    return out


def make(
    base: LoadedModel,
    name: str,
    *,
    projector: bool = True,
    lora: bool = False,
    tower: bool = False,
    hash_: str = "",
    root: Path | None = None,
    **options: Any,
) -> Path:
    """Writes an adapter of random weights into the person's folder; `options` are LoRA's."""
    folder = (root or private_dir(paths().adapters)) / name
    folder.mkdir()
    parts = (("projector", projector), ("lora", lora), ("vision_tower", tower))
    trained = tuple(part for part, there in parts if there)
    card = Card(name, Base("tiny", hash_ or base.weights_hash), "shuffle_mlp", trained, {"n": 1.0})
    adapters.write_card(folder, card)
    torch.manual_seed(len(name))
    if projector:
        state = base.model.model.multi_modal_projector.state_dict()
        save_file(
            {key: torch.randn(t.shape) * 0.3 for key, t in state.items()},
            folder / adapters.PROJECTOR,
        )
    if tower:
        state = base.model.model.vision_tower.state_dict()
        last = {key: t for key, t in state.items() if key.startswith(LAST_BLOCK)}
        save_file(
            {key: torch.randn(t.shape) * 0.3 for key, t in last.items()},
            folder / adapters.VISION_TOWER,
        )
    if lora:
        save_lora(base.folder, folder / adapters.LORA, **options)
    return folder


def save_lora(base: Path, folder: Path, **options: Any) -> None:
    """What peft itself saves of a trained LoRA, from the fp32 base."""
    from peft import LoraConfig, get_peft_model

    whole = load_model(str(base), quantization="fp32", device="cpu").model
    wrapped = get_peft_model(
        whole, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options})
    )
    for key, parameter in wrapped.named_parameters():
        if "lora_magnitude" in key:
            with torch.no_grad():
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
        elif "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(folder, save_embedding_layers=False)


def with_peft(base: LoadedModel, folder: Path) -> LoadedModel:
    """The same base, loaded anew, with the adapter's LoRA put on by stock peft."""
    from peft import PeftModel

    reference = load(base.folder, form_of(base))
    # peft's DoRA reads the weights themselves, and a packed layer's cannot be read.
    set_packing(reference.model, allowed=False)
    reference.model = PeftModel.from_pretrained(reference.model, folder / adapters.LORA)
    reference.model.eval()
    return reference


def change(folder: Path, **fields: Any) -> None:
    """Writes fields into the adapter_config.json of an adapter."""
    file = folder / "lora" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
