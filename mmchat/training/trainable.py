"""Selects the weights of a loaded base that train, and saves them as an adapter or a model.

LoRA is only on the linear layers of the text model's blocks, and on `lm_head` if the recipe says so,
which is asserted. Trained weights are float32, whatever the dtype of the base.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmchat.adapters.card import LORA, LORA_WEIGHTS, PROJECTOR, VISION_TOWER, Base, Card, write_card
from mmchat.errors import RecipeError, describe_error
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.quantization import (
    NF4,
    TEXT_PARTS,
    count_and_dtype,
    import_bitsandbytes,
    is_four_bit,
    part_of,
    part_tensors,
    set_packing,
    text_blocks,
)
from mmchat.training.finetune_config import LORA_METHODS, FinetuneConfig, LoraOptions, StageConfig

ADAPTER_NAME = "default"
PART_NAMES = {
    "lora": "LoRA",
    "text": "the text model",
    "projector": "the projector",
    "vision": "the vision encoder",
}
NEEDS_PICTURES = (PART_NAMES["projector"], PART_NAMES["vision"])
"""Parts that get no gradient from conversations without pictures."""


@dataclass(frozen=True, slots=True)
class PartSummary:
    """How many parameters of a part train. A packed byte of 4-bit weights counts as two."""

    name: str
    parameters: int
    trainable: int
    dtype: str
    four_bit: bool


class Trainable:
    """The trained weights of a base, by their names in a checkpoint."""

    def __init__(self, loaded: LoadedModel, recipe: FinetuneConfig) -> None:
        """Injects LoRA if a stage of `recipe` trains it.

        Raises RecipeError if `lora.targets` names an unknown layer, or if a stage trains a part that the
        base does not have.
        """
        self.loaded = loaded
        self.model: Any = loaded.model
        set_packing(self.model, allowed=False)
        self.recipe = recipe
        self.blocks, _ = text_blocks(self.model)
        methods = {stage.method for stage in recipe.stages}
        self.has_lora = not methods.isdisjoint(LORA_METHODS)
        if self.has_lora:
            self._inject_lora(recipe.lora)
        self._tower_names_by_blocks = {
            blocks: vision_tower_names(self.model, blocks, loaded.kind, loaded.name)
            for blocks in {stage.vision_blocks for stage in recipe.stages}
        }
        self.tower_names = frozenset[str]().union(*self._tower_names_by_blocks.values())
        self.trains_projector = any(stage.projector for stage in recipe.stages)
        for name, parameter in self.model.named_parameters():
            projector = self.trains_projector and part_of(name, self.blocks) == "projector"
            text = "full" in methods and self._is_text(name)
            if name in self.tower_names or projector or text:
                parameter.data = parameter.data.float()

    def start_stage(self, stage: StageConfig) -> list[dict[str, Any]]:
        """Freezes everything that the stage does not train; -> the parameter groups of what it trains.

        Each group has `lr`, `names` and `linear` (whether a parameter is a linear layer's matrix, but
        not an embedding or the head). Only matrices have weight decay. Raises RecipeError if nothing
        would train.
        """
        self.model.requires_grad_(False)
        linear = self._linear_weights()
        groups: list[dict[str, Any]] = []
        for part, rate in (
            ("lora", stage.learning_rate if stage.method in LORA_METHODS else 0.0),
            ("text", stage.learning_rate if stage.method == "full" else 0.0),
            ("projector", stage.projector_learning_rate if stage.projector else 0.0),
            ("vision", stage.vision_learning_rate if stage.vision_blocks else 0.0),
        ):
            if not rate:
                continue
            named = [
                (n, p) for n, p in self.model.named_parameters() if self._part(n, stage) == part
            ]
            for decayed in (True, False):
                chosen = [(n, p) for n, p in named if (p.ndim > 1) == decayed]
                if not chosen:
                    continue
                for _, parameter in chosen:
                    parameter.requires_grad_(True)
                groups.append(
                    {
                        "part": PART_NAMES[part],
                        "params": [p for _, p in chosen],
                        "names": [n for n, _ in chosen],
                        "linear": [id(p) in linear for _, p in chosen],
                        "lr": rate,
                        "rate": rate,
                        "weight_decay": stage.weight_decay if decayed else 0.0,
                    }
                )
        if not groups:
            raise RecipeError(
                f"Stage {stage.name} would train nothing: set a method, or projector = true."
            )
        self._assert_only_stage_trains(stage)
        return groups

    @staticmethod
    def parameters_by_part(groups: list[dict[str, Any]]) -> dict[str, list[Tensor]]:
        """The parameters of `groups` by part. Each part must get a gradient in every step.

        LoRA is split by layer name, over all blocks: one block may get no gradient in a step (an expert
        that no token was routed to), but not all of them.
        """
        parts: dict[str, list[Tensor]] = {}
        for group in groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                layer, lora, _ = name.partition(".lora_")
                part = f"LoRA of {layer.rpartition('.')[2]}" if lora else group["part"]
                parts.setdefault(part, []).append(parameter)
        return parts

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight that any stage trains, in the model's order."""
        for name, parameter in self.model.named_parameters():
            if any(self._part(name, stage) for stage in self.recipe.stages):
                yield name, parameter

    def state(self) -> dict[str, Tensor]:
        """The model's tensors for a checkpoint."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `state`; raises ValueError if names or shapes differ."""
        places = dict(self.named_parameters())
        if places.keys() != tensors.keys():
            raise ValueError(f"{len(places.keys() ^ tensors.keys())} names of weights differ")
        with torch.no_grad():
            for name, parameter in places.items():
                if parameter.shape != tensors[name].shape:
                    raise ValueError(f"{name} has another shape")
                parameter.copy_(tensors[name])

    def summarize_parts(self) -> list[PartSummary]:
        """Parameters, trainable parameters, dtype and quantization of each part."""
        rows: dict[str, list[Any]] = {}
        for name, parameter in self.model.named_parameters():
            part = "LoRA" if ".lora_" in name else str(part_of(name, self.blocks))
            row = rows.setdefault(part, [0, 0, set(), False])
            weights, dtype = count_and_dtype(parameter)
            row[0] += weights
            row[1] += parameter.numel() if parameter.requires_grad else 0
            row[2].add(dtype)
            row[3] |= dtype == NF4
        return [
            PartSummary(part, count, trains, "+".join(sorted(types)), packed)
            for part, (count, trains, types, packed) in rows.items()
        ]

    def describe_stage(self, stage: StageConfig) -> list[str]:
        """Lines that say what `stage` trains, with which quantization and dtypes."""
        loaded = self.loaded
        form = "in 4-bit" if loaded.quantization == "4bit" else "unquantized"
        dtype = str(loaded.compute_dtype).removeprefix("torch.")
        where = f"computed in {dtype} on the {loaded.device.type}"
        lines = [
            f"stage {stage.name}: {stage.method} on {loaded.name} {form}, {where}",
            f"  {'part':<14}{'parameters':>14}{'trains':>12}  {'dtype':<18}4-bit",
        ]
        for part in self.summarize_parts():
            counts = f"{part.name:<14}{part.parameters:>14,}{part.trainable:>12,}"
            lines.append(f"  {counts}  {part.dtype:<18}{'yes' if part.four_bit else 'no'}")
        return lines

    def save_adapter(self, folder: Path, name: str) -> None:
        """Writes the adapter's folder: card, projector, vision tower and LoRA, if they were trained."""
        folder.mkdir(parents=True, exist_ok=True)
        trained = []
        if self.trains_projector:
            save_file(_plain(part_tensors(self.model, "projector")), folder / PROJECTOR)
            trained.append("projector")
        if self.tower_names:
            tower = {
                n.partition("vision_tower.")[2]: p.detach()
                for n, p in self.model.named_parameters()
                if n in self.tower_names
            }
            save_file(_plain(tower), folder / VISION_TOWER)
            trained.append("vision_tower")
        if self.has_lora:
            self._save_lora(folder / LORA)
            trained.append("lora")
        kind = getattr(self.model.config, "projector_type", "") if self.trains_projector else ""
        base = Base(self.loaded.name, self.loaded.weights_hash)
        write_card(folder, Card(name, base, str(kind), tuple(trained)))

    def save_model(self, folder: Path) -> None:
        """Writes the complete model in bfloat16, for `mmchat models add`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.to(torch.bfloat16).save_pretrained(folder)
        (self.loaded.processor or self.loaded.tokenizer).save_pretrained(folder)

    def _inject_lora(self, lora: LoraOptions) -> None:
        # Before peft imports bitsandbytes, which could then download kernels.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            import_bitsandbytes()
        from peft import LoraConfig, inject_adapter_in_model

        names = self._lora_targets(lora)
        blocks = re.escape(self.blocks)
        pattern = rf"{blocks}\.\d+\..*\b({'|'.join(sorted(names))})"
        if lora.head:
            pattern = rf"({pattern}|lm_head)"
        self.config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            target_modules=pattern,
            task_type="CAUSAL_LM",
        )
        try:
            inject_adapter_in_model(self.config, self.model, ADAPTER_NAME)
        except ValueError as error:  # peft does not support some layers of recurrent models
            others = [
                name for name in sorted(self._linear_names()) if f"'{name}'" not in str(error)
            ]
            raise RecipeError(
                f"LoRA cannot be added to {self.loaded.name} ({describe_error(error, 160)}): choose "
                f"other layers (--set lora.targets=…, from {', '.join(others)}), or another method."
            ) from error
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    def _linear_weights(self) -> set[int]:
        """The ids of linear layers' matrices, without embeddings and head."""
        token_layers = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return {id(m.weight) for m in self.model.modules() if _is_linear(m)} - {
            id(module.weight) for module in token_layers if module is not None
        }

    def _linear_names(self) -> set[str]:
        """The names of the blocks' linear layers, such as "q_proj"."""
        return {
            path.rpartition(".")[2]
            for path, module in self.model.named_modules()
            if path.startswith(self.blocks + ".") and _is_linear(module)
        }

    def _lora_targets(self, lora: LoraOptions) -> set[str]:
        names = self._linear_names()
        if unknown := set(lora.targets) - names:
            raise RecipeError(
                f"lora.targets has {', '.join(sorted(unknown))}, but the linear layers of "
                f"{self.loaded.name} are called {', '.join(sorted(names))}: choose from these, or none "
                "for all."
            )
        return set(lora.targets) or names

    def _is_text(self, name: str) -> bool:
        return part_of(name, self.blocks) in TEXT_PARTS

    def _part(self, name: str, stage: StageConfig) -> str:
        """The key in `PART_NAMES` of a parameter; "" if the stage does not train it."""
        if ".lora_" in name:
            return "lora" if stage.method in LORA_METHODS else ""
        if name in self.tower_names:
            return "vision" if name in self._tower_names_by_blocks[stage.vision_blocks] else ""
        part = part_of(name, self.blocks)
        if part == "projector":
            return "projector" if stage.projector else ""
        return "text" if stage.method == "full" and self._is_text(name) else ""

    def _assert_only_stage_trains(self, stage: StageConfig) -> None:
        """Asserts that LoRA is on text blocks only, and that only the stage's parameters train."""
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                inside = name.startswith(self.blocks + ".")
                assert inside or (self.recipe.lora.head and name.startswith("lm_head.")), name
            assert parameter.requires_grad == bool(self._part(name, stage)), name

    def _save_lora(self, folder: Path) -> None:
        from peft.utils import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        # Never the model's state_dict(): on a CPU bitsandbytes would repack all 4-bit weights.
        lora = {n: p.detach() for n, p in self.model.named_parameters() if ".lora_" in n}
        state = get_peft_model_state_dict(self.model, state_dict=lora, adapter_name=ADAPTER_NAME)
        # The prefix that stock peft uses.
        prefixed = {f"base_model.model.{key}": value for key, value in state.items()}
        save_file(_plain(prefixed), folder / LORA_WEIGHTS)
        self.config.base_model_name_or_path = self.loaded.name
        self.config.save_pretrained(str(folder))


def vision_tower_names(
    model: Any, blocks: int | Literal["all"], kind: str, base_name: str
) -> frozenset[str]:
    """The parameter names of the vision encoder's last `blocks` blocks that the model uses, or of all.

    Raises RecipeError if the encoder has fewer blocks.
    """
    if not blocks:
        return frozenset()
    tower: Any = getattr(getattr(model, "model", None), "vision_tower", None)
    lists = [
        (path, module)
        for path, module in (tower.named_modules() if tower is not None else ())
        if isinstance(module, nn.ModuleList) and len(module) > 0
    ]
    if not lists or kind != "visual_prefix":
        raise RecipeError(
            f"vision_blocks = {blocks}, but {base_name} has no vision encoder with blocks that can train: "
            "set it to 0."
        )
    if blocks == "all":
        return frozenset(f"model.vision_tower.{name}" for name, _ in tower.named_parameters())
    path, modules = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    # Blocks after the selected hidden state, such as LLaVA's last one, have no effect.
    used = model.model.encoder.blocks_used(len(modules), model.config.vision_feature_layer)
    if blocks > used:
        raise RecipeError(
            f"vision_blocks = {blocks}, but the model uses only {used} blocks of the vision encoder of "
            f"{base_name}: lower it."
        )
    last = tuple(f"{path}.{used - 1 - number}." for number in range(blocks))
    return frozenset(
        f"model.vision_tower.{name}"
        for name, _ in tower.named_parameters()
        if name.startswith(last)
    )


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or is_four_bit(module)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
