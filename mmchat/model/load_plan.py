"""The plan of a load: everything about it that can be checked before it takes memory."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mmchat.display.numbers import format_size
from mmchat.errors import ModelError, describe_error
from mmchat.memory.machine import Machine, WeightFormat, available_memory, own_memory
from mmchat.memory.memory_fit import IMPORTS, chat_fit
from mmchat.memory.model_dims import ModelKind, UnknownModelError, read_dims
from mmchat.model import quantization as nf4
from mmchat.model.catalogue import resolve_model
from mmchat.model.loaded_model import LoadedModel
from mmchat.model_files import FileStamps, file_stamps, read_config, weight_files, weights_hash
from mmchat.settings import Device, Quantization

FOUR_BIT_HINT = "with --quantization 4bit"
"""What a person who talks with a model does to have it in 4-bit."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A load that has been checked as far as possible without taking memory."""

    name: str
    folder: Path
    raw: dict[str, Any]
    """config.json"""
    kind: ModelKind
    config: Any
    weight_format: WeightFormat
    dtype: torch.dtype
    """The dtype in which the model computes."""
    device: torch.device
    skeleton: nn.Module | None
    """The model on the meta device; None if it does not become 4-bit."""
    weights_hash: str
    files: FileStamps
    four_bit_hint: str = FOUR_BIT_HINT


def plan_load(
    name: str,
    *,
    quantization: Quantization = "auto",
    device: Device = "auto",
    replaced: LoadedModel | None = None,
    four_bit_hint: str = FOUR_BIT_HINT,
) -> LoadPlan:
    """Checks a load without doing it, so that a wrong one does not cost the model that is loaded.

    `replaced` will be gone when the load begins, so its memory counts as free. `four_bit_hint` says in an
    error what a person does to have the model in 4-bit. Raises as `load_model` does.
    """
    folder = resolve_model(name)
    raw = read_config(folder)
    weight_files(folder)
    files = file_stamps(folder)
    target = torch_device(device)
    weight_format, dtype = _weight_format(quantization, target, raw, name)
    kind, config = _configuration(folder, raw)
    skeleton = _skeleton(config, kind, name) if weight_format == "4bit" else None
    freed = 0
    if replaced is not None and replaced.device.type == target.type:
        freed = replaced.memory_bytes
    check_memory(folder, weight_format, dtype, target, name, four_bit_hint, freed)
    return LoadPlan(
        name=name,
        folder=folder,
        raw=raw,
        kind=kind,
        config=config,
        weight_format=weight_format,
        dtype=dtype,
        device=target,
        skeleton=skeleton,
        weights_hash=weights_hash(folder),
        files=files,
        four_bit_hint=four_bit_hint,
    )


def torch_device(wanted: Device) -> torch.device:
    """The device of the setting model.device. Raises ModelError if this machine does not have it."""
    cuda = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if wanted == "cuda" and not cuda:
        raise ModelError("There is no CUDA device here: set model.device to auto or cpu.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ModelError("There is no MPS device here: set model.device to auto or cpu.")
    return torch.device(wanted)


def _weight_format(
    wanted: Quantization, device: torch.device, raw: dict[str, Any], name: str
) -> tuple[WeightFormat, torch.dtype]:
    """(how the weights are kept, the dtype in which the model computes)"""
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


def check_memory(
    folder: Path,
    weight_format: WeightFormat,
    dtype: torch.dtype,
    device: torch.device,
    name: str,
    four_bit_hint: str,
    freed: int = 0,
) -> None:
    """Raises ModelError if there is too little memory to load the model and to talk with it."""
    try:
        fit = chat_fit(read_dims(folder), machine_of(device, dtype, freed), weight_format)
    except UnknownModelError:
        return
    if not fit.fits:
        hint = "" if weight_format == "4bit" else f" {four_bit_hint}, or"
        raise ModelError(
            f"{name} needs about {format_size(fit.needed_bytes)} of memory and {format_size(fit.machine.free)} are "
            f"free: close other programs, load it{hint} on a larger machine, or choose a smaller model."
        )


def machine_of(device: torch.device, dtype: torch.dtype, freed: int = 0) -> Machine:
    """The machine as a load on `device` finds it, after this process has freed `freed` bytes."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Machine("cuda", free + cached + freed, dtype.itemsize)
    # What this process has imported is no longer free, and the estimate includes it.
    reused = min(own_memory(), IMPORTS + freed)
    return Machine("cpu", available_memory() + reused, dtype.itemsize)


def _configuration(folder: Path, raw: dict[str, Any]) -> tuple[ModelKind, Any]:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    model_type = raw["model_type"]
    kind: ModelKind
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
        # Every configuration class checks its own fields: any failure is reported.
        raise ModelError(
            f"{folder / 'config.json'} cannot be used ({describe_checkpoint_error(error)}): fetch the model again."
        ) from error
    return kind, config


def auto_class(kind: ModelKind) -> Any:
    """The class of transformers that builds a model of this kind."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText


@contextlib.contextmanager
def checkpoint_errors(name: str) -> Iterator[None]:
    """Turns whatever loading the checkpoint `name` raises into ModelError."""
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
        # Every architecture fails in its own ways.
        raise ModelError(
            f"{name} cannot be loaded ({describe_checkpoint_error(error)}): fetch the model again, or choose another."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On a CPU torch raises a bare RuntimeError, so its message decides."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in message or "not enough memory" in message
    )


def _skeleton(config: Any, kind: ModelKind, name: str) -> nn.Module:
    """The model on the meta device, without weights."""
    with checkpoint_errors(name):
        nf4.import_bitsandbytes()  # before transformers does, which would let it fetch code
        with torch.device("meta"):
            return cast(nn.Module, auto_class(kind).from_config(config))


def describe_checkpoint_error(error: Exception) -> str:
    """The message of an error that a file of a checkpoint caused, on one line."""
    text = describe_error(error, 240)
    return f"invalid JSON: {text}"[:240] if isinstance(error, json.JSONDecodeError) else text
