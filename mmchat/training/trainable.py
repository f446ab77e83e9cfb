"""Which weights of a loaded base train, and the adapter that they become.

LoRA stands on the linear layers of the text model's blocks and nowhere else (`lm_head` only where
it is asked for): it is asserted. What trains is kept in float32, whatever the base is in.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmchat.adapters.card import (
    LORA,
    LORA_WEIGHTS,
    PROJECTOR,
    VISION_TOWER,
    Base,
    Card,
    write_card,
)
from mmchat.errors import RecipeError
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.quantization import (
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
class PartRow:
    """One line of the table of what trains. `parameters` are weights, packed ones counted singly."""

    part: str
    parameters: int
    trainable: int
    dtype: str
    four_bit: bool


class Trainable:
    """The weights of a base that train, by the names that they have in a checkpoint."""

    def __init__(self, loaded: LoadedModel, recipe: FinetuneConfig) -> None:
        """Puts LoRA on where a stage of `recipe` wants it.

        Raises RecipeError where `lora.targets` names no layer, or a stage wants what the base has not.
        """
        self.loaded = loaded
        self.model: Any = loaded.model
        set_packing(self.model, allowed=False)
        self.recipe = recipe
        self.blocks, _ = text_blocks(self.model)
        methods = {stage.method for stage in recipe.stages}
        self.has_lora = not methods.isdisjoint(LORA_METHODS)
        if self.has_lora:
            self._put_on_lora(recipe.lora)
        self._of_tower = {
            blocks: tower_names(self.model, blocks, loaded.kind, loaded.name)
            for blocks in {stage.vision_blocks for stage in recipe.stages}
        }
        self.tower_names = frozenset[str]().union(*self._of_tower.values())
        self.trains_projector = any(stage.projector for stage in recipe.stages)
        for name, parameter in self.model.named_parameters():
            projector = self.trains_projector and part_of(name, self.blocks) == "projector"
            text = "full" in methods and self._is_text(name)
            if name in self.tower_names or projector or text:
                parameter.data = parameter.data.float()

    def begin(self, stage: StageConfig) -> list[dict[str, Any]]:
        """Lets exactly what the stage trains have gradients; -> its groups, each with `lr`, `names` and
        `linear`: whether a parameter is the matrix of a linear layer, and not of tokens.

        Matrices decay, vectors do not. Raises RecipeError where nothing would train.
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
                f"Stage {stage.name} would train nothing: name a method, or projector."
            )
        self._assert_confined(stage)
        return groups

    @staticmethod
    def parts(groups: list[dict[str, Any]]) -> dict[str, list[Tensor]]:
        """The parameters of `groups` by the part that has to get a gradient in each step.

        LoRA is told by the layers that it is on, over all blocks: a block may go without for a step
        (an expert that no token chose), all of them cannot.
        """
        found: dict[str, list[Tensor]] = {}
        for group in groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                layer, lora, _ = name.partition(".lora_")
                part = f"LoRA of {layer.rpartition('.')[2]}" if lora else group["part"]
                found.setdefault(part, []).append(parameter)
        return found

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every weight that any stage trains, in the model's order."""
        for name, parameter in self.model.named_parameters():
            if any(self._part(name, stage) for stage in self.recipe.stages):
                yield name, parameter

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model."""
        return {name: parameter.detach() for name, parameter in self.named()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `state`; raises ValueError where names or shapes differ."""
        places = dict(self.named())
        if places.keys() != tensors.keys():
            raise ValueError(f"{len(places.keys() ^ tensors.keys())} names of weights differ")
        with torch.no_grad():
            for name, parameter in places.items():
                if parameter.shape != tensors[name].shape:
                    raise ValueError(f"{name} has another size")
                parameter.copy_(tensors[name])

    def table(self) -> list[PartRow]:
        """Part by part: parameters, those that train now, dtype, whether it is 4-bit."""
        rows: dict[str, list[Any]] = {}
        for name, parameter in self.model.named_parameters():
            part = "LoRA" if ".lora_" in name else str(part_of(name, self.blocks))
            row = rows.setdefault(part, [0, 0, set(), False])
            packed = type(parameter).__name__ == "Params4bit"
            row[0] += parameter.numel() * (2 if packed else 1)
            row[1] += parameter.numel() if parameter.requires_grad else 0
            row[2].add("nf4" if packed else str(parameter.dtype).removeprefix("torch."))
            row[3] |= packed
        return [
            PartRow(part, count, trains, "+".join(sorted(types)), packed)
            for part, (count, trains, types, packed) in rows.items()
        ]

    def save_adapter(self, folder: Path, name: str, figures: dict[str, float]) -> None:
        """Writes the adapter's folder (design: adapter.toml, projector, lora/, vision tower)."""
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
        kind = (
            str(getattr(self.model.config, "projector_type", "")) if "projector" in trained else ""
        )
        base = Base(self.loaded.name, self.loaded.weights_hash)
        write_card(folder, Card(name, base, kind, tuple(trained), figures))

    def save_model(self, folder: Path) -> None:
        """Writes the whole model in bfloat16, as `mmchat models add` takes it: after `full`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.to(torch.bfloat16).save_pretrained(folder)
        (self.loaded.processor or self.loaded.tokenizer).save_pretrained(folder)

    def _put_on_lora(self, table: LoraOptions) -> None:
        import_bitsandbytes_quietly()
        from peft import LoraConfig, inject_adapter_in_model

        names = self._lora_targets(table)
        blocks = re.escape(self.blocks)
        pattern = rf"{blocks}\.\d+\..*\b({'|'.join(sorted(names))})"
        if table.head:
            pattern = rf"({pattern}|lm_head)"
        self.config = LoraConfig(
            r=table.rank,
            lora_alpha=table.alpha,
            lora_dropout=table.dropout,
            use_rslora=table.rslora,
            use_dora=table.dora,
            target_modules=pattern,
            task_type="CAUSAL_LM",
        )
        try:
            inject_adapter_in_model(self.config, self.model, ADAPTER_NAME)
        except ValueError as error:  # some layers of a recurrent model are none for LoRA
            others = [
                name for name in sorted(self._linear_names()) if f"'{name}'" not in str(error)
            ]
            raise RecipeError(
                f"LoRA does not go onto {self.loaded.name} ({' '.join(str(error).split())[:160]}): choose "
                f"other layers of it (--set lora.targets=…, of {', '.join(others)}), or another method."
            ) from error
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    def _linear_weights(self) -> set[int]:
        """The identities of linear layers' matrices, without the head: its rows are tokens."""
        tokens = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return {id(m.weight) for m in self.model.modules() if _is_linear(m)} - {
            id(module.weight) for module in tokens if module is not None
        }

    def _linear_names(self) -> set[str]:
        """The last words of the names of the blocks' linear layers."""
        return {
            path.rpartition(".")[2]
            for path, module in self.model.named_modules()
            if path.startswith(self.blocks + ".") and _is_linear(module)
        }

    def _lora_targets(self, table: LoraOptions) -> set[str]:
        """Those of them that LoRA goes onto."""
        found = self._linear_names()
        if unknown := set(table.targets) - found:
            raise RecipeError(
                f"lora.targets names {', '.join(sorted(unknown))}, and the linear layers of "
                f"{self.loaded.name} are called {', '.join(sorted(found))}: take some of those, or none "
                "for all."
            )
        return set(table.targets) or found

    def _is_text(self, name: str) -> bool:
        return part_of(name, self.blocks) in ("text blocks", "lm_head", "other")

    def _part(self, name: str, stage: StageConfig) -> str:
        """What of the stage the parameter belongs to; "" where it does not train in it."""
        if ".lora_" in name:
            return "lora" if stage.method in LORA_METHODS else ""
        if name in self.tower_names:
            return "vision" if name in self._of_tower[stage.vision_blocks] else ""
        part = part_of(name, self.blocks)
        if part == "projector":
            return "projector" if stage.projector else ""
        return "text" if stage.method == "full" and self._is_text(name) else ""

    def _assert_confined(self, stage: StageConfig) -> None:
        """LoRA stands on text blocks only, and nothing trains that the stage does not name."""
        for name, parameter in self.model.named_parameters():
            if ".lora_" in name:
                inside = name.startswith(self.blocks + ".")
                assert inside or (self.recipe.lora.head and name.startswith("lm_head.")), name
            assert parameter.requires_grad == bool(self._part(name, stage)), name

    def _save_lora(self, folder: Path) -> None:
        from peft.utils import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(
            self.model, state_dict=self._lora_state(), adapter_name=ADAPTER_NAME
        )
        # The names that stock peft gives and looks for.
        prefixed = {f"base_model.model.{key}": value for key, value in state.items()}
        save_file(_plain(prefixed), folder / LORA_WEIGHTS)
        self.config.base_model_name_or_path = self.loaded.name
        self.config.save_pretrained(str(folder))

    def _lora_state(self) -> dict[str, Tensor]:
        # Never state_dict() of the model: on a CPU bitsandbytes repacks all 4-bit weights for it.
        return {n: p.detach() for n, p in self.model.named_parameters() if ".lora_" in n}


def tower_names(model: Any, blocks: int | Literal["all"], kind: str, called: str) -> frozenset[str]:
    """The parameters of the last `blocks` blocks of the vision encoder that the model uses.

    `all` is the whole encoder. `called` is the base's name. Raises RecipeError if there are not as many.
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
            f"vision_blocks = {blocks}, and {called} has no vision encoder of blocks that "
            "can train: set it to 0."
        )
    if blocks == "all":
        return frozenset(f"model.vision_tower.{name}" for name, _ in tower.named_parameters())
    path, found = max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    # What comes after the hidden state that is taken has no part in the answer (LLaVA's last block).
    used = model.model.encoder.blocks_used(len(found), model.config.vision_feature_layer)
    if blocks > used:
        raise RecipeError(
            f"vision_blocks = {blocks}, and the vision encoder of {called} has only {used} blocks that "
            "the model uses: lower it."
        )
    last = tuple(f"{path}.{used - 1 - number}." for number in range(blocks))
    return frozenset(
        f"model.vision_tower.{name}"
        for name, _ in tower.named_parameters()
        if name.startswith(last)
    )


def import_bitsandbytes_quietly() -> None:
    """Before peft does, which would let it fetch code; without it there is just no 4-bit."""
    try:
        import_bitsandbytes()
    except (ImportError, OSError, RuntimeError):
        return


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or is_four_bit(module)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
