"""From a model folder to a model that answers: 4-bit, on the right device, checked."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmchat.errors import ModelError
from mmchat.memory.machine import eager_trim
from mmchat.model import quantization as nf4
from mmchat.model.load_plan import (
    LoadPlan,
    auto_class,
    check_memory,
    checkpoint_errors,
    describe_checkpoint_error,
    plan_load,
)
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.processor import VisualPrefixProcessor, load_processor
from mmchat.prompt.chat_encoding import answer_end
from mmchat.settings import Device, Quantization

LoadProgress = Callable[[str, float], None]
"""Called with a stage ("reading", "quantizing", "ready"; "writing" in a merge) and the fraction done, 0 to 1."""


def load_model(
    name: str,
    *,
    quantization: Quantization = "auto",
    device: Device = "auto",
    progress: LoadProgress = lambda stage, fraction: None,
) -> LoadedModel:
    """Loads the model `name` (built-in, installed, or a folder) from this machine only.

    `auto` is 4-bit if bitsandbytes works on the device, else the compute dtype. After a 4-bit load it is
    asserted that every linear layer of the text model's blocks is 4-bit and that nothing else is.

    Raises ModelError if the model cannot be found, read, trusted or held in memory.
    """
    progress("reading", 0.0)
    plan = plan_load(name, quantization=quantization, device=device)
    return load_planned(plan, progress)


def load_planned(plan: LoadPlan, progress: LoadProgress) -> LoadedModel:
    """Carries out `plan`; raises as `load_model` does."""
    check_memory(
        plan.folder, plan.weight_format, plan.dtype, plan.device, plan.name, plan.four_bit_hint
    )
    model = _load_weights(plan, progress)
    if plan.weight_format == "4bit":
        nf4.assert_four_bit(model, plan.name)
        # The packed kernel always computes in bfloat16.
        nf4.set_packing(model, allowed=plan.dtype is torch.bfloat16)
    processor, tokenizer = processor_of(plan)
    loaded = LoadedModel(
        name=plan.name,
        kind=plan.kind,
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        device=plan.device,
        compute_dtype=plan.dtype,
        quantization=plan.weight_format,
        context_length=context_length(model.config, tokenizer),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        vision=plan.kind != "text",
        weights_hash=plan.weights_hash,
        folder=plan.folder,
        parts=nf4.report(model),
        files=plan.files,
    )
    progress("ready", 1.0)
    return loaded


def _load_weights(plan: LoadPlan, progress: LoadProgress) -> nn.Module:
    options: dict[str, Any] = {}
    with checkpoint_errors(plan.name), eager_trim():
        if plan.skeleton is not None:
            options["quantization_config"] = nf4.bitsandbytes_config(plan.skeleton, plan.dtype)
        with loading_progress(
            "quantizing" if plan.weight_format == "4bit" else "reading", progress
        ):
            model, info = auto_class(plan.kind).from_pretrained(
                plan.folder,
                config=plan.config,
                dtype=plan.dtype,
                device_map={"": plan.device},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"The weights of {plan.name} are incomplete: {len(missing)} tensors are missing, the first "
            f"of them {missing[0]}. Fetch the model again."
        )
    model = cast(nn.Module, model.eval())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextlib.contextmanager
def loading_progress(stage: str, progress: LoadProgress) -> Iterator[None]:
    """Turns transformers' own progress bar over the tensors into calls of `progress`."""
    from transformers.utils import logging

    def hook(factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        things = args[0] if args else options.get("iterable")
        if things is None or not hasattr(things, "__len__"):
            return factory(*args, **{**options, "disable": True})
        return counted(things)

    def counted(things: Any) -> Iterator[Any]:
        whole = max(len(things), 1)
        for number, thing in enumerate(things):
            progress(stage, 0.05 + 0.9 * number / whole)
            yield thing

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def processor_of(plan: LoadPlan) -> tuple[Any, Any]:
    """(the processor, or None for a text model; the tokenizer, with the chat template)"""
    from transformers import AutoTokenizer

    folder, kind, raw = plan.folder, plan.kind, plan.raw
    if kind == "hf_vlm":
        processor = load_processor(folder, raw["model_type"])
    elif kind == "visual_prefix":
        processor = _loaded(VisualPrefixProcessor, folder, "processor")
    else:
        return None, _loaded(AutoTokenizer, folder, "tokenizer")
    tokenizer = processor.tokenizer
    if processor.chat_template:
        tokenizer.chat_template = processor.chat_template
    return processor, tokenizer


def _loaded(auto: Any, folder: Path, what: str) -> Any:
    try:
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Every class reads its files in its own way: any failure is reported.
        raise ModelError(
            f"The {what} of {folder} cannot be loaded ({describe_checkpoint_error(error)}): fetch the model again."
        ) from error


def context_length(config: Any, tokenizer: Any) -> int:
    """The longest conversation of a model with `config`, in tokens."""
    text = config.get_text_config()
    limits = [
        int(limit)
        for limit in (
            getattr(text, "max_position_embeddings", None),
            getattr(tokenizer, "model_max_length", None),
        )
        # transformers writes a number beyond 10**9 for "no limit"
        if isinstance(limit, int) and 0 < limit < 10**9
    ]
    return min(limits, default=4096)


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: those in the files, and the one that the chat template writes."""
    found: set[int] = set()
    text = model.config.get_text_config()
    for source in (model.generation_config, text, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    with contextlib.suppress(ModelError):
        # A template that fails is reported when a person talks to the model, not when it is loaded.
        end = answer_end(tokenizer)
        if end is not None:
            found.add(end)
    return frozenset(int(token) for token in found)
