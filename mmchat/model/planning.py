"""What a load would do, checked before it takes any memory."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from mmchat.display.numbers import format_size
from mmchat.errors import ModelError
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.checkpoint import (
    FileStamps,
    file_stamps,
    read_config,
    weight_files,
    weights_hash,
)
from mmchat.model.machine import Form, Machine, available_memory, own_memory
from mmchat.model.memory_fit import IMPORTS, chat_fit
from mmchat.model.model_dims import UnknownModelError, read_dims
from mmchat.settings import Device, Quantization

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

Kind = Literal["visual_prefix", "hf_vlm", "text"]
SMALLER = "with --quantization 4bit"
"""How a person who asks a model has it in 4-bit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A load of which everything was checked that can be before it takes memory."""

    name: str
    folder: Path
    raw: dict[str, Any]
    """config.json"""
    kind: Kind
    config: Any
    form: Form
    dtype: torch.dtype
    device: torch.device
    skeleton: nn.Module | None
    """The model on the meta device, where it becomes 4-bit."""
    weights_hash: str
    files: FileStamps
    smaller: str = SMALLER


def plan_load(
    name: str,
    *,
    quantization: Quantization = "auto",
    device: Device = "auto",
    replaced: "LoadedModel | None" = None,
    smaller: str = SMALLER,
) -> Plan:
    """Checks a load without doing it, so that a wrong one costs nothing that is loaded.

    `replaced` will be gone by then, so that its memory counts as free. `smaller` says how a person has
    it in 4-bit. Raises as `load_model` does.
    """
    folder = resolve_model(name)
    raw = read_config(folder)
    weight_files(folder)
    files = file_stamps(folder)
    where = _device(device)
    form, dtype = _form(quantization, where, raw, name)
    kind, config = _configuration(folder, raw)
    skeleton = _skeleton(config, kind, name) if form == "4bit" else None
    freed = 0
    if replaced is not None and replaced.device.type == where.type:
        freed = replaced.memory_bytes
    check_memory(folder, form, dtype, where, name, freed, smaller)
    digest = weights_hash(folder)
    return Plan(
        name,
        folder,
        raw,
        kind,
        config,
        form,
        dtype,
        where,
        skeleton,
        digest,
        files,
        smaller,
    )


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
) -> tuple[Form, torch.dtype]:
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
        return _plain(fast), fast
    if wanted == "4bit":
        if not nf4.works(device):
            raise ModelError(
                f"bitsandbytes does not work on this machine's {device.type} device, so nothing can "
                "be 4-bit: set model.quantization to auto."
            )
        return "4bit", fast
    return wanted, (torch.bfloat16 if wanted == "bf16" else torch.float32)


def _plain(dtype: torch.dtype) -> Form:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def check_memory(
    folder: Path,
    form: Form,
    dtype: torch.dtype,
    device: torch.device,
    name: str,
    freed: int = 0,
    smaller: str = SMALLER,
) -> None:
    """Raises ModelError if there is too little memory to load the model and to talk with it."""
    try:
        fit = chat_fit(read_dims(folder), machine_of(device, dtype, freed), form)
    except UnknownModelError:
        return
    if not fit.fits:
        smaller = "" if form == "4bit" else f" {smaller}, or"
        raise ModelError(
            f"{name} needs about {format_size(fit.needed_bytes)} of memory and {format_size(fit.machine.free)} are "
            f"free: close other programs, load it{smaller} on a larger machine, or choose a smaller model."
        )


def machine_of(device: torch.device, dtype: torch.dtype, freed: int = 0) -> Machine:
    """What a load on `device` finds; `freed` bytes of this process are given up before it."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Machine("cuda", free + cached + freed, dtype.itemsize)
    # What this process has imported is not free any more, and is part of the estimate.
    reused = min(own_memory(), IMPORTS + freed)
    return Machine("cpu", available_memory() + reused, dtype.itemsize)


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
        kind = "hf_vlm"
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
            f"{folder / 'config.json'} cannot be used ({reason(error)}): fetch the model again."
        ) from error
    return kind, config


def auto_class(kind: Kind) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText


@contextlib.contextmanager
def foreign(name: str) -> Iterator[None]:
    """Turns whatever a foreign checkpoint raises into ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ModelError(
                f"The memory ran out while {name} was loaded: close other programs or choose a "
                "smaller model."
            ) from error
        # It fails in as many ways as there are architectures.
        raise ModelError(
            f"{name} cannot be loaded ({reason(error)}): fetch the model again, or choose another."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On a CPU torch raises a bare RuntimeError, so its words decide."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in words or "not enough memory" in words
    )


def _skeleton(config: Any, kind: Kind, name: str) -> nn.Module:
    """The model on the meta device, without weights."""
    with foreign(name):
        nf4.import_bitsandbytes()  # before transformers does, which would let it fetch code
        with torch.device("meta"):
            return cast(nn.Module, auto_class(kind).from_config(config))


def reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, json.JSONDecodeError):
        text = f"invalid JSON: {text}"
    return text[:240] or type(error).__name__
