"""How much of this machine's memory a run takes, and what it does where that is too much.

A CPU gives no error when memory runs out: the system ends the process. So what is needed is
predicted before, and where it is not there fewer rows are computed at once, and the blocks'
activations are computed again instead of kept. Neither changes what is learned.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import torch

from mmchat.errors import ModelError
from mmchat.model.checkpoint import available_memory
from mmchat.model.facts import ModelFacts, read_facts
from mmchat.model.room import IMPORTS, Machine, Room, training_room
from mmchat.training.finetune_config import LORA_METHODS, StageConfig, own_samples

if TYPE_CHECKING:
    from mmchat.model.planning import Plan
    from mmchat.training.encode import Samples
    from mmchat.training.prepare import Prepared

FILLED = 0.9
"""Of a packed row's tokens."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step computes, in the mean: numbers of tokens, of trained ones, of pictures, of rows."""

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


def eased(prepared: "Prepared") -> "Prepared":
    """The same, with stages that fit the memory where there is a way, and what each takes.

    Nothing is changed and nothing told of a base whose memory cannot be predicted.
    """
    try:
        facts = read_facts(prepared.plan.folder)
    except ModelError:
        return prepared
    machine = _machine(prepared.plan)
    rooms, stages = [], []
    for stage in prepared.recipe.stages:
        room = _room(prepared, stage, facts, machine)
        if room.fits:
            stage = msgspec.structs.replace(stage, **room.changes)
        rooms.append(room)
        stages.append(stage)
    recipe = msgspec.structs.replace(prepared.recipe, stages=tuple(stages))
    return replace(prepared, recipe=recipe, rooms=tuple(rooms))


def _room(prepared: "Prepared", stage: StageConfig, facts: ModelFacts, machine: Machine) -> Room:
    shape = step_shape(prepared, stage)
    lora = prepared.recipe.lora
    # A stock model's rows are computed one at a time.
    stock = prepared.plan.kind == "stock"
    return training_room(
        facts,
        machine,
        f"stage {stage.name}",
        rows=shape.rows,
        pictures_a_row=shape.pictures / shape.rows,
        answers_a_row=shape.answers / shape.rows,
        micro_rows=1 if stock else stage.micro_rows,
        gradient_checkpointing=stage.gradient_checkpointing,
        method=stage.method,
        row_tokens=min(stage.row_tokens, int(shape.tokens / shape.rows / FILLED)),
        rank=lora.rank if stage.method in LORA_METHODS else 1,
        targets=lora.targets,
        projector=stage.projector,
        vision_blocks=_tower_blocks(stage, facts),
        optimizer=stage.optimizer,
    )


def _tower_blocks(stage: StageConfig, facts: ModelFacts) -> int:
    if stage.vision_blocks != "all":
        return stage.vision_blocks
    return facts.vision.layers if facts.vision is not None else 0


def _machine(plan: "Plan") -> Machine:
    width = plan.dtype.itemsize
    if plan.device.type == "cuda":
        return Machine("cuda", torch.cuda.mem_get_info(plan.device)[0], width)
    # What this process has imported is not free any more, and counted once more with the run.
    return Machine("cpu", available_memory() + IMPORTS, width)


def _means(samples: "Samples") -> tuple[float, float, float]:
    """Of a sample: (tokens, trained tokens, pictures)"""
    count = max(len(samples.trees), 1)
    return samples.tokens / count, samples.trained / count, samples.shown / count
