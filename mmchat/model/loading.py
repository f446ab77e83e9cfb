"""A model folder becomes a model that answers: 4-bit, on the right device, checked."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmchat.errors import ModelError
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.checkpoint import FileStamps, file_stamps
from mmchat.model.encoding import answer_end
from mmchat.model.hf_vlm import load_processor
from mmchat.model.machine import Form
from mmchat.model.malloc import eager_trim
from mmchat.model.pictures import PixelCache
from mmchat.model.planning import (
    Kind,
    Plan,
    auto_class,
    check_memory,
    foreign,
    plan_load,
    reason,
)
from mmchat.model.quantization import PartReport
from mmchat.settings import Device, Quantization

__all__ = ["LoadedModel", "PartReport", "load_model", "resolve_model"]

Progress = Callable[[str, float], None]
"""Called with a stage ("reading", "quantizing", "ready") and a fraction of the whole, 0 to 1."""


@dataclass
class LoadedModel:
    """A base in memory, without any adapter, and what the engine has to know of it.

    `folder` is where its files are.
    """

    name: str
    kind: Kind
    model: Any
    processor: Any
    tokenizer: Any
    device: torch.device
    compute_dtype: torch.dtype
    quantization: Form
    context_length: int
    eos_token_ids: frozenset[int]
    vision: bool
    weights_hash: str
    folder: Path
    parts: list[PartReport] = field(default_factory=list)
    files: FileStamps = field(default_factory=dict, repr=False)
    """What the files were when they were read; `is_current` compares."""
    pixels: PixelCache = field(default_factory=PixelCache, repr=False)
    """Pictures of earlier turns, of models whose picture inputs are small."""

    @property
    def memory_bytes(self) -> int:
        """What the weights take."""
        return sum(part.bytes for part in self.parts)

    def is_current(self) -> bool:
        """Whether the files on the disk are still those that were loaded."""
        return file_stamps(self.folder) == self.files


def load_model(
    name: str,
    *,
    quantization: Quantization = "auto",
    device: Device = "auto",
    progress: Progress | None = None,
) -> LoadedModel:
    """Loads the model `name` (built-in, installed, or a folder) from this machine only.

    `auto` is 4-bit wherever bitsandbytes works, else the compute dtype. After
    loading it is asserted that every linear layer of the text model's blocks is
    4-bit and that nothing else is.

    Raises ModelError if the model cannot be found, read, trusted or held in memory.
    """
    tell = progress or (lambda stage, fraction: None)
    tell("reading", 0.0)
    plan = plan_load(name, quantization=quantization, device=device)
    return load_planned(plan, tell)


def load_planned(plan: Plan, tell: Progress) -> LoadedModel:
    """Does what `plan` says; raises as `load_model` does."""
    check_memory(plan.folder, plan.form, plan.dtype, plan.device, plan.name, 0, plan.smaller)
    model = _load_weights(plan, tell)
    if plan.form == "4bit":
        nf4.assert_four_bit(model, plan.name)
        # The packed kernel computes in bfloat16, whatever it is asked for.
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
        quantization=plan.form,
        context_length=context_length(model.config, tokenizer),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        vision=plan.kind != "text",
        weights_hash=plan.weights_hash,
        folder=plan.folder,
        parts=nf4.report(model),
        files=plan.files,
    )
    tell("ready", 1.0)
    return loaded


def _load_weights(plan: Plan, tell: Progress) -> nn.Module:
    options: dict[str, Any] = {}
    with foreign(plan.name), eager_trim():
        if plan.skeleton is not None:
            options["quantization_config"] = nf4.bitsandbytes_config(plan.skeleton, plan.dtype)
        with told_progress("quantizing" if plan.form == "4bit" else "reading", tell):
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
def told_progress(stage: str, tell: Progress) -> Iterator[None]:
    """Turns transformers' own progress bar over the tensors into calls of `tell`."""
    from transformers.utils import logging

    def hook(factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        things = args[0] if args else options.get("iterable")
        if things is None or not hasattr(things, "__len__"):
            return factory(*args, **{**options, "disable": True})
        return _counted(things, stage, tell)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _counted(things: Any, stage: str, tell: Progress) -> Iterator[Any]:
    whole = max(len(things), 1)
    for number, thing in enumerate(things):
        tell(stage, 0.05 + 0.9 * number / whole)
        yield thing


def processor_of(plan: Plan) -> tuple[Any, Any]:
    """(the processor, or None for a text model; the tokenizer, with the chat template)"""
    from transformers import AutoTokenizer

    folder, kind, raw = plan.folder, plan.kind, plan.raw
    if kind == "hf_vlm":
        processor = load_processor(folder, raw["model_type"])
    elif kind == "visual_prefix":
        from mmchat.model.processor import VisualPrefixProcessor

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
        # As above: foreign files, read by many classes.
        raise ModelError(
            f"The {what} of {folder} cannot be loaded ({reason(error)}): fetch the model again."
        ) from error


def context_length(config: Any, tokenizer: Any) -> int:
    """Tokens that a model of `config` can take."""
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
    """Every token that ends an answer: of the files, and what the chat template writes there."""
    found: set[int] = set()
    text = model.config.get_text_config()
    for source in (model.generation_config, text, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    with contextlib.suppress(ModelError):
        # A template that fails is told when somebody talks to the model, not when it is loaded.
        end = answer_end(tokenizer)
        if end is not None:
            found.add(end)
    return frozenset(int(token) for token in found)
