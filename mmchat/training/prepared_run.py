"""A run that is ready to start: everything but the loaded weights."""

from dataclasses import dataclass, field
from typing import Any

from mmchat.data.types import Example, Problem
from mmchat.memory.memory_fit import MemoryFit
from mmchat.model.load_plan import LoadPlan
from mmchat.prompt.pixel_values import PixelCache
from mmchat.training.encode import Samples
from mmchat.training.finetune_config import FinetuneConfig, StageConfig


@dataclass
class BasePreprocessor:
    """A base's tokenizer and processor, without its weights."""

    name: str
    kind: Any
    processor: Any
    tokenizer: Any
    vision: bool
    pixels: PixelCache = field(default_factory=PixelCache)


@dataclass(frozen=True, slots=True)
class StageSamples:
    """The samples of one stage: to train on, against forgetting, and for validation."""

    train: Samples
    replay: Samples | None
    held_out: Samples


@dataclass(frozen=True)
class PreparedRun:
    """The resolved recipe and the encoded samples."""

    recipe: FinetuneConfig
    """Without any open choice."""
    plan: LoadPlan
    """How the base is loaded."""
    preprocessor: BasePreprocessor
    train: Samples
    """With the weights of the data; `of_stage` applies those of a stage."""
    held_out: Samples
    replay: Samples | None
    held_out_examples: list[Example]
    """Those that the base can answer: within its context, and with pictures only if it sees them."""
    problems: list[Problem]
    """Examples that cannot be trained on."""
    truncated: int
    """Examples whose last exchanges were dropped, because they did not fit."""
    parameters: int
    """The number of the base's parameters."""
    memory_fits: tuple[MemoryFit, ...] = ()
    """Whether each stage fits into this machine's memory; empty if that cannot be estimated."""

    @property
    def tight(self) -> bool:
        """Whether freed memory must go back to the system at once, which takes time."""
        return any(fit.tight for fit in self.memory_fits)

    def of_stage(self, stage: StageConfig) -> StageSamples:
        """The samples with the weights of `stage`. A replay sample weighs as much as a new one."""
        train = self.train.weighted_by_length(stage.length_weight)
        replay = self.replay and self.replay.weighted_by_length(stage.length_weight)
        return StageSamples(
            train,
            replay and replay.scaled_to_mean_weight(train.mean_weight),
            self.held_out.weighted_by_length(stage.length_weight),
        )
