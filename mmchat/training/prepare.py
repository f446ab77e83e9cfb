"""Prepares a run from data and a recipe: encodes the data and makes all choices, without loading weights.

On a CPU the system kills a process that runs out of memory, so the memory of each stage is estimated
here. If a stage would not fit, it computes fewer rows at once and then uses gradient checkpointing.
Neither changes what is learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch

from mmchat.data import read_data
from mmchat.data.types import Dataset, Example, Problem
from mmchat.errors import DataError, RecipeError
from mmchat.memory.machine import Machine
from mmchat.memory.memory_fit import MemoryFit, training_fit
from mmchat.memory.model_dims import ModelDims, UnknownModelError, read_dims
from mmchat.memory.training_memory import Method, Optimizer, TrainingStep
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.load_plan import LoadPlan, machine_of, plan_load
from mmchat.model.loading import context_length, processor_of
from mmchat.model_files import tensors
from mmchat.prompt.pixel_values import PixelCache
from mmchat.settings import Quantization
from mmchat.training.encode import EncodedExamples, ExampleEncoder, Samples
from mmchat.training.finetune_config import (
    LORA_METHODS,
    FinetuneConfig,
    RunInfo,
    StageConfig,
    new_samples_per_step,
    resolve,
    should_quantize,
)
from mmchat.training.packing import can_pack
from mmchat.training.replay import has_replay, replay_data
from mmchat.training.validation import MAX_NEW_TOKENS

DEFAULT_MAX_TOKENS = 4096
"""The maximum tokens of a conversation, unless the recipe sets another limit or the context is smaller."""
VALIDATION_SAMPLES = 128
"""How many held-out samples are used for validation during training."""
ROW_FILL = 0.9
"""The share of a packed row that is not padding."""


@dataclass
class BasePreprocessor:
    """A base's tokenizer and processor, without its weights."""

    name: str
    kind: Any
    processor: Any
    tokenizer: Any
    vision: bool
    pixels: PixelCache = field(default_factory=PixelCache)


@dataclass(frozen=True)
class PreparedRun:
    """The resolved recipe and the encoded samples."""

    recipe: FinetuneConfig
    """Without any open choice."""
    plan: LoadPlan
    """How the base is loaded."""
    train: Samples
    """With the weights of the data; `of_stage` applies those of a stage."""
    held_out: Samples
    replay: Samples | None
    """Samples of what the base was trained on, against forgetting."""
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

    def of_stage(self, stage: StageConfig) -> "PreparedRun":
        """The run, its samples with the weights of `stage`. A replay sample weighs as much as a new one."""
        train = self.train.weighted_by_length(stage.length_weight)
        replay = self.replay and self.replay.weighted_by_length(stage.length_weight)
        replay = replay and replay.scaled_to_mean_weight(train.mean_weight)
        held_out = self.held_out.weighted_by_length(stage.length_weight)
        return replace(self, train=train, replay=replay, held_out=held_out)


def prepare(
    recipe: FinetuneConfig,
    train: Dataset,
    held_out: Sequence[Example],
    *,
    allow_bad: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PreparedRun:
    """Encodes `train` and `held_out` for the base, and resolves what `recipe` leaves open.

    Raises ModelError if the base cannot be loaded, DataError if more than 1 % of the examples cannot be
    trained on, RecipeError if the recipe does not fit the base.
    """
    parameters = sum(tensor.elements for tensor in tensors(resolve_model(recipe.model)))
    plan = plan_load(
        recipe.model,
        quantization=_quantization(recipe, parameters),
        four_bit_hint="in 4-bit (--set method=qlora)",
    )
    processor, tokenizer = processor_of(plan)
    preprocessor = BasePreprocessor(plan.name, plan.kind, processor, tokenizer, plan.kind != "text")
    text_config = plan.config.get_text_config()
    encoder = ExampleEncoder(preprocessor, share_pictures=can_pack(text_config))
    context = context_length(plan.config, tokenizer)
    limit = recipe.row_tokens or min(context, DEFAULT_MAX_TOKENS)
    say(f"encoding {len(train.examples) + len(held_out)} conversations for {plan.name}")
    encoded = encoder.encode_examples(train.examples, limit)
    encoded_held_out = encoder.encode_examples(held_out, limit)
    problems = encoded.problems + encoded_held_out.problems
    _check_problems(problems, len(train.examples) + len(held_out), allow_bad)
    if not encoded.examples:
        raise DataError(f"{train.source} has nothing to train on: see `mmchat data inspect`.")
    info = RunInfo(
        samples=len(encoder.build_samples(encoded, limit).trees),
        longest=max(encoded.longest, encoded_held_out.longest),
        context=context,
        hidden=int(text_config.hidden_size),
        parameters=parameters,
        cuda=plan.device.type == "cuda",
        four_bit=plan.weight_format == "4bit",
        has_projector=plan.kind != "text" and _has_projector(plan.folder),
        visual_prefix=plan.kind == "visual_prefix",
        replay=has_replay(plan.folder),
    )
    resolved = msgspec.structs.replace(resolve(recipe, info), base_hash=plan.weights_hash)
    prepared = PreparedRun(
        recipe=resolved,
        plan=plan,
        train=encoder.build_samples(encoded, resolved.row_tokens),
        held_out=encoder.build_samples(encoded_held_out, resolved.row_tokens).first(
            VALIDATION_SAMPLES
        ),
        replay=_build_replay(resolved, plan, encoder, say),
        held_out_examples=_answerable(encoded_held_out, context),
        problems=problems,
        truncated=encoded.truncated + encoded_held_out.truncated,
        parameters=parameters,
    )
    return fit_to_memory(prepared)


def _has_projector(folder: Path) -> bool:
    # A projector is never inside the text blocks, so their path does not matter here.
    return any(nf4.part_of(tensor.name, "-") == "projector" for tensor in tensors(folder))


def _quantization(recipe: FinetuneConfig, parameters: int) -> Quantization:
    """How the base is loaded for training; "auto" is 4-bit if it is available."""
    methods = {stage.method for stage in recipe.stages}
    cuda = torch.cuda.is_available()
    if should_quantize(recipe, cuda=cuda, parameters=parameters):
        return "4bit" if "qlora" in methods else "auto"
    fast = nf4.compute_dtype(torch.device("cuda" if cuda else "cpu"))
    return "bf16" if fast is torch.bfloat16 and "full" not in methods else "fp32"


def _answerable(encoded: EncodedExamples, context: int) -> list[Example]:
    """The examples that leave room for an answer in the context."""
    return [
        replace(one.example, turns=one.turns)
        for one in encoded.examples
        if len(one.tokens) + MAX_NEW_TOKENS <= context
    ]


def _check_problems(problems: Sequence[Problem], total: int, allow_bad: bool) -> None:
    if not problems or allow_bad or len(problems) <= 0.01 * total:
        return
    first = "; ".join(f"{problem.place}: {problem.why}" for problem in problems[:3])
    raise DataError(
        f"{len(problems)} of {total} conversations cannot be trained on ({first}): correct them, or "
        "skip them with --allow-bad."
    )


def _build_replay(
    recipe: FinetuneConfig, plan: LoadPlan, encoder: ExampleEncoder, say: Callable[[str], None]
) -> Samples | None:
    """Samples of what the base was trained on; None if the recipe does not use any."""
    if not recipe.data.replay:
        return None
    if not has_replay(plan.folder):
        raise RecipeError(
            f"data.replay = {recipe.data.replay}, but {plan.name} has no replay data: set it to 0, and add "
            "good answers of the base to the data."
        )
    # Each picture is used about twice.
    pictures = sum(s.steps * s.batch for s in recipe.stages) * recipe.data.replay / 2
    say("drawing replay data, so that the base does not forget what it knows")
    data = read_data(replay_data(plan.folder, int(pictures)))
    encoded = encoder.encode_examples(data.examples, recipe.row_tokens)
    return encoder.build_samples(encoded, recipe.row_tokens)


@dataclass(frozen=True, slots=True)
class MeanStep:
    """The size of a stage's mean step, over all processes."""

    tokens: float
    labels: float
    pictures: float
    rows: int


def mean_step(prepared: PreparedRun, stage: StageConfig) -> MeanStep:
    new = new_samples_per_step(stage.batch, prepared.recipe.data.replay)
    parts = [(new, prepared.train)]
    if prepared.replay is not None:
        parts.append((stage.batch - new, prepared.replay))
    tokens, labels, pictures = (
        sum(n * (getattr(samples, count) / max(len(samples.trees), 1)) for n, samples in parts)
        for count in ("token_count", "label_count", "picture_count")
    )
    rows = max(1, -(-int(tokens) // int(ROW_FILL * stage.row_tokens)))
    return MeanStep(tokens, labels, pictures, rows)


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
    blocks = stage.vision_blocks
    if blocks == "all":
        blocks = dims.vision.layers if dims.vision is not None else 0
    step = TrainingStep(
        method=cast(Method, stage.method),  # never "auto" here
        row_tokens=min(stage.row_tokens, int(mean.tokens / mean.rows / ROW_FILL)),
        rows=mean.rows,
        pictures=round(mean.pictures),
        answer_tokens=round(mean.labels),
        rank=lora.rank if stage.method in LORA_METHODS else 1,
        targets=lora.targets,
        projector=stage.projector is True,
        vision_blocks=blocks,
        optimizer=cast(Optimizer, stage.optimizer),
        gradient_checkpointing=stage.gradient_checkpointing,
    )
    # Hugging Face VLMs compute one row at a time.
    micro_rows = 1 if prepared.plan.kind == "hf_vlm" else stage.micro_rows
    use = f"stage {stage.name}"
    return training_fit(
        dims, machine, prepared.plan.weight_format, step, use, micro_rows=micro_rows
    )
