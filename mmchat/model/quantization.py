"""4-bit weights: NF4 with double quantization (QLoRA, arXiv:2305.14314) by bitsandbytes.

Every linear layer inside the text model's blocks is 4-bit. The vision tower, the projector and `lm_head`
never are. This is asserted after each load.
"""

import copy
import importlib
import logging
import os
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmchat.errors import ModelError
from mmchat.memory.machine import fast_in_bfloat16
from mmchat.settings import load_settings

Part = Literal["vision tower", "projector", "text blocks", "lm_head", "other"]
PARTS: tuple[Part, ...] = ("vision tower", "projector", "text blocks", "lm_head", "other")
TEXT_PARTS: tuple[Part, ...] = ("text blocks", "lm_head", "other")
"""Everything that belongs to the text model."""
NF4 = "nf4"


@dataclass(frozen=True, slots=True)
class PartReport:
    """Layers, weights, dtype and memory (`bytes`) of a part of a loaded model."""

    part: Part
    linear_layers: int
    four_bit: int
    parameters: int
    dtype: str
    bytes: int


def import_bitsandbytes() -> ModuleType:
    """Imports bitsandbytes and prevents it from fetching code.

    On CPUs with AVX512-BF16 its import asks a package named `kernels` for a faster routine, which that
    package would download and run. Raises ImportError if bitsandbytes is not installed, OSError or
    RuntimeError if it cannot work.
    """
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    missing = object()
    before: Any = sys.modules.get("kernels", missing)
    logger.setLevel(logging.ERROR)
    loaded: dict[str, Any] = sys.modules
    loaded["kernels"] = None  # Python's own way to refuse an import
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    finally:
        logger.setLevel(level)
        if before is missing:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before
    return bitsandbytes


def works(device: torch.device) -> bool:
    """Whether bitsandbytes supports 4-bit weights on `device`; this quantizes a block to find out."""
    try:
        functional = import_bitsandbytes().functional
        functional.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
    except (ImportError, OSError, RuntimeError, NotImplementedError, AttributeError, ValueError):
        return False
    return True


def compute_dtype(device: torch.device) -> torch.dtype:
    """The setting model.compute_dtype; by default bfloat16 if `device` is fast at it, else float32.

    An AVX2 CPU takes 10 to 30 times as long in bfloat16. So this reads the CPU's flags, and what torch
    makes of them (ATEN_CPU_CAPABILITY can lower it).
    """
    chosen = load_settings().model.compute_dtype
    if chosen != "auto":
        return torch.bfloat16 if chosen == "bf16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if device.type != "cpu":
        return torch.bfloat16
    fast = fast_in_bfloat16()
    if platform.machine().lower() in {"x86_64", "amd64"}:
        fast = fast and "AVX512" in torch.backends.cpu.get_cpu_capability().upper()
    return torch.bfloat16 if fast else torch.float32


def decoder_of(model: Any) -> Any:
    """The text model inside `model`, without its head; `model` may be a text model itself."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model


def text_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, the list of blocks) of the text model inside `model`.

    Raises ModelError if none is found.
    """
    decoder = decoder_of(model)
    names = {id(module): name for name, module in model.named_modules()}
    for child in ("layers", "h", "blocks"):
        blocks = getattr(decoder, child, None)
        if isinstance(blocks, nn.ModuleList) and id(blocks) in names:
            return names[id(blocks)], blocks
    raise ModelError(
        f"{type(model).__name__} keeps its text blocks in a way that mmchat does not know: "
        "choose another model."
    )


def skipped_modules(model: nn.Module) -> list[str]:
    """The names for `llm_int8_skip_modules`: the largest modules that contain no text block.

    They are full names, because bitsandbytes' integration matches prefixes and suffixes of names. An
    explicit list replaces the default, which skips `lm_head`.
    """
    blocks, _ = text_blocks(model)

    def has_blocks(name: str) -> bool:
        return not name or blocks.startswith(name + ".")

    return [
        name
        for name, module in model.named_modules()
        if name != blocks
        and not has_blocks(name)
        and has_blocks(name.rpartition(".")[0])
        and any(isinstance(part, nn.Linear) for part in module.modules())
    ]


def bitsandbytes_config(model: nn.Module, dtype: torch.dtype) -> Any:
    """The `BitsAndBytesConfig` for `model`, which may be on the meta device."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped_modules(model),
    )


def set_packing(model: nn.Module, *, allowed: bool) -> None:
    """Sets whether bitsandbytes may repack the 4-bit layers of `model` for inference on this CPU.

    On a CPU with AVX512-BF16 it repacks a layer in place at its first forward in eval mode, and then
    computes with a kernel that has no gradient and rounds the scales to bfloat16. The kernel needs a
    multiple of 32 outputs and of 64 inputs, so layers of other sizes are never repacked. If packing is
    not allowed, layers that are already packed are unpacked and keep their rounded scales.
    """
    allowed = allowed and has_packed_kernel()
    for module in model.modules():
        if not is_four_bit(module):
            continue
        layer: Any = module
        fits = layer.out_features % 32 == 0 and layer.in_features % 64 == 0
        layer.support_avx512bf16_for_cpu = allowed and fits
        if not allowed and is_packed(layer):
            layer.weight.data, layer.weight.quant_state = _unpacked(
                layer.weight.data, layer.weight.quant_state
            )
            layer.quant_state = layer.weight.quant_state


def has_packed_kernel() -> bool:
    """Whether bitsandbytes has its kernel for packed 4-bit weights on this CPU (since 0.49)."""
    has_kernel = getattr(import_bitsandbytes().functional, "has_avx512bf16", None)
    return has_kernel is not None and bool(has_kernel())


def is_packed(layer: nn.Module) -> bool:
    """Whether a linear layer is 4-bit and repacked for inference, so that no gradient passes through it."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def dequantized_weight(layer: Any) -> Tensor:
    """The weight of a 4-bit layer as float32 (outputs, inputs)."""
    weight, state = layer.weight.data, layer.weight.quant_state
    if is_packed(layer):
        weight, state = _unpacked(weight, copy.copy(state))
    found: Tensor = import_bitsandbytes().functional.dequantize_4bit(weight, state)
    return found.float()


def _unpacked(weight: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The reverse of bitsandbytes' packing; `state` is changed.

    bitsandbytes' own reverse quantizes nested scales a second time. Here they stay unquantized, so
    nothing is lost except by the rounding to bfloat16 that packing did.
    """
    state.original_nested = False
    convert = import_bitsandbytes().functional._convert_weight_packed_for_cpu_inverse
    weight, state = convert(weight, state)
    state.absmax = state.absmax.t().reshape(-1).float()
    return weight, state


def part_of(name: str, blocks: str) -> Part:
    """Which part of a model the module or parameter `name` belongs to."""
    if name.startswith(blocks + "."):
        return "text blocks"
    words = name.split(".")
    if any(
        w in {"multi_modal_projector", "connector", "merger", "deepstack_merger_list"}
        for w in words
    ):
        return "projector"
    if any("vision" in word or word == "visual" for word in words):
        return "vision tower"
    return "lm_head" if "lm_head" in words else "other"


def part_tensors(model: nn.Module, part: Part) -> dict[str, Tensor]:
    """The parameters and buffers of a part of `model` (not copies), by their names inside it.

    Names begin below the module that contains the part. If several modules form it (the mergers of
    Qwen3-VL), names begin below the module that they have in common. Empty if there is no such part.
    """
    blocks, _ = text_blocks(model)
    roots: list[str] = []
    for path, _ in model.named_modules():
        inside = any(path.startswith(f"{root}.") for root in roots)
        if path and part_of(path, blocks) == part and not inside:
            roots.append(path)
    if not roots:
        return {}
    start = os.path.commonpath([root.replace(".", "/") for root in roots]).replace("/", ".") + "."
    return {
        f"{root}.{name}".removeprefix(start): tensor
        for root in roots
        for name, tensor in model.get_submodule(root).state_dict(keep_vars=True).items()
    }


def report(model: nn.Module) -> list[PartReport]:
    """A report for each part of `model`; a tied `lm_head` counts as part of the embedding."""
    blocks, _ = text_blocks(model)
    linear, four_bit = Counter[Part](), Counter[Part]()
    parameters, size = Counter[Part](), Counter[Part]()
    dtypes: dict[Part, set[str]] = {part: set() for part in PARTS}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            part = part_of(name, blocks)
            linear[part] += 1
            four_bit[part] += is_four_bit(module)
    for name, parameter in model.named_parameters():
        part = part_of(name, blocks)
        count, dtype = count_and_dtype(parameter)
        parameters[part] += count
        size[part] += parameter.nbytes
        dtypes[part].add(dtype)
        state = getattr(parameter, "quant_state", None)
        if dtype == NF4 and state is not None:
            size[part] += state.absmax.nbytes  # the scale of each block of 64
    return [
        PartReport(
            part,
            linear[part],
            four_bit[part],
            parameters[part],
            "+".join(sorted(dtypes[part])) or "tied to the embedding",
            size[part],
        )
        for part in PARTS
        if parameters[part] or linear[part]
    ]


def count_and_dtype(parameter: Tensor) -> tuple[int, str]:
    """(the number of its weights, their dtype); each byte of a 4-bit parameter holds two weights."""
    if type(parameter).__name__ == "Params4bit":
        return 2 * parameter.numel(), NF4
    return parameter.numel(), str(parameter.dtype).removeprefix("torch.")


def is_four_bit(module: nn.Module) -> bool:
    """Whether a linear layer's weights are 4-bit."""
    return type(getattr(module, "weight", None)).__name__ == "Params4bit"


def assert_four_bit(model: nn.Module, name: str) -> None:
    """Raises ModelError unless exactly the linear layers of the text model's blocks are 4-bit."""
    blocks, _ = text_blocks(model)
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        wanted = path.startswith(blocks + ".")
        if wanted != is_four_bit(module):
            raise ModelError(
                f"{name} did not load as mmchat promises ({path} is "
                f"{'not 4-bit' if wanted else '4-bit'}): load it with --quantization bf16, "
                "and report the model."
            )
