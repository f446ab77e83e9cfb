"""Whether a model fits in the memory of this machine, to talk with it and to train it.

`memory_estimate` and `training_memory` estimate what it takes, `machine` says what is free. Nothing here
needs torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mmchat.display.numbers import format_size
from mmchat.memory.machine import Machine, WeightFormat
from mmchat.memory.memory_estimate import MemoryEstimate, estimate_inference
from mmchat.memory.model_dims import ModelDims
from mmchat.memory.training_memory import Method, TrainingStep, estimate_training

CHAT_TOKENS = 1024
"""Tokens of a conversation besides a picture. A model without memory for them does not fit."""
CONTEXTS = (8192, 4096, 2048)
"""Tokens of longer conversations, the longest first."""
ANSWER_TOKENS, ROW_TOKENS, BATCH = 96, 512, 16
"""Of a usual training: tokens of a question with its answer, of a packed row, samples of a step."""
IMPORTS = 440_000_000
"""Bytes that Python and its libraries take on a CPU before a model is loaded (measured)."""


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """One use of a model, and whether it fits: as it is, with `changes`, or not at all."""

    use: str
    estimate: MemoryEstimate
    """Of the way that fits; if none does, of the one that takes the least."""
    machine: Machine
    changes: dict[str, int | bool] = field(default_factory=dict)
    """What makes it fit: keys of a recipe's stage, for a conversation its `context`."""
    context: int = 0
    """The longest conversation that fits, in tokens; 0 for training."""
    context_bytes: int = 0
    """Bytes that the process takes with that conversation."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The changes in words."""
        return tuple(
            f"up to {value:,} tokens of conversation"
            if key == "context"
            else f"{key}={str(value).lower()}"
            for key, value in self.changes.items()
        )

    @property
    def needed_bytes(self) -> int:
        """What the whole process takes at most; for a conversation, a short one about a picture."""
        return _process_bytes(self.estimate, self.machine)

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.machine.free

    @property
    def tight(self) -> bool:
        """Whether freed memory must go back to the system at once.

        If malloc keeps it, the process grows to twice what is in use.
        """
        return self.machine.device == "cpu" and 2 * self.needed_bytes > self.machine.free

    @property
    def reason(self) -> str:
        """What it needs and what is available, in words."""
        needed = f"needs {format_size(self.needed_bytes)} of memory"
        if self.machine.total and self.needed_bytes > self.machine.total:
            return f"{needed}, this machine has {format_size(self.machine.total)}"
        return f"{needed}, {format_size(self.machine.free)} are free{'' if self.fits else ' now'}"

    @property
    def sentence(self) -> str:
        """Whether it fits and how; if it does not, what takes the most."""
        needed, free = format_size(self.needed_bytes), format_size(self.machine.free)
        if self.fits:
            if self.context:
                longest = format_size(self.context_bytes)
                most = f"{longest} with up to {self.context:,} tokens of conversation"
                return f"fits: about {needed}, {most}; {free} are free"
            how = f" with {', '.join(self.settings)}" if self.settings else ""
            return f"fits{how}: about {needed}; {free} are free"
        parts = {
            name: size
            for name, size in self.estimate.parts.items()
            if name not in ("framework", "allocator")
        }
        most = max(parts, key=lambda name: parts[name])
        return (
            f"does not fit, because it takes about {needed} and {free} are free; "
            f"its largest part is {most}, {format_size(parts[most])}"
        )


def chat_fit(
    dims: ModelDims, machine: Machine, weight_format: WeightFormat, use: str = "talk"
) -> MemoryFit:
    """Talking with the model; the estimate is for a picture and a short conversation about it.

    Everything that says whether a model fits uses this. `context` is the longest conversation that fits.
    """

    def estimate(tokens: int) -> MemoryEstimate:
        return estimate_inference(
            dims,
            weight_format,
            context=tokens,
            itemsize=machine.itemsize_of(weight_format),
            device=machine.device,
        )

    limit = dims.context or CONTEXTS[0]
    short = min(dims.image_tokens + CHAT_TOKENS, limit)
    lengths = sorted({max(short, min(length, limit)) for length in (*CONTEXTS, short)})
    for length in reversed(lengths):
        size = _process_bytes(estimate(length), machine)
        if size <= machine.free:
            break
    changes: dict[str, int | bool] = {"context": length} if length != lengths[-1] else {}
    return MemoryFit(use, estimate(short), machine, changes, length, size)


def training_fit(
    dims: ModelDims,
    machine: Machine,
    weight_format: WeightFormat,
    step: TrainingStep,
    use: str = "train",
    *,
    micro_rows: int = 0,
) -> MemoryFit:
    """Training with steps like `step`, `micro_rows` of its rows at once (0: all of them).

    If that does not fit, one row at once is tried, then gradient checkpointing.
    """
    rows = min(micro_rows or step.rows, step.rows)
    ways = [(rows, step.gradient_checkpointing), (1, step.gradient_checkpointing), (1, True)]
    for at_once, checkpointing in ways:
        estimate = estimate_training(
            dims,
            weight_format,
            replace(step.at_once(at_once), gradient_checkpointing=checkpointing),
            itemsize=machine.itemsize_of(weight_format),
            device=machine.device,
        )
        if _process_bytes(estimate, machine) <= machine.free:
            break
    changes: dict[str, int | bool] = {}
    if at_once != rows:
        changes["micro_rows"] = at_once
    if checkpointing != step.gradient_checkpointing:
        changes["gradient_checkpointing"] = checkpointing
    return MemoryFit(use, estimate, machine, changes)


def all_fits(dims: ModelDims, machine: Machine) -> Iterator[MemoryFit]:
    """Every way to talk with a model and to train it; the training is a usual one."""
    plain = machine.plain_format
    yield chat_fit(dims, machine, "4bit", "talk, 4-bit")
    yield chat_fit(dims, machine, plain, f"talk, unquantized ({plain})")
    ways: tuple[tuple[Method, WeightFormat, str], ...] = (
        ("qlora", "4bit", "train, qlora (4-bit base)"),
        ("lora", plain, "train, lora (unquantized base)"),
        ("full", "fp32", "train, full"),
    )
    sample = dims.image_tokens + ANSWER_TOKENS
    rows = 1 if dims.kind == "hf_vlm" else -(-BATCH * sample // ROW_TOKENS)
    pictures = max(1, ROW_TOKENS // sample) if dims.vision is not None else 0
    for method, weight_format, use in ways:
        step = TrainingStep(
            method,
            row_tokens=max(ROW_TOKENS, sample),
            rows=rows,
            pictures=rows * pictures,
            projector=dims.kind == "visual_prefix",
        )
        yield training_fit(dims, machine, weight_format, step, use)


def _process_bytes(estimate: MemoryEstimate, machine: Machine) -> int:
    return estimate.total + (IMPORTS if machine.device == "cpu" else 0)
