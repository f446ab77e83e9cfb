"""Plans a run: tokens, steps, trainable parameters, memory and time, before any weights are loaded."""

import time
from typing import Any

import torch
from torch import nn

from mmchat.model.load_plan import auto_class
from mmchat.model.quantization import TEXT_PARTS, part_of, text_blocks
from mmchat.training.finetune_config import LORA_METHODS, StageConfig, new_samples_per_step
from mmchat.training.prepare import ROW_FILL, PreparedRun, mean_step
from mmchat.training.trainable import vision_tower_names

BACKWARD_PASSES = {"projector": 2.0, "lora": 2.0, "qlora": 2.0, "full": 3.0}
"""The work of a backward pass, in forward passes. LoRA needs no gradients of the base's weights."""
EFFICIENCY = 0.35
"""The speed of a step relative to one matrix product of its size, because of attention, softmax and padding."""


def plan_run(prepared: PreparedRun) -> dict[str, Any]:
    """The plan, JSON-ready; time in seconds, memory in bytes."""
    recipe, train = prepared.recipe, prepared.train
    skeleton = _skeleton(prepared)
    text = _text_parameters(skeleton)
    width = int(prepared.plan.config.get_text_config().hidden_size)
    seconds = 0.0
    stages: list[dict[str, Any]] = []
    for stage in recipe.stages:
        new = new_samples_per_step(stage.batch, recipe.data.replay)
        # The padding at the end of a row is computed too.
        computed = mean_step(prepared, stage).tokens / ROW_FILL
        speed = _speed(prepared.plan.dtype, prepared.plan.device, stage.row_tokens, width)
        work = 2 * text * computed * (1 + BACKWARD_PASSES.get(stage.method, 2.0))
        seconds += stage.steps * work / (speed * EFFICIENCY)
        stages.append(
            {
                "name": stage.name,
                "method": stage.method,
                "steps": stage.steps,
                "batch": stage.batch,
                "row_tokens": stage.row_tokens,
                "epochs": stage.steps * new / max(len(train.trees), 1),
                "learning_rate": stage.rate,
                "optimizer": stage.optimizer,
            }
        )
    fit = max(prepared.memory_fits, key=lambda fit: fit.needed_bytes, default=None)
    return {
        "tokens": train.token_count,
        "step_tokens": mean_step(prepared, recipe.stages[0]).tokens,
        "steps": sum(stage.steps for stage in recipe.stages),
        "epochs": sum(stage["epochs"] for stage in stages),
        "parameters": prepared.parameters,
        "trainable_parameters": max(
            _trainable_parameters(prepared, s, skeleton) for s in recipe.stages
        ),
        "seconds": seconds,
        "memory_bytes": fit.needed_bytes if fit else None,
        "memory": fit.sentence if fit else "cannot be estimated for this kind of base",
        "stages": stages,
        "replay": recipe.data.replay,
        "truncated": prepared.truncated,
        "quantization": prepared.plan.weight_format,
        "device": prepared.plan.device.type,
    }


def _skeleton(prepared: PreparedRun) -> nn.Module:
    """The base without weights, on the meta device."""
    if prepared.plan.skeleton is not None:
        return prepared.plan.skeleton
    with torch.device("meta"):
        model: nn.Module = auto_class(prepared.plan.kind).from_config(prepared.plan.config)
    return model


def _text_parameters(skeleton: nn.Module) -> int:
    """Parameters that every token uses: the blocks and the head."""
    blocks, _ = text_blocks(skeleton)
    head = skeleton.get_output_embeddings()
    inside = sum(p.numel() for n, p in skeleton.named_parameters() if n.startswith(blocks + "."))
    return inside + (head.weight.numel() if head is not None else 0)


def _trainable_parameters(prepared: PreparedRun, stage: StageConfig, skeleton: nn.Module) -> int:
    blocks, _ = text_blocks(skeleton)
    count = 0
    if stage.method in LORA_METHODS:
        lora = prepared.recipe.lora
        for path, module in skeleton.named_modules():
            name = path.rpartition(".")[2]
            is_target = not lora.targets or name in lora.targets
            if path.startswith(blocks + ".") and isinstance(module, nn.Linear) and is_target:
                count += lora.rank * (module.in_features + module.out_features)
                count += module.out_features if lora.dora else 0
    plan = prepared.plan
    tower = vision_tower_names(skeleton, stage.vision_blocks, plan.kind, plan.name)
    for name, parameter in skeleton.named_parameters():
        part = part_of(name, blocks)
        text = stage.method == "full" and part in TEXT_PARTS
        if text or name in tower or (stage.projector and part == "projector"):
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
