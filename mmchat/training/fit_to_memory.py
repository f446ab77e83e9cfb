"""A run is fitted to the memory of this machine before any weight is loaded.

A CPU gives no error when memory runs out: the system ends the process. So what a stage takes is
estimated first. If that is too much, fewer rows are computed at once, and activations are computed again
instead of kept (gradient checkpointing). Neither changes what is learned.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import msgspec

from mmchat.memory.machine import Machine
from mmchat.memory.memory_fit import MemoryFit, training_fit
from mmchat.memory.model_dims import ModelDims, UnknownModelError, read_dims
from mmchat.memory.training_memory import Method, Optimizer, TrainingStep
from mmchat.model.load_plan import machine_of
from mmchat.training.finetune_config import LORA_METHODS, StageConfig, own_samples

if TYPE_CHECKING:
    from mmchat.training.encode import Samples
    from mmchat.training.prepare import Prepared

FILLED = 0.9
"""The share of a packed row's tokens that is used."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The mean step of a stage: its tokens, trained tokens, pictures and rows."""

    tokens: float
    answers: float
    pictures: float
    rows: int


def step_shape(prepared: "Prepared", stage: StageConfig) -> StepShape:
    """The mean step of a stage, over all processes."""
    own = own_samples(stage.batch, prepared.recipe.data.replay)
    parts = [(own, prepared.train)]
    if prepared.replay is not None:
        parts.append((stage.batch - own, prepared.replay))
    means = [(share, *_means(samples)) for share, samples in parts]
    tokens, answers, pictures = (sum(one[0] * one[n] for one in means) for n in (1, 2, 3))
    return StepShape(
        tokens, answers, pictures, max(1, -(-int(tokens) // int(FILLED * stage.row_tokens)))
    )


def fit_to_memory(prepared: "Prepared") -> "Prepared":
    """The same run with stages that fit the memory if there is a way, and what each of them takes.

    Nothing is changed for a base whose memory cannot be estimated.
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
    prepared: "Prepared", stage: StageConfig, dims: ModelDims, machine: Machine
) -> MemoryFit:
    shape, lora = step_shape(prepared, stage), prepared.recipe.lora
    step = TrainingStep(
        method=cast(Method, stage.method),  # nothing is left at "auto" here
        row_tokens=min(stage.row_tokens, int(shape.tokens / shape.rows / FILLED)),
        rows=shape.rows,
        pictures=round(shape.pictures),
        answer_tokens=round(shape.answers),
        rank=lora.rank if stage.method in LORA_METHODS else 1,
        targets=lora.targets,
        projector=stage.projector is True,
        vision_blocks=_vision_blocks(stage, dims),
        optimizer=cast(Optimizer, stage.optimizer),
        gradient_checkpointing=stage.gradient_checkpointing,
    )
    # The rows of published models are computed one at a time.
    micro_rows = 1 if prepared.plan.kind == "hf_vlm" else stage.micro_rows
    use = f"stage {stage.name}"
    return training_fit(
        dims, machine, prepared.plan.weight_format, step, use, micro_rows=micro_rows
    )


def _vision_blocks(stage: StageConfig, dims: ModelDims) -> int:
    if stage.vision_blocks != "all":
        return stage.vision_blocks
    return dims.vision.layers if dims.vision is not None else 0


def _means(samples: "Samples") -> tuple[float, float, float]:
    """(tokens, trained tokens, pictures) of a sample"""
    count = max(len(samples.trees), 1)
    return samples.tokens / count, samples.trained / count, samples.shown / count
