"""Fits a run into this machine's memory, before any weights are loaded.

On a CPU the system kills a process that runs out of memory, so the memory of each stage is estimated
first. If a stage would not fit, it computes fewer rows at once and then uses gradient checkpointing.
Neither changes what is learned.
"""

from dataclasses import dataclass, replace
from typing import cast

import msgspec

from mmchat.memory.machine import Machine
from mmchat.memory.memory_fit import MemoryFit, training_fit
from mmchat.memory.model_dims import ModelDims, UnknownModelError, read_dims
from mmchat.memory.training_memory import Method, Optimizer, TrainingStep
from mmchat.model.load_plan import machine_of
from mmchat.training.encode import Samples
from mmchat.training.finetune_config import LORA_METHODS, StageConfig, new_samples_per_step
from mmchat.training.prepared_run import PreparedRun

ROW_FILL = 0.9
"""The share of a packed row that is not padding."""


@dataclass(frozen=True, slots=True)
class MeanStep:
    """The size of a stage's mean step, over all processes."""

    tokens: float
    labels: float
    pictures: float
    rows: int


def mean_step(prepared: PreparedRun, stage: StageConfig) -> MeanStep:
    """The size of the mean step of `stage`."""
    new = new_samples_per_step(stage.batch, prepared.recipe.data.replay)
    parts = [(new, prepared.train)]
    if prepared.replay is not None:
        parts.append((stage.batch - new, prepared.replay))
    means = [(count, *_means(samples)) for count, samples in parts]
    tokens, labels, pictures = (sum(one[0] * one[n] for one in means) for n in (1, 2, 3))
    return MeanStep(
        tokens, labels, pictures, max(1, -(-int(tokens) // int(ROW_FILL * stage.row_tokens)))
    )


def fit_to_memory(prepared: PreparedRun) -> PreparedRun:
    """Changes the stages so that they fit into memory, if that is possible, and adds the estimates.

    Returns `prepared` itself if the memory of the base cannot be estimated.
    """
    plan = prepared.plan
    try:
        dims = read_dims(plan.folder)
    except UnknownModelError:
        return prepared
    machine = machine_of(plan.device, plan.dtype)
    fits, stages = [], []
    for stage in prepared.recipe.stages:
        fit = _stage_fit(prepared, stage, dims, machine)
        if fit.fits:
            stage = msgspec.structs.replace(stage, **fit.changes)
        fits.append(fit)
        stages.append(stage)
    recipe = msgspec.structs.replace(prepared.recipe, stages=tuple(stages))
    return replace(prepared, recipe=recipe, memory_fits=tuple(fits))


def _stage_fit(
    prepared: PreparedRun, stage: StageConfig, dims: ModelDims, machine: Machine
) -> MemoryFit:
    mean, lora = mean_step(prepared, stage), prepared.recipe.lora
    step = TrainingStep(
        method=cast(Method, stage.method),  # never "auto" here
        row_tokens=min(stage.row_tokens, int(mean.tokens / mean.rows / ROW_FILL)),
        rows=mean.rows,
        pictures=round(mean.pictures),
        answer_tokens=round(mean.labels),
        rank=lora.rank if stage.method in LORA_METHODS else 1,
        targets=lora.targets,
        projector=stage.projector is True,
        vision_blocks=_vision_blocks(stage, dims),
        optimizer=cast(Optimizer, stage.optimizer),
        gradient_checkpointing=stage.gradient_checkpointing,
    )
    # Hugging Face VLMs compute one row at a time.
    micro_rows = 1 if prepared.plan.kind == "hf_vlm" else stage.micro_rows
    use = f"stage {stage.name}"
    return training_fit(
        dims, machine, prepared.plan.weight_format, step, use, micro_rows=micro_rows
    )


def _vision_blocks(stage: StageConfig, dims: ModelDims) -> int:
    if stage.vision_blocks != "all":
        return stage.vision_blocks
    return dims.vision.layers if dims.vision is not None else 0


def _means(samples: Samples) -> tuple[float, float, float]:
    """(tokens, labels, pictures) per sample"""
    count = max(len(samples.trees), 1)
    return samples.token_count / count, samples.label_count / count, samples.picture_count / count
