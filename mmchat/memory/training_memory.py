"""How much memory a step of training takes, estimated before anything is loaded, without torch.

The counts are those of torch's autograd for these models (`saved_tensors_hooks` on real steps gave them).
AdamW keeps two numbers for each weight (Kingma and Ba 2014), its 8-bit form two bytes and their scales
(Dettmers et al. 2022). With gradient checkpointing a block keeps only its input (Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost").
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mmchat.memory.machine import WeightFormat
from mmchat.memory.memory_estimate import (
    Device,
    MemoryEstimate,
    Phase,
    encoder_bytes,
    largest,
    largest_layer,
    loading,
    resident,
    unread_bytes,
    weight_bytes,
)
from mmchat.memory.model_dims import (
    DOWN,
    FUSED,
    GATE_UP,
    KEY,
    OUT,
    QUERY,
    UP,
    LinearDims,
    ModelDims,
)

Method = Literal["projector", "lora", "qlora", "full"]
Optimizer = Literal["adamw", "adamw8bit", "muon"]

_EIGHT_BIT_FROM = 4096
"""For tensors with fewer weights bitsandbytes keeps 32-bit moments."""
_UPDATE_COPIES = 2
"""AdamW's denominator and its quotient, of one tensor at a time."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """What is computed at once: `rows` packed rows of `row_tokens` tokens, with `pictures` in all of them.

    `answer_tokens` is the number of trained tokens of all rows; None means all that do not belong to
    pictures. `targets` names the linear layers that have LoRA; empty means all of the text blocks.
    """

    method: Method
    row_tokens: int
    rows: int = 1
    pictures: int = 0
    answer_tokens: int | None = None
    rank: int = 16
    targets: tuple[str, ...] = ()
    projector: bool = False
    vision_blocks: int = 0
    optimizer: Optimizer = "adamw"
    gradient_checkpointing: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens

    @property
    def lora(self) -> bool:
        return self.method in ("lora", "qlora")

    @property
    def trains_projector(self) -> bool:
        return self.projector or self.method == "projector"

    def at_once(self, rows: int) -> "TrainingStep":
        """The step with only `rows` of its rows."""
        share = rows / self.rows
        answers = None if self.answer_tokens is None else round(self.answer_tokens * share)
        pictures = round(self.pictures * share)
        return replace(self, rows=rows, pictures=pictures, answer_tokens=answers)

    def targeted(self, linears: Iterable[LinearDims]) -> list[LinearDims]:
        """Those that have LoRA."""
        return [linear for linear in linears if not self.targets or linear.name in self.targets]


def estimate_training(
    dims: ModelDims,
    weight_format: WeightFormat,
    step: TrainingStep,
    *,
    itemsize: int = 2,
    device: Device = "cpu",
) -> MemoryEstimate:
    """Loading the base as `weight_format` and training it step by step.

    `itemsize` is the bytes of a number in the compute dtype: 4 for float32, 2 for bfloat16.
    """
    trained = _trained(dims, step)
    weights = weight_bytes(dims, weight_format, itemsize)
    # The visual-prefix model learns from features that were encoded before.
    encodes = dims.kind == "hf_vlm" or step.vision_blocks > 0
    unread = (
        0 if step.method == "full" else unread_bytes(dims, itemsize, device, encoder=not encodes)
    )
    # What trains is kept in float32. If it is a part of the base, it replaces that part.
    held = {
        **resident(weights, itemsize * trained.own + unread),
        "trainable weights": 4 * trained.count,
        "optimizer state": _optimizer_bytes(trained, step.optimizer),
        "features": _feature_bytes(dims, step, itemsize),
    }
    if itemsize == 2:
        held["trainable weights"] += 2 * trained.matrices  # autocast keeps them in bfloat16 too
    block, kept = _block_activations(dims, step, itemsize)
    activations = dims.layers * (kept if step.gradient_checkpointing else block)
    activations += step.tokens * dims.hidden_size * (4 + 2 * itemsize)
    activations += _picture_activations(dims, step, itemsize)
    # Hugging Face VLMs get no mask.
    scores = 0 if dims.kind == "hf_vlm" else step.rows * step.row_tokens**2
    mask = scores * (10 if dims.window else 1)  # with sliding windows also the distances
    working = 3 * step.tokens * dims.intermediate_size * itemsize
    if step.gradient_checkpointing:
        working += block + scores * itemsize
    else:
        mask += dims.layers * scores * itemsize
    if weight_format == "4bit":
        working += itemsize * largest_layer(dims)
    answers = step.answer_tokens
    if answers is None:
        answers = step.tokens - step.pictures * dims.image_tokens
    update = _UPDATE_COPIES * 4 * trained.largest if device == "cpu" else 4 * trained.count
    if step.optimizer == "muon":
        update = max(update, 5 * itemsize * trained.largest_matrix)
    phases: dict[Phase, dict[str, int]] = {
        "loading": loading(dims, weight_format, weights, device),
        "forward": {
            **held,
            "activations": activations,
            "attention mask": mask,
            "logits": 3 * 4 * answers * dims.vocab_size,
        },
        "backward": {
            **held,
            "activations": activations + working,
            "attention mask": mask,
            "gradients": 4 * dims.embedding if step.method == "full" else 0,
        },
        "update": {
            **held,
            "gradients": 4 * trained.count,
            "update": update,
            "attention mask": mask,
        },
    }
    return largest(phases, itemsize, device)


@dataclass(slots=True)
class _Trained:
    """The number of weights that train: all, those of the base, those in matrices, those in large tensors.

    `largest` and `largest_matrix` are single tensors.
    """

    count: int = 0
    own: int = 0
    matrices: int = 0
    large: int = 0
    largest: int = 0
    largest_matrix: int = 0

    def add(self, weights: int, each: int, *, own: bool, matrix: bool) -> None:
        """`weights` in tensors of `each`."""
        self.count += weights
        self.own += weights if own else 0
        self.matrices += weights if matrix else 0
        self.large += weights if each >= _EIGHT_BIT_FROM else 0
        self.largest = max(self.largest, each)
        if matrix:
            self.largest_matrix = max(self.largest_matrix, each)


def _trained(dims: ModelDims, step: TrainingStep) -> _Trained:
    trained = _Trained()
    if step.lora:
        for linear in step.targeted(dims.linears):
            for side in (linear.inputs, linear.outputs):
                each = step.rank * side
                trained.add(linear.count * each, each, own=False, matrix=True)
    if step.method == "full":
        for linear in dims.linears:
            each = linear.inputs * linear.outputs
            trained.add(linear.parameters, each, own=True, matrix=True)
        trained.add(dims.embedding, dims.embedding, own=True, matrix=True)
        trained.add(dims.head, dims.head, own=True, matrix=True)
        trained.add(dims.block_other + dims.other, dims.hidden_size, own=True, matrix=False)
    if step.trains_projector and dims.projector:
        each = max(dims.projector_matrices // 2, 1)
        trained.add(dims.projector_matrices, each, own=True, matrix=True)
        vectors = dims.projector - dims.projector_matrices
        trained.add(vectors, dims.hidden_size, own=True, matrix=False)
    if step.vision_blocks and dims.vision is not None:
        each = dims.vision.hidden_size * dims.vision.intermediate_size
        blocks = step.vision_blocks * dims.vision.block_parameters
        trained.add(blocks, each, own=True, matrix=True)
    return trained


def _optimizer_bytes(trained: _Trained, optimizer: Optimizer) -> int:
    if optimizer == "muon":
        return 4 * trained.matrices + 8 * (trained.count - trained.matrices)
    if optimizer == "adamw8bit":
        # A scale for each 256 of each moment.
        return math.ceil(trained.large * 2 * (1 + 4 / 256)) + 8 * (trained.count - trained.large)
    return 8 * trained.count


def _block_activations(dims: ModelDims, step: TrainingStep, itemsize: int) -> tuple[int, int]:
    """Bytes that a text block keeps for its backward: (without, with gradient checkpointing)."""
    norms = dims.norms * dims.hidden_size
    if dims.head_norms:
        norms += dims.query_size + dims.kv_size
    # A norm keeps its input in float32, and also its output if its weight trains.
    row = 4 * norms * (2 if step.method == "full" else 1)
    row += 4 * dims.query_size * itemsize  # queries, repeated keys and values, output
    row += (3 if dims.gated else 1) * dims.intermediate_size * itemsize
    row += _layer_inputs(dims, step, itemsize)
    if step.lora:
        layers = sum(linear.count / dims.layers for linear in step.targeted(dims.linears))
        row += int(step.rank * layers * itemsize)
    return step.tokens * row, step.tokens * dims.hidden_size * itemsize


def _layer_inputs(dims: ModelDims, step: TrainingStep, itemsize: int) -> int:
    """Bytes per token of the inputs that linear layers keep because their weights or their LoRA train."""
    if step.method == "projector":
        return 0
    chosen = list(dims.linears) if step.method == "full" else step.targeted(dims.linears)
    if itemsize == 2:
        # Autocast makes a copy for each layer, but for the output of attention only LoRA's cast does.
        return sum(
            int(linear.inputs * linear.count / dims.layers) * itemsize
            for linear in chosen
            if step.lora or linear.name not in OUT
        )
    # In float32 layers share one input, and the output of attention is already kept.
    names = {linear.name for linear in chosen}
    known = QUERY | KEY | FUSED | UP | GATE_UP | DOWN | OUT
    row = dims.hidden_size * bool(names & (QUERY | KEY | FUSED))
    row += dims.hidden_size * bool(names & (UP | GATE_UP))
    row += dims.intermediate_size * bool(names & DOWN)
    row += sum(linear.inputs for linear in chosen if linear.name not in known)
    return row * itemsize


def _feature_bytes(dims: ModelDims, step: TrainingStep, itemsize: int) -> int:
    """The features of all pictures, or their pixels if the encoder is part of the step."""
    vision = dims.vision
    if vision is None or not step.pictures:
        return 0
    patches = step.pictures * vision.patches
    if step.vision_blocks or dims.kind == "hf_vlm":
        return patches * vision.patch_size**2 * 3 * 4
    return patches * vision.hidden_size * itemsize


def _picture_activations(dims: ModelDims, step: TrainingStep, itemsize: int) -> int:
    """Bytes that the projector and the trained blocks of the encoder keep."""
    vision = dims.vision
    if vision is None or not step.pictures:
        return 0
    patches = step.pictures * vision.patches
    total = 0
    if step.trains_projector or step.vision_blocks:
        total += patches * (vision.hidden_size + 2 * dims.hidden_size) * itemsize
    if step.vision_blocks:
        row = 8 * vision.hidden_size + 2 * vision.intermediate_size
        total += step.vision_blocks * patches * row * itemsize
    if step.vision_blocks or dims.kind == "hf_vlm":
        total += encoder_bytes(dims, step.pictures, itemsize)["encoder activations"]
    return total
