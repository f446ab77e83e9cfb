"""A LoRA adapter's files as stock peft writes them, read without torch and without trust.

    adapter_config.json          how strongly: ranks, scales, rsLoRA, DoRA
    adapter_model.safetensors    which layers, by the names of their tensors

Which layers change, and by how many ranks, is read from the header of the weights, so that the size
of that file bounds the memory. The configuration says how strongly, and only that: what it holds
of patterns is never run as regular expressions, for one of them can take for ever.
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
from mmchat.model_files import TensorInfo, read_header

HEAD = "lm_head"
"""The one layer outside of the text model's blocks that LoRA may stand on."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_CONFIG_LIMIT = 1 << 20
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<path>[\w.]+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_magnitude_vector(?:\.weight)?)"
)
_PLAIN = re.compile(r"[\w.]+")
# What LoRA can do beyond adding to a layer, and what taking it off could not undo.
_STRUCTURE = ("layer_replication", "target_parameters", "trainable_token_indices")
# How training began where that changed the base's weights too, which the files do not hold.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
# What says nothing about how the finished weights are used.
_NO_MATTER = frozenset(
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
    """What of adapter_config.json decides how the weights are used."""

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
    """What the files hold for one linear layer of `inputs` and `outputs` features."""

    inputs: int
    outputs: int
    rank: int
    scale: float
    """alpha / rank, with rsLoRA alpha / sqrt(rank)."""
    dora: bool
    """Whether it has a magnitude for each output (Liu et al. 2024, "DoRA")."""
    bias: bool


class LoraFile(msgspec.Struct, frozen=True):
    """A LoRA adapter whose files agree with each other."""

    layers: dict[str, LoraLayer]
    """By the layer's name in the model that was trained."""
    keys: dict[str, tuple[str, str]]
    """Of each tensor in the file: (its layer's name, "A", "B", "bias" or "magnitude")."""


def read_lora_file(folder: Path) -> LoraFile:
    """What the adapter in `folder` changes, by its configuration and the header of its weights.

    Raises AdapterError where they cannot be read, do not agree, or want more than adding to
    linear layers.
    """
    config = _read_config(folder)
    file = folder / LORA_WEIGHTS
    keys: dict[str, tuple[str, str]] = {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor in float_tensors(file):
        match = _KEY.fullmatch(tensor.name)
        if match is None:
            raise AdapterError(
                f"{file} holds {tensor.name[:200]!r}, which is no LoRA of a linear layer: train LoRA "
                "on the linear layers of the language model only."
            )
        part = _part(match["part"])
        keys[tensor.name] = (match["path"], part)
        shapes.setdefault(match["path"], {})[part] = tensor.shape
    if not shapes:
        raise AdapterError(f"{file} holds no weights: save the adapter again.")
    ranks = {path: _rank(parts) for path, parts in shapes.items()}
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
        wanted: dict[str, tuple[int, ...]] = {
            "A": (rank, layer.inputs),
            "B": (layer.outputs, rank),
        }
        if layer.dora:
            wanted["magnitude"] = (layer.outputs,)
        if layer.bias:
            wanted["bias"] = (layer.outputs,)
        if parts != wanted or min(rank, layer.inputs, layer.outputs) < 1:
            raise _inconsistent(file)
        layers[path] = layer
    return LoraFile(layers, keys)


def float_tensors(file: Path) -> list[TensorInfo]:
    """The tensors of a weights file by its header, all of them floating; raises AdapterError."""
    try:
        tensors = read_header(file)
    except ModelError as error:
        raise AdapterError(str(error)) from error
    for tensor in tensors:
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{file} cannot be read ({tensor.name[:200]!r} is of the type {tensor.dtype[:20]!r}): "
                "save the adapter's weights as floating-point numbers."
            )
    return tensors


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a weights file, by its header; raises AdapterError."""
    return {tensor.name: tensor.shape for tensor in float_tensors(file)}


def _read_config(folder: Path) -> LoraConfig:
    file = folder / LORA_CONFIG
    try:
        if file.stat().st_size > _CONFIG_LIMIT:
            raise ValueError("it is larger than 1 MB")
        raw = json.loads(file.read_text(encoding="utf-8"))
        config = msgspec.convert(raw, LoraConfig)
        if not math.isfinite(config.lora_alpha) or config.r < 1:
            raise ValueError("its rank has to be above 0 and its lora_alpha a number")
        if not all(map(math.isfinite, (config.alpha_pattern or {}).values())):
            raise ValueError("a value of its alpha_pattern is no number")
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be read ({error.strerror}): save the adapter again."
        ) from error
    except (ArithmeticError, ValueError, RecursionError, msgspec.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{file} cannot be used ({reason}): save the adapter again.") from error
    _refuse_more(config, raw, folder)
    return config


def _refuse_more(config: LoraConfig, raw: dict[str, Any], folder: Path) -> None:
    """Raises AdapterError where the configuration wants what is not plain LoRA, rsLoRA or DoRA."""
    if config.peft_type != "LORA":
        raise AdapterError(
            f"{folder} is no LoRA adapter, the one kind that mmchat runs: choose another adapter."
        )
    if config.modules_to_save:
        raise AdapterError(
            f"{folder} holds whole modules beside LoRA (modules_to_save), which would replace parts "
            "of the base: save it without, the projector as projector.safetensors."
        )
    if changed := [name for name in _STRUCTURE if raw.get(name)]:
        raise AdapterError(
            f"{folder} would change more than the layers it targets ({', '.join(changed)}): train "
            "LoRA on linear layers only."
        )
    begun = str(config.init_lora_weights).lower()
    if begun.startswith(_CHANGED_BASE):
        raise AdapterError(
            f"{folder} was trained from a base whose weights {begun[:20]} had changed: save it converted "
            "to plain LoRA (path_initial_model_for_weight_conversion of peft's save_pretrained)."
        )
    known = _NO_MATTER | set(LoraConfig.__struct_fields__)
    if other := sorted(key for key, value in raw.items() if value and key not in known):
        raise AdapterError(
            f"{folder} asks for what mmchat does not know ({', '.join(other)[:200]}): train plain LoRA, "
            "rsLoRA or DoRA."
        )


def _part(name: str) -> str:
    if name.startswith("lora_magnitude_vector"):
        return "magnitude"
    return {"lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "bias"}[name]


def _rank(parts: dict[str, tuple[int, ...]]) -> int:
    return next(iter(parts.get("A", ())), 0)


def _by_layer(
    pattern: dict[str, _T] | None, paths: Iterable[str], default: _T, folder: Path
) -> dict[str, _T]:
    """What `pattern` says of each layer: its first key that is the layer's name or the end of it."""
    pattern = pattern or {}
    if not all(_PLAIN.fullmatch(key) for key in pattern):
        raise AdapterError(
            f"{folder / LORA_CONFIG} names layers by regular expressions in rank_pattern "
            "or alpha_pattern, which are never run: write the layers' names there."
        )
    order = {key: number for number, key in enumerate(pattern)}
    found: dict[str, _T] = {}
    for path in paths:
        words = path.split(".")
        ends = [".".join(words[number:]) for number in range(len(words))]
        first = min((end for end in ends if end in order), key=order.__getitem__, default=None)
        found[path] = default if first is None else pattern[first]
    return found


def _inconsistent(file: Path) -> AdapterError:
    return AdapterError(
        f"{file} does not hold what its {LORA_CONFIG} says: save the adapter again."
    )
