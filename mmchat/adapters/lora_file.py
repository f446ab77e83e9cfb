"""Reads the files of a stock peft LoRA adapter, without torch and without trusting them.

    adapter_config.json          ranks, scales, rsLoRA, DoRA
    adapter_model.safetensors    which layers, by the names of their tensors

Which layers change, and their ranks, is read from the header of the weights, so the size of that file
bounds the memory. The configuration only sets the scales. Its patterns are never run as regular
expressions, because a malicious one could run for ever.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmchat.adapters.card import LORA_CONFIG, LORA_WEIGHTS
from mmchat.errors import AdapterError, ModelError
from mmchat.field_errors import explain
from mmchat.model_files import TensorInfo, read_header

HEAD = "lm_head"
"""The only layer outside the text model's blocks that may have LoRA."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_MAX_CONFIG_BYTES = 1 << 20
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<path>[\w.]+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?)"
)
_PLAIN = re.compile(r"[\w.]+")
# Options that change the structure of the model, which detaching could not undo.
_STRUCTURAL_OPTIONS = ("layer_replication", "target_parameters", "trainable_token_indices")
# Initializations that also change the base's weights, which the files do not contain.
_INIT_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
# Options without effect on inference.
_IGNORED_OPTIONS = frozenset(
    {
        *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
        *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform"),
        *("layers_pattern", "lora_dropout", "fan_in_fan_out", "bias", "runtime_config"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "qalora_group_size", "ensure_weight_tying"),
    }
)

_T = TypeVar("_T", int, float)


class LoraConfig(msgspec.Struct, frozen=True):
    """The fields of adapter_config.json that affect inference."""

    peft_type: str
    r: int = 8
    lora_alpha: float = 8.0
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = False
    use_dora: bool | None = False
    lora_bias: bool | None = False
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None


class LoraLayer(msgspec.Struct, frozen=True):
    """The LoRA of one linear layer with `inputs` and `outputs` features."""

    inputs: int
    outputs: int
    rank: int
    scale: float
    """alpha / rank, with rsLoRA alpha / sqrt(rank)."""
    dora: bool
    """Whether it has a magnitude per output (Liu et al. 2024, "DoRA")."""
    bias: bool


class LoraFile(msgspec.Struct, frozen=True):
    """A validated LoRA adapter."""

    layers: dict[str, LoraLayer]
    """By the layer's name in the model that was trained."""
    keys: dict[str, tuple[str, str]]
    """By tensor name: (the layer's name, "A", "B", "bias" or "magnitude")."""


def read_lora_file(folder: Path) -> LoraFile:
    """Reads the configuration and the header of the weights in `folder`.

    Raises AdapterError if they cannot be read, do not agree, or describe anything but LoRA, rsLoRA or
    DoRA of linear layers.
    """
    config = _read_config(folder)
    file = folder / LORA_WEIGHTS
    keys: dict[str, tuple[str, str]] = {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor in float_tensors(file):
        match = _KEY.fullmatch(tensor.name)
        if match is None:
            raise AdapterError(
                f"{file} holds {tensor.name[:200]!r}, which is not LoRA of a linear layer: train LoRA "
                "on the linear layers of the language model only."
            )
        part = _part(match["part"])
        keys[tensor.name] = (match["path"], part)
        shapes.setdefault(match["path"], {})[part] = tensor.shape
    if not shapes:
        raise AdapterError(f"{file} has no weights: save the adapter again.")
    ranks = {path: next(iter(parts.get("A", ())), 0) for path, parts in shapes.items()}
    if _by_layer(config.rank_pattern, ranks, config.r, folder) != ranks:
        raise _inconsistent(file)
    alphas = _by_layer(config.alpha_pattern, ranks, config.lora_alpha, folder)
    layers: dict[str, LoraLayer] = {}
    for path, parts in shapes.items():
        rank = ranks[path]
        layer = LoraLayer(
            inputs=parts["A"][1] if len(parts.get("A", ())) == 2 else 0,
            outputs=parts["B"][0] if len(parts.get("B", ())) == 2 else 0,
            rank=rank,
            scale=alphas[path] / (math.sqrt(rank) if config.use_rslora else max(rank, 1)),
            dora=bool(config.use_dora),
            bias=bool(config.lora_bias),
        )
        expected: dict[str, tuple[int, ...]] = {
            "A": (rank, layer.inputs),
            "B": (layer.outputs, rank),
        }
        if layer.dora:
            expected["magnitude"] = (layer.outputs,)
        if layer.bias:
            expected["bias"] = (layer.outputs,)
        if parts != expected or min(rank, layer.inputs, layer.outputs) < 1:
            raise _inconsistent(file)
        layers[path] = layer
    return LoraFile(layers, keys)


def float_tensors(file: Path) -> list[TensorInfo]:
    """The tensors in the header of a safetensors file; raises AdapterError if any is not floating-point."""
    try:
        tensors = read_header(file)
    except ModelError as error:
        raise AdapterError(str(error)) from error
    for tensor in tensors:
        if tensor.dtype not in _FLOATS:
            raise AdapterError(
                f"{file} cannot be used ({tensor.name[:200]!r} has the dtype {tensor.dtype[:20]!r}): save "
                "the adapter's weights as floating-point numbers."
            )
    return tensors


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, from the header of a safetensors file; raises AdapterError."""
    return {tensor.name: tensor.shape for tensor in float_tensors(file)}


def _read_config(folder: Path) -> LoraConfig:
    file = folder / LORA_CONFIG
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MB")
        raw = json.loads(file.read_text(encoding="utf-8"))
        config = msgspec.convert(raw, LoraConfig)
        if not math.isfinite(config.lora_alpha) or config.r < 1:
            raise ValueError("its rank must be above 0 and its lora_alpha a finite number")
        if not all(map(math.isfinite, (config.alpha_pattern or {}).values())):
            raise ValueError("a value in its alpha_pattern is not a finite number")
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be read ({error.strerror}): save the adapter again."
        ) from error
    except (ArithmeticError, ValueError, RecursionError) as error:
        problem = explain(error) if isinstance(error, msgspec.ValidationError) else str(error)
        reason = " ".join(problem.split())[:200]
        raise AdapterError(f"{file} cannot be used ({reason}): save the adapter again.") from error
    _refuse_unsupported(config, raw, folder)
    return config


def _refuse_unsupported(config: LoraConfig, raw: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError if the configuration describes more than LoRA, rsLoRA or DoRA."""
    if config.peft_type != "LORA":
        raise AdapterError(
            f"{folder} is not a LoRA adapter, and mmchat supports no other kind: choose another adapter."
        )
    if config.modules_to_save:
        raise AdapterError(
            f"{folder} has whole modules besides LoRA (modules_to_save), which would replace parts of "
            "the base: save it without them, and a projector as projector.safetensors."
        )
    if changed := [name for name in _STRUCTURAL_OPTIONS if raw.get(name)]:
        raise AdapterError(
            f"{folder} changes more than the layers that it targets ({', '.join(changed)}): train LoRA "
            "on linear layers only."
        )
    init = str(config.init_lora_weights).lower()
    if init.startswith(_INIT_CHANGES_BASE):
        raise AdapterError(
            f"{folder} was initialized with {init[:20]}, which changes the base's weights: convert it to "
            "plain LoRA (path_initial_model_for_weight_conversion of peft's save_pretrained)."
        )
    known = _IGNORED_OPTIONS | set(LoraConfig.__struct_fields__)
    if other := sorted(key for key, value in raw.items() if value and key not in known):
        raise AdapterError(
            f"{folder} uses options that mmchat does not support ({', '.join(other)[:200]}): train plain "
            "LoRA, rsLoRA or DoRA."
        )


def _part(name: str) -> str:
    if name.startswith("lora_magnitude_vector"):
        return "magnitude"
    return {"lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "bias"}[name]


def _by_layer(
    pattern: dict[str, _T] | None, paths: Iterable[str], default: _T, folder: Path
) -> dict[str, _T]:
    """The value of each layer: that of the first key that is the layer's name or a suffix of it."""
    pattern = pattern or {}
    if not all(_PLAIN.fullmatch(key) for key in pattern):
        raise AdapterError(
            f"{folder / LORA_CONFIG} has regular expressions in rank_pattern or alpha_pattern, which "
            "are never run: write the layers' names instead."
        )
    order = {key: number for number, key in enumerate(pattern)}
    values: dict[str, _T] = {}
    for path in paths:
        words = path.split(".")
        suffixes = [".".join(words[number:]) for number in range(len(words))]
        first = min((s for s in suffixes if s in order), key=order.__getitem__, default=None)
        values[path] = default if first is None else pattern[first]
    return values


def _inconsistent(file: Path) -> AdapterError:
    return AdapterError(f"{file} does not match its {LORA_CONFIG}: save the adapter again.")
