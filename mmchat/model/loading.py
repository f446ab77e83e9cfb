"""A model folder becomes a model that answers: 4-bit, on the right device, checked."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from mmchat.errors import ModelError
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.checkpoint import (
    available_memory,
    estimate_memory,
    read_config,
    weight_files,
    weights_hash,
)
from mmchat.model.encoding import answer_end
from mmchat.model.quantization import PartReport
from mmchat.model.stock import load_processor
from mmchat.settings import Device, Quantization

__all__ = ["LoadedModel", "PartReport", "load_model", "resolve_model"]

Kind = Literal["visual_prefix", "stock", "text"]
Progress = Callable[[str, float], None]
"""Called with a stage ("reading", "quantizing", "ready") and a fraction of the whole, 0 to 1."""


@dataclass
class LoadedModel:
    """A model in memory, and what the engine has to know of it.

    `weights_hash` is the base's, `adapter_hash` the adapter's ("" for none);
    `folder` is where the base came from.
    """

    name: str
    kind: Kind
    model: Any
    processor: Any
    tokenizer: Any
    device: torch.device
    compute_dtype: torch.dtype
    quantization: Literal["4bit", "bf16", "fp32"]
    context_length: int
    eos_token_ids: frozenset[int]
    vision: bool
    weights_hash: str
    folder: Path
    parts: list[PartReport] = field(default_factory=list)
    adapter: str = ""
    adapter_hash: str = ""
    base_projector: dict[str, torch.Tensor] | None = field(default=None, repr=False)
    """The base's own projector while an adapter's stands in its place."""

    @property
    def memory_bytes(self) -> int:
        """What the weights take."""
        return sum(part.bytes for part in self.parts)


def load_model(
    name: str,
    *,
    adapter: str = "",
    quantization: Quantization = "auto",
    device: Device = "auto",
    progress: Progress | None = None,
) -> LoadedModel:
    """Loads the model `name` (built-in, installed, or a folder) from this machine only.

    `auto` is 4-bit wherever bitsandbytes works, else the compute dtype. After
    loading it is asserted that every linear layer of the text model's blocks is
    4-bit and that nothing else is.

    Raises ModelError where the model cannot be found, read, trusted or held in
    memory; AdapterError as `apply_adapter` does.
    """
    tell = progress or (lambda stage, fraction: None)
    tell("reading", 0.0)
    folder = resolve_model(name)
    raw = read_config(folder)
    weight_files(folder)
    where = _device(device)
    form, dtype = _form(quantization, where, raw, name)
    _check_memory(folder, form, dtype, where, name)
    kind, config = _configuration(folder, raw)
    model = _load_weights(folder, config, kind, form, dtype, where, name, tell)
    if form == "4bit":
        nf4.assert_four_bit(model, name)
    processor, tokenizer = _processor(folder, kind, raw)
    loaded = LoadedModel(
        name=name,
        kind=kind,
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        device=where,
        compute_dtype=dtype,
        quantization=form,
        context_length=_context_length(model, tokenizer),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        vision=kind != "text",
        weights_hash=weights_hash(folder),
        folder=folder,
        parts=nf4.report(model),
    )
    if adapter:
        from mmchat.model.applying import apply_adapter

        apply_adapter(loaded, adapter)
    tell("ready", 1.0)
    return loaded


def _device(wanted: Device) -> torch.device:
    cuda = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if wanted == "cuda" and not cuda:
        raise ModelError("There is no CUDA device here: set model.device to auto or cpu.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ModelError("There is no MPS device here: set model.device to auto or cpu.")
    return torch.device(wanted)


def _form(
    wanted: Quantization, device: torch.device, raw: dict[str, Any], name: str
) -> tuple[Literal["4bit", "bf16", "fp32"], torch.dtype]:
    """(how the weights are kept, the dtype that is computed in)"""
    if raw.get("quantization_config"):
        raise ModelError(
            f"{name} is published in a quantized form of its own: choose its unquantized original, "
            "which mmchat makes 4-bit as it loads it."
        )
    fast = nf4.compute_dtype(device)
    if wanted == "auto":
        if nf4.works(device):
            return "4bit", fast
        return ("bf16" if fast == torch.bfloat16 else "fp32"), fast
    if wanted == "4bit":
        if not nf4.works(device):
            raise ModelError(
                f"bitsandbytes does not work on this machine's {device.type} device, so nothing can "
                "be 4-bit: set model.quantization to auto."
            )
        return "4bit", fast
    return wanted, (torch.bfloat16 if wanted == "bf16" else torch.float32)


def _check_memory(
    folder: Path, form: str, dtype: torch.dtype, device: torch.device, name: str
) -> None:
    needed = estimate_memory(folder, form == "4bit", dtype.itemsize)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > free:
        smaller = "" if form == "4bit" else " with --quantization 4bit, or"
        raise ModelError(
            f"{name} needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            f"close other programs, load it{smaller} on a larger machine, or choose a smaller model."
        )


def _configuration(folder: Path, raw: dict[str, Any]) -> tuple[Kind, Any]:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    model_type = raw["model_type"]
    kind: Kind
    if model_type == "visual_prefix":
        import mmchat.model.visual_prefix  # noqa: F401 (registers its classes)

        kind = "visual_prefix"
    elif model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        kind = "stock"
    elif model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = "text"
    else:
        own = " (it brings code of its own, which is never run)" if raw.get("auto_map") else ""
        raise ModelError(
            f"{folder} is of the kind {model_type!r}, which mmchat cannot run{own}: choose another "
            "model, or update transformers."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Every configuration class checks its own foreign fields: whatever fails is told.
        raise ModelError(
            f"{folder / 'config.json'} cannot be used ({_reason(error)}): fetch the model again."
        ) from error
    return kind, config


def _load_weights(
    folder: Path,
    config: Any,
    kind: Kind,
    form: str,
    dtype: torch.dtype,
    device: torch.device,
    name: str,
    tell: Progress,
) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText
    options: dict[str, Any] = {}
    try:
        if form == "4bit":
            nf4.import_bitsandbytes()
            with torch.device("meta"):
                skeleton = auto.from_config(config)
            options["quantization_config"] = nf4.bitsandbytes_config(skeleton, dtype)
        with _told("quantizing" if form == "4bit" else "reading", tell):
            model, info = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except ModelError:
        raise
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"The memory ran out while {name} was loaded: close other programs or choose a smaller "
            "model."
        ) from error
    except Exception as error:
        # A foreign checkpoint fails in as many ways as there are architectures: it is told.
        raise ModelError(
            f"{name} cannot be loaded ({_reason(error)}): fetch the model again, or choose another."
        ) from error
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"The weights of {name} are incomplete: {len(missing)} tensors are missing, the first "
            f"of them {missing[0]}. Fetch the model again."
        )
    model = cast(nn.Module, model.eval())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextlib.contextmanager
def _told(stage: str, tell: Progress) -> Iterator[None]:
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


def _processor(folder: Path, kind: Kind, raw: dict[str, Any]) -> tuple[Any, Any]:
    """(the processor, or None for a text model; the tokenizer, with the chat template)"""
    from transformers import AutoTokenizer

    if kind == "stock":
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
            f"The {what} of {folder} cannot be loaded ({_reason(error)}): fetch the model again."
        ) from error


def _context_length(model: Any, tokenizer: Any) -> int:
    text = model.config.get_text_config()
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


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, json.JSONDecodeError):
        text = f"invalid JSON: {text}"
    return text[:240] or type(error).__name__
