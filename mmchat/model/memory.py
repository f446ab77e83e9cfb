"""How much memory a model takes to talk with and to train, told before anything is loaded.

Nothing of torch is imported. What a step holds is counted, tensor by tensor, as torch's
autograd keeps it for these models (`saved_tensors_hooks` on the real step gave the counts; the
bench `bench_memory` compares predictions with measured peaks). Adam holds two numbers a weight
(Kingma and Ba 2014), its 8-bit form two bytes and their scales (Dettmers et al. 2022), NF4 half a
byte and its scales (Dettmers et al. 2023, "QLoRA"); with checkpointing a block keeps its input
only (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mmchat.model.facts import FUSED, GATE_UP, KEY, NARROW, OUT, QUERY, WIDEN, ModelFacts

Form = Literal["4bit", "bf16", "fp32"]
Method = Literal["projector", "lora", "qlora", "full"]
Optimizer = Literal["adamw", "adamw8bit", "muon"]
Device = Literal["cpu", "cuda"]
Moment = Literal["loading", "forward", "backward", "update", "answering"]

_NF4_BLOCK, _SCALES_BLOCK = 64, 256
# The tables of NF4's 16 and of the scales' 256 values, and the scales' mean, for each layer.
_NF4_TABLES = 4 * (16 + 256 + 1)
_EIGHT_BIT_FROM = 4096
"""bitsandbytes keeps 32-bit moments for smaller tensors."""
_STEP_COPIES = 2
"""AdamW's denominator and its quotient, of one weight at a time."""
PREFILL = 512
"""Tokens that the engine reads at once."""

# Measured by bench_memory on a CPU: what the model's own objects and the libraries' first use take
# above the imports, whatever the model, and how much of what lives malloc holds beside it.
FRAMEWORK = {"loading": 20_000_000, "answering": 35_000_000}
FRAMEWORK_OF_STEPS = 55_000_000
SLACK = 1.04


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most that is held at once, in bytes.

    `moment` is when that is; `parts` says of what, and sums up to `total`. On a GPU it is what
    torch's allocator holds: the driver's own context comes on top.
    """

    total: int
    moment: Moment
    parts: dict[str, int]


def nf4_bytes(elements: int) -> tuple[int, int]:
    """(the packed weights of one 4-bit layer, its quantization state), as bitsandbytes keeps them."""
    scales = math.ceil(elements / _NF4_BLOCK)
    return math.ceil(elements / 2), scales + 4 * math.ceil(scales / _SCALES_BLOCK) + _NF4_TABLES


def weight_bytes(facts: ModelFacts, form: Form, width: int) -> dict[str, int]:
    """What the loaded weights take; `width` is the bytes of a number in the compute dtype."""
    if form != "4bit":
        return {"weights": width * facts.elements}
    packed = state = 0
    for linear in facts.linears:
        one, beside = nf4_bytes(linear.inputs * linear.outputs)
        packed += one * linear.count
        state += beside * linear.count
    rest = width * (facts.elements - facts.block_matrices)
    return {"weights": packed + rest, "quantization state": state}


def predict_inference(
    facts: ModelFacts,
    form: Form,
    *,
    context: int,
    pictures: int = 1,
    width: int = 2,
    device: Device = "cpu",
) -> Prediction:
    """Talking with the model: `context` tokens are held, `pictures` of them looked at together.

    `width` is the bytes of a number in the compute dtype.
    """
    weights = weight_bytes(facts, form, width)
    read = min(context, PREFILL)
    # The two residual streams, queries, keys and values with the repeated ones, and the MLP.
    row = 2 * facts.hidden + 4 * facts.attention + 3 * facts.intermediate
    scores = read * context * (1 + width)  # the mask, as booleans and as numbers
    answering = {
        **weights,
        "attention cache": 2 * facts.layers * context * facts.key_value * width,
        "activations": read * row * width + _looking(facts, pictures, width),
        "attention mask": scores,
        "logits": 2 * 4 * facts.vocabulary,
    }
    if form == "4bit":
        answering["unpacked layer"] = _unpacked(facts, width)
    return _most({"loading": _loading(facts, weights, device), "answering": answering}, device)


def predict_training(
    facts: ModelFacts,
    *,
    method: Method,
    row_tokens: int,
    rows: int = 1,
    pictures: int = 0,
    answer_tokens: int | None = None,
    rank: int = 16,
    targets: tuple[str, ...] = (),
    projector: bool = False,
    vision_blocks: int = 0,
    optimizer: Optimizer = "adamw",
    gradient_checkpointing: bool = False,
    width: int = 2,
    device: Device = "cpu",
) -> Prediction:
    """Training on `rows` rows at once of `row_tokens` tokens each, with `pictures` in all of them.

    `answer_tokens` are the trained ones of all rows: without them, all that no picture takes.
    `targets` names linear layers for LoRA, none means all of the text blocks. `width` is the
    bytes of a number in the compute dtype: 4 for float32, 2 for bfloat16.
    """
    run = _Run(
        facts,
        method,
        rows,
        row_tokens,
        pictures,
        answer_tokens if answer_tokens is not None else rows * row_tokens - pictures * facts.prefix,
        rank,
        frozenset(targets),
        projector or method == "projector",
        vision_blocks,
        width,
    )
    trains = _trained(run)
    weights = weight_bytes(facts, "4bit" if method == "qlora" else "fp32", width)
    loading = _loading(facts, weights, device)
    # What trains is kept in float32; of the base's own parts it is no further copy.
    own = trains.own
    held = {
        **weights,
        "weights": weights["weights"] - width * own,
        "trainable weights": 4 * trains.count,
        "optimizer state": _optimizer_bytes(trains, optimizer),
        "features": _features(run),
    }
    if width == 2:
        held["trainable weights"] += 2 * trains.matrices  # autocast keeps them in bfloat16 too
    block, kept = _block_activations(run)
    activations = facts.layers * kept if gradient_checkpointing else facts.layers * block
    activations += run.tokens * facts.hidden * (4 + 2 * width) + _pictures_activations(run)
    mask = _mask(run)
    per_layer = 0 if facts.kind == "stock" else run.rows * run.row_tokens**2 * width
    if not gradient_checkpointing:
        mask += facts.layers * per_layer
    working = 3 * run.tokens * facts.intermediate * width
    if gradient_checkpointing:
        working += block + per_layer
    if method == "qlora":
        working += _unpacked(facts, width)
    gradients = 4 * trains.count
    head = 4 * facts.embedding if method == "full" else 0
    beside = _STEP_COPIES * 4 * trains.largest if device == "cpu" else 4 * trains.count
    if optimizer == "muon":
        beside = max(beside, 5 * width * trains.largest_matrix)
    moments: dict[Moment, dict[str, int]] = {
        "loading": loading,
        "forward": {
            **held,
            "activations": activations,
            "attention mask": mask,
            "logits": 3 * 4 * run.answer_tokens * facts.vocabulary,
        },
        "backward": {
            **held,
            "activations": activations + working,
            "attention mask": mask,
            "gradients": head,
        },
        "update": {**held, "gradients": gradients, "update": beside, "attention mask": mask},
    }
    return _most(moments, device)


@dataclass(frozen=True, slots=True)
class _Run:
    facts: ModelFacts
    method: Method
    rows: int
    row_tokens: int
    pictures: int
    answer_tokens: int
    rank: int
    targets: frozenset[str]
    projector: bool
    vision_blocks: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.row_tokens

    @property
    def lora(self) -> bool:
        return self.method in ("lora", "qlora")

    def wants(self, names: Iterable[str]) -> bool:
        """Whether LoRA stands on a layer of these names."""
        return any(
            linear.name in names and (not self.targets or linear.name in self.targets)
            for linear in self.facts.linears
        )


@dataclass(slots=True)
class _Trained:
    """What trains: how many weights, how many of them the base's own, of matrices, of large tensors."""

    count: int = 0
    own: int = 0
    matrices: int = 0
    large: int = 0
    largest: int = 0
    largest_matrix: int = 0

    def add(self, elements: int, each: int, *, own: bool, matrix: bool) -> None:
        """`elements` weights in tensors of `each`."""
        self.count += elements
        self.own += elements if own else 0
        self.matrices += elements if matrix else 0
        self.large += elements if each >= _EIGHT_BIT_FROM else 0
        self.largest = max(self.largest, each)
        if matrix:
            self.largest_matrix = max(self.largest_matrix, each)


def _trained(run: _Run) -> _Trained:
    facts, trains = run.facts, _Trained()
    if run.lora:
        for linear in facts.linears:
            if run.targets and linear.name not in run.targets:
                continue
            for side in (linear.inputs, linear.outputs):
                each = run.rank * side
                trains.add(linear.count * each, each, own=False, matrix=True)
    if run.method == "full":
        for linear in facts.linears:
            each = linear.inputs * linear.outputs
            trains.add(linear.elements, each, own=True, matrix=True)
        trains.add(facts.embedding, facts.embedding, own=True, matrix=True)
        trains.add(facts.head, facts.head, own=True, matrix=True)
        trains.add(facts.blocks_other + facts.other, facts.hidden, own=True, matrix=False)
    if run.projector and facts.kind == "visual_prefix":
        vectors = facts.projector - facts.projector_matrices
        each = facts.projector_matrices // 2
        trains.add(facts.projector_matrices, each, own=True, matrix=True)
        trains.add(vectors, facts.hidden, own=True, matrix=False)
    if run.vision_blocks and facts.vision is not None:
        each = facts.vision.width * facts.vision.intermediate
        trains.add(run.vision_blocks * facts.vision.block_elements, each, own=True, matrix=True)
    return trains


def _optimizer_bytes(trains: _Trained, optimizer: Optimizer) -> int:
    if optimizer == "muon":
        return 4 * trains.matrices + 8 * (trains.count - trains.matrices)
    if optimizer == "adamw8bit":
        # A scale for each 256 of each moment.
        return math.ceil(trains.large * 2 * (1 + 4 / 256)) + 8 * (trains.count - trains.large)
    return 8 * trains.count


def _block_activations(run: _Run) -> tuple[int, int]:
    """Bytes that a text block keeps for its backward, and with checkpointing."""
    facts, width = run.facts, run.width
    norms = facts.norms * facts.hidden
    if facts.head_norms:
        norms += facts.attention + facts.key_value
    # A norm keeps its input in float32, and what it made of it where its own weight trains.
    row = 4 * norms * (2 if run.method == "full" else 1)
    row += 4 * facts.attention * width  # queries, repeated keys and values, what comes out
    row += (3 if facts.gated else 1) * facts.intermediate * width
    row += _layer_inputs(run)
    if run.lora:
        targets = sum(
            linear.count / facts.layers
            for linear in facts.linears
            if not run.targets or linear.name in run.targets
        )
        row += int(run.rank * targets * width)
    return run.tokens * row, run.tokens * facts.hidden * width


def _layer_inputs(run: _Run) -> int:
    """Bytes a token of the linear layers' inputs that are kept, where their weights train."""
    facts, width = run.facts, run.width
    if run.method == "projector":
        return 0
    chosen = [
        linear
        for linear in facts.linears
        if run.method == "full" or not run.targets or linear.name in run.targets
    ]
    if width == 2:
        # Autocast makes a copy for each layer; of what attention gave only LoRA's cast does.
        return sum(
            int(linear.inputs * linear.count / facts.layers) * width
            for linear in chosen
            if run.lora or linear.name not in OUT
        )
    # In float32 layers share one input, and attention's output is kept already.
    names = {linear.name for linear in chosen}
    known = QUERY | KEY | FUSED | WIDEN | GATE_UP | NARROW | OUT
    row = facts.hidden * bool(names & (QUERY | KEY | FUSED))
    row += facts.hidden * bool(names & (WIDEN | GATE_UP))
    row += facts.intermediate * bool(names & NARROW)
    row += sum(linear.inputs for linear in chosen if linear.name not in known)
    return row * width


def _mask(run: _Run) -> int:
    """The batch's own mask, and with windows the distances that they are cut from."""
    if run.facts.kind == "stock":
        return 0
    return run.rows * run.row_tokens**2 * (10 if run.facts.window else 1)


def _features(run: _Run) -> int:
    """The encoder's features of all pictures, or their pixels where it trains."""
    vision = run.facts.vision
    if vision is None or not run.pictures:
        return 0
    if run.vision_blocks or run.facts.kind == "stock":
        return run.pictures * 3 * vision.image_size**2 * 4
    return run.pictures * vision.patches * vision.width * run.width


def _pictures_activations(run: _Run) -> int:
    """What the projector keeps, and the encoder's blocks that train."""
    facts, vision = run.facts, run.facts.vision
    if vision is None or not run.pictures:
        return 0
    tokens = run.pictures * vision.patches
    total = 0
    if run.projector or run.vision_blocks:
        total += tokens * (vision.width + 2 * facts.hidden) * run.width
    if run.vision_blocks:
        row = 8 * vision.width + 2 * vision.intermediate
        total += run.vision_blocks * tokens * row * run.width
    if run.vision_blocks or facts.kind == "stock":
        total += _looking(facts, run.pictures, run.width)
    return total


def _looking(facts: ModelFacts, pictures: int, width: int) -> int:
    """The encoder's forward over `pictures` together: every layer's state is handed back."""
    vision = facts.vision
    if vision is None:
        return 0
    row = (vision.layers + 1) * vision.width + 4 * vision.width + 2 * vision.intermediate
    return pictures * vision.patches * row * width


def _unpacked(facts: ModelFacts, width: int) -> int:
    """The largest 4-bit layer while it is multiplied with."""
    return width * max((one.inputs * one.outputs for one in facts.linears), default=0)


def _loading(facts: ModelFacts, weights: dict[str, int], device: Device) -> dict[str, int]:
    """The files are mapped while they are read, so that what was read of them counts too."""
    return {**weights, "files": facts.file_bytes if device == "cpu" else 0}


def _most(moments: dict[Moment, dict[str, int]], device: Device) -> Prediction:
    best: Prediction | None = None
    for moment, parts in moments.items():
        found = {name: size for name, size in parts.items() if size}
        if device == "cpu":
            living = sum(found.values())
            found["framework"] = FRAMEWORK.get(moment, FRAMEWORK_OF_STEPS)
            found["allocator"] = round((SLACK - 1) * living)
        total = sum(found.values())
        if best is None or total > best.total:
            best = Prediction(total, moment, found)
    assert best is not None
    return best
