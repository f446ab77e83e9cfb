"""Prepares a run from data and a recipe: encodes the data and makes all choices, without loading weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from mmchat.data import read_data
from mmchat.data.types import Dataset, Example, Problem
from mmchat.errors import DataError, RecipeError
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.load_plan import LoadPlan, plan_load
from mmchat.model.loading import context_length, processor_of
from mmchat.model_files import tensors
from mmchat.settings import Quantization
from mmchat.training.encode import EncodedExamples, ExampleEncoder, Samples
from mmchat.training.finetune_config import (
    FinetuneConfig,
    RunInfo,
    resolve,
    should_quantize,
)
from mmchat.training.fit_to_memory import fit_to_memory
from mmchat.training.packing import can_pack
from mmchat.training.prepared_run import BasePreprocessor, PreparedRun
from mmchat.training.replay import has_replay, replay_data
from mmchat.training.validation import MAX_NEW_TOKENS

DEFAULT_MAX_TOKENS = 4096
"""The maximum tokens of a conversation, unless the recipe sets another limit or the context is smaller."""
VALIDATION_SAMPLES = 128
"""How many held-out samples are used for validation during training."""


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
        preprocessor=preprocessor,
        train=encoder.build_samples(encoded, resolved.row_tokens),
        held_out=_first(encoder.build_samples(encoded_held_out, resolved.row_tokens)),
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
    recipe: FinetuneConfig,
    plan: LoadPlan,
    encoder: ExampleEncoder,
    say: Callable[[str], None],
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


def _first(samples: Samples) -> Samples:
    """The first samples, for validation during training."""
    return Samples(
        samples.trees[:VALIDATION_SAMPLES], samples.places[:VALIDATION_SAMPLES], samples.pictures
    )
