"""What a run will take: samples, tokens, steps, weights that train and time, before any weight is loaded."""

import time
from typing import Any

import torch
from torch import nn

from mmchat.model.planning import auto_class
from mmchat.model.quantization import part_of, text_blocks
from mmchat.training.finetune_config import LORA_METHODS, StageConfig, own_samples
from mmchat.training.fit_to_memory import FILLED, step_shape
from mmchat.training.prepare import Prepared
from mmchat.training.trainable import tower_names

TRAINED_PASSES = {"projector": 2.0, "lora": 2.0, "qlora": 2.0, "full": 3.0}
"""Forward passes' worth of work of a step: LoRA's backward needs no gradients of the base's weights."""
EFFICIENCY = 0.35
"""Of a large matrix product's speed, what a step reaches: small matrices, attention, softmax."""


def plan(prepared: Prepared) -> dict[str, Any]:
    """The plan as one object; times in seconds."""
    recipe, train = prepared.recipe, prepared.train
    skeleton = _skeleton(prepared)
    text = _text_parameters(skeleton)
    width = int(prepared.plan.config.get_text_config().hidden_size)
    seconds = 0.0
    stages = []
    for stage in recipe.stages:
        own = own_samples(stage.batch, recipe.data.replay)
        # A row is computed whole, with what stands empty at its end.
        computed = step_shape(prepared, stage).tokens / FILLED
        speed = _speed(prepared.plan.dtype, prepared.plan.device, stage.row_tokens, width)
        work = 2 * text * computed * (1 + TRAINED_PASSES.get(stage.method, 2.0))
        seconds += stage.steps * work / (speed * EFFICIENCY)
        stages.append(
            {
                "name": stage.name,
                "method": stage.method,
                "steps": stage.steps,
                "batch": stage.batch,
                "row_tokens": stage.row_tokens,
                "epochs": stage.steps * own / max(len(train.trees), 1),
                "learning_rate": stage.rate,
                "optimizer": stage.optimizer,
            }
        )
    fit = max(prepared.memory_fits, key=lambda fit: fit.needed_bytes, default=None)
    return {
        "tokens": train.tokens,
        "step_tokens": step_shape(prepared, recipe.stages[0]).tokens,
        "steps": sum(stage.steps for stage in recipe.stages),
        "epochs": sum(float(str(stage["epochs"])) for stage in stages),
        "parameters": prepared.parameters,
        "trainable_parameters": max(_trainable(prepared, s, skeleton) for s in recipe.stages),
        "seconds": seconds,
        "memory_bytes": fit.needed_bytes if fit else None,
        "memory": fit.sentence if fit else "cannot be estimated for this kind of base",
        "stages": stages,
        "replay": recipe.data.replay,
        "shortened": prepared.shortened,
        "quantization": prepared.plan.form,
        "device": prepared.plan.device.type,
    }


def _skeleton(prepared: Prepared) -> nn.Module:
    """The base without weights, on the meta device."""
    if prepared.plan.skeleton is not None:
        return prepared.plan.skeleton
    with torch.device("meta"):
        model: nn.Module = auto_class(prepared.plan.kind).from_config(prepared.plan.config)
    return model


def _text_parameters(skeleton: nn.Module) -> int:
    """Parameters that every token goes through."""
    blocks, _ = text_blocks(skeleton)
    head = skeleton.get_output_embeddings()
    inside = sum(p.numel() for n, p in skeleton.named_parameters() if n.startswith(blocks + "."))
    return inside + (head.weight.numel() if head is not None else 0)


def _trainable(prepared: Prepared, stage: StageConfig, skeleton: nn.Module) -> int:
    blocks, _ = text_blocks(skeleton)
    count = 0
    if stage.method in LORA_METHODS:
        table = prepared.recipe.lora
        for path, module in skeleton.named_modules():
            name = path.rpartition(".")[2]
            wanted = not table.targets or name in table.targets
            if path.startswith(blocks + ".") and isinstance(module, nn.Linear) and wanted:
                count += table.rank * (module.in_features + module.out_features)
                count += module.out_features if table.dora else 0
    tower: frozenset[str] = frozenset()
    if stage.vision_blocks:
        tower = tower_names(skeleton, stage.vision_blocks, prepared.plan.kind, prepared.plan.name)
    for name, parameter in skeleton.named_parameters():
        part = part_of(name, blocks)
        if (part == "projector" and stage.projector) or (
            name in tower
            or (stage.method == "full" and part in ("text blocks", "lm_head", "other"))
        ):
            count += parameter.numel()
    return count


def _speed(dtype: torch.dtype, device: torch.device, tokens: int, width: int) -> float:
    """Floating-point operations per second of (tokens, width) @ (width, 4 * width), measured briefly.

    The sizes are the model's: a small model reaches a tenth of the speed of a large matrix product, or less.
    """
    row = torch.ones(tokens, width, dtype=dtype, device=device)
    matrix = torch.ones(width, 4 * width, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        row @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * tokens * width * 4 * width / best
