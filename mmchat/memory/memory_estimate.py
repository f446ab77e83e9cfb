"""How much memory talking with a model takes, estimated before anything is loaded, without torch.

This and `training_memory` are the only estimates: the engine's refusal, `mmchat doctor`, `models list`,
`models show` and `train` all use them. What is held at the peak is counted tensor by tensor, as the
forward of these models holds it; `tests/benchmarks/bench_memory.py` compares this with measured peaks. NF4
takes half a byte for each weight, and scales (Dettmers et al. 2023, "QLoRA").

Weight files are mapped into memory. The system can drop a page that was read once to be converted or
quantized, so files are not counted. Weights that stay as they are in the file count as weights if they are
read again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mmchat.memory.machine import WeightFormat
from mmchat.memory.model_dims import ModelDims

Device = Literal["cpu", "cuda"]
Phase = Literal["loading", "pictures", "answering", "forward", "backward", "update"]

_FILE_DTYPES = {2: "BF16", 4: "F32"}
"""The dtype of weights in a file that need no conversion, by the bytes of a number."""
_NF4_BLOCK, _SCALES_BLOCK = 64, 256
_NF4_TABLES = 4 * (16 + 256 + 1)
"""For each layer: the 16 values of NF4, the 256 values of its scales, and the scales' mean."""
PREFILL = 256
"""Tokens of text that the engine reads in one forward."""

# Measured on a CPU by bench_memory.
_QUANTIZING = 13
"""Bytes per weight that bitsandbytes takes in addition to the largest layer while it quantizes it."""
_PACKING = 6.5
"""The same while it repacks the layer for inference, at the first forward in bfloat16."""
FRAMEWORK: Mapping[Phase, int] = {
    "loading": 20_000_000,
    "pictures": 50_000_000,
    "answering": 50_000_000,
    "forward": 55_000_000,
    "backward": 55_000_000,
    "update": 55_000_000,
}
"""Bytes of the model's Python objects and of what libraries set up at first use, for any model."""
FRAMEWORK_BFLOAT16 = 10_000_000
"""The same for oneDNN, which multiplies in bfloat16."""
ALLOCATOR = 0.04
"""What malloc holds in addition to the memory that is in use, as a share of it."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The largest number of bytes that are held at once: in which `phase`, and for what.

    The `parts` add up to `total`. On a GPU this is what torch's allocator holds; the driver's own context
    comes on top.
    """

    total: int
    phase: Phase
    parts: dict[str, int]


def estimate_inference(
    dims: ModelDims,
    weight_format: WeightFormat,
    *,
    context: int,
    pictures: int = 1,
    itemsize: int = 2,
    device: Device = "cpu",
) -> MemoryEstimate:
    """Loading a model and talking with it: `context` tokens are held, `pictures` are encoded together.

    `itemsize` is the bytes of a number in the compute dtype.
    """
    packed = weight_format == "4bit" and device == "cpu" and itemsize == 2
    loaded = weight_bytes(dims, weight_format, itemsize, packed=packed)
    weights = resident(loaded, unread_bytes(dims, itemsize, device))
    cache = 2 * dims.layers * context * dims.kv_size * itemsize
    # A published model reads a prompt with pictures in one forward.
    read = context if dims.kind == "hf_vlm" and pictures else min(context, PREFILL)
    attention = 6 * dims.query_size
    mlp = (3 if dims.gated else 2) * dims.intermediate_size
    answering = {
        **weights,
        "attention cache": cache,
        "activations": read * (4 * dims.hidden_size + max(attention, mlp)) * itemsize,
        "attention mask": read * context * (1 + itemsize),
        "logits": 2 * 4 * dims.vocab_size,
    }
    if weight_format == "4bit":
        bytes_per_weight = _PACKING if packed else itemsize
        answering["unpacked layer"] = round(bytes_per_weight * largest_layer(dims))
    encoding = {**weights, **encoder_bytes(dims, pictures, itemsize)}
    return largest(
        {
            "loading": loading(dims, weight_format, loaded, device),
            "pictures": encoding if pictures else {},
            "answering": answering,
        },
        itemsize,
        device,
    )


def nf4_bytes(weights: int, *, packed: bool = False) -> tuple[int, int]:
    """(bytes of a 4-bit layer's weights, of its quantization state), as bitsandbytes keeps them.

    `packed`: as it keeps them for inference on a CPU in bfloat16, with scales of two bytes.
    """
    scales = math.ceil(weights / _NF4_BLOCK)
    state = scales + 4 * math.ceil(scales / _SCALES_BLOCK) + _NF4_TABLES
    return math.ceil(weights / 2), state + (scales if packed else 0)


def weight_bytes(
    dims: ModelDims, weight_format: WeightFormat, itemsize: int, *, packed: bool = False
) -> dict[str, int]:
    """Bytes of the loaded weights; `itemsize` is the bytes of a number in the compute dtype."""
    if weight_format != "4bit":
        return {"weights": itemsize * dims.parameters}
    four_bit = state = 0
    for linear in dims.linears:
        layer, beside = nf4_bytes(linear.inputs * linear.outputs, packed=packed)
        four_bit += layer * linear.count
        state += beside * linear.count
    rest = itemsize * (dims.parameters - dims.block_matrices)
    return {"weights": four_bit + rest, "quantization state": state}


def unread_bytes(dims: ModelDims, itemsize: int, device: Device, *, encoder: bool = False) -> int:
    """Bytes of loaded weights that are not in memory, because they stay in the file and are not read.

    Only the rows of an embedding whose tokens occur are read. `encoder`: the vision encoder is not read
    either.
    """
    if device != "cpu" or dims.dtype != _FILE_DTYPES[itemsize]:
        return 0  # converted, and so copied
    unread = dims.embedding if dims.head else 0
    if encoder and dims.vision is not None:
        unread += dims.vision.parameters
    return itemsize * unread


def resident(weights: Mapping[str, int], unread: int) -> dict[str, int]:
    """`weights` without the bytes that are not read."""
    return {**weights, "weights": weights["weights"] - unread}


def encoder_bytes(dims: ModelDims, pictures: int, itemsize: int) -> dict[str, int]:
    """Bytes of the vision encoder's forward for `pictures` together, without gradients."""
    vision = dims.vision
    if vision is None or not pictures:
        return {}
    patches = pictures * vision.patches
    row = (4 * vision.hidden_size + 2 * vision.intermediate_size) * itemsize
    if vision.rotary:
        # Queries and keys are rotated in float32.
        row = max(row, (5 * itemsize + 6 * 4) * vision.hidden_size)
    if vision.keeps_states:
        row += vision.layers * vision.hidden_size * itemsize
    pixel = 3 * (4 + itemsize) + (itemsize * 3 + 16 if vision.masked else 0)
    return {"encoder activations": patches * row, "pixels": patches * vision.patch_size**2 * pixel}


def largest_layer(dims: ModelDims) -> int:
    """The number of weights of the largest linear layer of the text blocks."""
    return max((linear.inputs * linear.outputs for linear in dims.linears), default=0)


def loading(
    dims: ModelDims, weight_format: WeightFormat, weights: Mapping[str, int], device: Device
) -> dict[str, int]:
    """Bytes that are held while the last layer is converted."""
    if weight_format != "4bit":
        return dict(weights)
    bytes_per_weight = _QUANTIZING if device == "cpu" else 4
    return {**weights, "unquantized layer": bytes_per_weight * largest_layer(dims)}


def largest(
    phases: Mapping[Phase, Mapping[str, int]], itemsize: int, device: Device
) -> MemoryEstimate:
    """The phase that holds the most; on a CPU including what the libraries and malloc take."""
    found: list[MemoryEstimate] = []
    for phase, parts in phases.items():
        held = {name: size for name, size in parts.items() if size}
        if device == "cpu":
            held["allocator"] = round(ALLOCATOR * sum(held.values()))
            held["framework"] = FRAMEWORK[phase] + FRAMEWORK_BFLOAT16 * (itemsize == 2)
        found.append(MemoryEstimate(sum(held.values()), phase, held))
    return max(found, key=lambda estimate: estimate.total)
