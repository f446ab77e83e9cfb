"""From data and a recipe to all that a run needs but the weights: tokens, samples, choices made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from mmchat.data import read_data
from mmchat.data.types import Dataset, Example, Problem
from mmchat.errors import DataError, RecipeError
from mmchat.memory.memory_fit import MemoryFit
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.load_plan import LoadPlan, plan_load
from mmchat.model.loading import context_length, processor_of
from mmchat.model_files import tensors
from mmchat.prompt.pixel_values import PixelCache
from mmchat.settings import Quantization
from mmchat.training.encode import EncodedExamples, ExampleEncoder, Samples
from mmchat.training.finetune_config import (
    Facts,
    FinetuneConfig,
    StageConfig,
    resolve,
    starts_four_bit,
)
from mmchat.training.fit_to_memory import fit_to_memory
from mmchat.training.packing import packs
from mmchat.training.replay import has_replay, replay_data
from mmchat.training.validation import NEW_TOKENS

LONGEST = 4096
"""Tokens of a conversation, where the recipe says nothing and the base could take more."""
HELD_OUT_SAMPLES = 128
"""Of the held-out part, so many are looked at while training goes on."""


@dataclass
class Reader:
    """A base without its weights: what encoding takes."""

    name: str
    kind: Any
    processor: Any
    tokenizer: Any
    vision: bool
    pixels: PixelCache = field(default_factory=PixelCache)


@dataclass(frozen=True)
class Prepared:
    """Everything of a run but the weights."""

    recipe: FinetuneConfig
    """With nothing left to choose."""
    plan: LoadPlan
    """How the base is loaded."""
    reader: Reader
    train: Samples
    """Its answers weigh as the data says; `of_stage` has what a stage learns from."""
    held_out: Samples
    replay: Samples | None
    held_out_examples: list[Example]
    """Those that the base can be asked: in its context, with pictures only where it sees them."""
    problems: list[Problem]
    """Examples that were read and cannot be trained on."""
    shortened: int
    parameters: int
    """Of the base."""
    memory_fits: tuple[MemoryFit, ...] = ()
    """Whether each stage fits the memory of this machine; empty if that cannot be estimated."""

    @property
    def tight(self) -> bool:
        """Whether freed memory has to go back to the system at once, which takes time."""
        return any(fit.tight for fit in self.memory_fits)

    @property
    def row_tokens(self) -> int:
        return self.recipe.row_tokens

    def of_stage(self, stage: StageConfig) -> "StageSamples":
        """The samples as `stage` weighs them: one of the old as much as one of the new."""
        train = self.train.by_length(stage.length_weight)
        replay = self.replay and self.replay.by_length(stage.length_weight)
        return StageSamples(
            train,
            replay and replay.weighing(train.mean_weight),
            self.held_out.by_length(stage.length_weight),
        )


@dataclass(frozen=True, slots=True)
class StageSamples:
    """What a stage learns from and is judged by."""

    train: Samples
    replay: Samples | None
    held_out: Samples


def prepare(
    recipe: FinetuneConfig,
    train: Dataset,
    held_out: Sequence[Example],
    *,
    allow_bad: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Reads `train` and `held_out` as the base reads them, and chooses what `recipe` leaves open.

    Raises ModelError where the base cannot be loaded, DataError where more than 1 % of the
    examples cannot be trained on, RecipeError for a recipe that does not fit the base.
    """
    parameters = sum(tensor.elements for tensor in tensors(resolve_model(recipe.model)))
    plan = plan_load(
        recipe.model,
        quantization=_form(recipe, parameters),
        four_bit_hint="in 4-bit (--set method=qlora)",
    )
    processor, tokenizer = processor_of(plan)
    reader = Reader(plan.name, plan.kind, processor, tokenizer, plan.kind != "text")
    text_config = plan.config.get_text_config()
    encoder = ExampleEncoder(reader, shares=packs(text_config))
    context = context_length(plan.config, tokenizer)
    limit = recipe.row_tokens or min(context, LONGEST)
    say(f"reading {len(train.examples) + len(held_out)} conversations as {plan.name} does")
    encoded = encoder.encodings(train.examples, limit)
    asked = encoder.encodings(held_out, limit)
    problems = encoded.problems + asked.problems
    _check_bad(problems, len(train.examples) + len(held_out), allow_bad)
    if not encoded.said:
        raise DataError(
            f"{train.source} holds nothing to learn from: look at `mmchat data inspect`."
        )
    own = encoder.samples(encoded, limit)
    facts = Facts(
        samples=len(own.trees),
        longest=max(encoded.longest, asked.longest),
        context=context,
        hidden=int(text_config.hidden_size),
        parameters=parameters,
        cuda=plan.device.type == "cuda",
        four_bit=plan.weight_format == "4bit",
        has_projector=plan.kind != "text" and _has_projector(plan.folder),
        own_kind=plan.kind == "visual_prefix",
        replay=has_replay(plan.folder),
    )
    chosen = resolve(recipe, facts)
    chosen = msgspec.structs.replace(chosen, base_hash=plan.weights_hash)
    prepared = Prepared(
        recipe=chosen,
        plan=plan,
        reader=reader,
        train=encoder.samples(encoded, chosen.row_tokens),
        held_out=_first(encoder.samples(asked, chosen.row_tokens)),
        replay=_replay(chosen, plan, encoder, say),
        held_out_examples=_askable(asked, context),
        problems=problems,
        shortened=encoded.shortened + asked.shortened,
        parameters=parameters,
    )
    return fit_to_memory(prepared)


def _has_projector(folder: Path) -> bool:
    # No module of a projector lies inside the text blocks, so their name does not matter here.
    return any(nf4.part_of(tensor.name, "-") == "projector" for tensor in tensors(folder))


def _form(recipe: FinetuneConfig, parameters: int) -> Quantization:
    """How the base is kept while it is trained; "auto" is 4-bit where that can be had."""
    methods = {stage.method for stage in recipe.stages}
    cuda = torch.cuda.is_available()
    if starts_four_bit(recipe, cuda=cuda, parameters=parameters):
        return "4bit" if "qlora" in methods else "auto"
    fast = nf4.compute_dtype(torch.device("cuda" if cuda else "cpu"))
    return "bf16" if fast is torch.bfloat16 and "full" not in methods else "fp32"


def _askable(asked: EncodedExamples, context: int) -> list[Example]:
    """What of the held-out examples could be read, and leaves room for an answer."""
    return [
        replace(said.example, turns=said.turns)
        for said in asked.said
        if len(said.tokens) + NEW_TOKENS <= context
    ]


def _check_bad(problems: Sequence[Problem], whole: int, allow_bad: bool) -> None:
    if not problems or allow_bad or len(problems) <= 0.01 * whole:
        return
    shown = "; ".join(f"{problem.place}: {problem.why}" for problem in problems[:3])
    raise DataError(
        f"{len(problems)} of {whole} conversations cannot be trained on ({shown}): mend them, or leave "
        "them out with --allow-bad."
    )


def _replay(
    recipe: FinetuneConfig,
    plan: LoadPlan,
    encoder: ExampleEncoder,
    say: Callable[[str], None],
) -> Samples | None:
    """Old material of the base."""
    if not recipe.data.replay:
        return None
    if not has_replay(plan.folder):
        raise RecipeError(
            f"data.replay = {recipe.data.replay}, and {plan.name} brings no old material of its own: set "
            "it to 0, and add answers that were good before to the data."
        )
    # Each is seen about twice.
    wanted = sum(s.steps * s.batch for s in recipe.stages) * recipe.data.replay / 2
    say("drawing old material, so that what the base knows is not forgotten")
    data = read_data(replay_data(plan.folder, int(wanted)))
    encoded: EncodedExamples = encoder.encodings(data.examples, recipe.row_tokens)
    return encoder.samples(encoded, recipe.row_tokens)


def _first(samples: Samples) -> Samples:
    """The first ones: what is looked at while training goes on."""
    return Samples(
        samples.trees[:HELD_OUT_SAMPLES], samples.places[:HELD_OUT_SAMPLES], samples.pictures
    )
