"""Whether there is room on this machine to talk with a model and to train it, and in which way.

Nothing of torch is imported: what is taken is predicted (`mmchat.model.memory`), what is free is
asked of the system.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mmchat.model.checkpoint import available_memory
from mmchat.model.facts import ModelFacts
from mmchat.model.machine import fast_in_bfloat16
from mmchat.model.memory import (
    Device,
    Form,
    Method,
    Prediction,
    predict_inference,
    predict_training,
)

CONTEXTS = (8192, 4096, 2048, 1024)
"""Tokens of a conversation that are tried, the longest first."""
USUAL_ANSWER, USUAL_ROW, USUAL_BATCH = 96, 512, 16
"""Tokens of a question with its answer, of a row, and samples of a step, where nothing else is known."""
IMPORTS = 440_000_000
"""Bytes that Python and its libraries take on a CPU before there is any model (measured)."""
_GPU_ASKED_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """What mmchat computes on by itself: `free` bytes there, `width` bytes of a number."""

    device: Device
    free: int
    width: int


@dataclass(frozen=True, slots=True)
class Room:
    """One use of a model, and whether it fits: by itself, with `settings`, or not at all."""

    use: str
    prediction: Prediction
    """Of the way that fits, else of the one that takes least."""
    machine: Machine
    changes: dict[str, int | bool] = field(default_factory=dict)
    """What makes it fit: of a recipe's stage its keys, of talking the `context`; none where it fits so."""

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
    def bytes(self) -> int:
        """All that the process takes."""
        return _whole(self.prediction, self.machine)

    @property
    def fits(self) -> bool:
        return self.bytes <= self.machine.free

    @property
    def tight(self) -> bool:
        """Whether freed memory has to go back at once: by itself a CPU's heap grows to twice what lives."""
        return self.machine.device == "cpu" and 2 * self.bytes > self.machine.free

    @property
    def sentence(self) -> str:
        """Words for people."""
        needed, free = _gb(self.bytes), _gb(self.machine.free)
        if self.fits:
            how = f" with {', '.join(self.settings)}" if self.settings else ""
            return f"fits{how}: about {needed} at most, {free} are free"
        parts = {
            k: v for k, v in self.prediction.parts.items() if k not in ("framework", "allocator")
        }
        largest = max(parts, key=lambda name: parts[name])
        return (
            f"does not fit, because it takes about {needed} even so and {free} are free; of that the "
            f"{largest} take {_gb(parts[largest])}"
        )


def this_machine() -> Machine:
    """Asks the system, and a GPU's driver where there is one."""
    free = _gpu_memory()
    if free is not None:
        return Machine("cuda", free, 2)
    return Machine("cpu", available_memory(), 2 if fast_in_bfloat16() else 4)


def rooms(facts: ModelFacts, machine: Machine) -> Iterator[Room]:
    """Every way to talk with a model and to train it."""
    plain: Form = "bf16" if machine.width == 2 else "fp32"
    forms: tuple[tuple[Form, str], ...] = (("4bit", "4-bit"), (plain, f"unquantized ({plain})"))
    for form, called in forms:
        yield talking_room(facts, machine, form, f"talk, {called}", facts.context)
    methods: tuple[tuple[Method, str], ...] = (
        ("qlora", "train, qlora (4-bit base)"),
        ("lora", "train, lora (unquantized base)"),
        ("full", "train, full"),
    )
    sample = facts.prefix + USUAL_ANSWER
    rows = -(-USUAL_BATCH * sample // USUAL_ROW)
    for method, called in methods:
        yield training_room(
            facts,
            machine,
            called,
            method=method,
            rows=1 if facts.kind == "stock" else rows,
            row_tokens=max(USUAL_ROW, sample),
            pictures_a_row=USUAL_ROW // sample if facts.vision is not None else 0,
            projector=facts.kind == "visual_prefix",
        )


def talking_room(
    facts: ModelFacts, machine: Machine, form: Form, use: str = "talk", context: int = 0
) -> Room:
    """Talking, with as long a conversation as there is room for."""
    lengths = [length for length in CONTEXTS if not context or length <= context] or [context]
    for length in lengths:
        found = predict_inference(
            facts, form, context=length, width=machine.width, device=machine.device
        )
        if _whole(found, machine) <= machine.free:
            break
    changes: dict[str, int | bool] = {"context": length} if length != lengths[0] else {}
    return Room(use, found, machine, changes)


def training_room(
    facts: ModelFacts,
    machine: Machine,
    use: str = "train",
    *,
    rows: int,
    pictures_a_row: float = 0,
    answers_a_row: float | None = None,
    micro_rows: int = 0,
    gradient_checkpointing: bool = False,
    **settings: Any,
) -> Room:
    """Training a step of `rows` rows, of which fewer are computed at once where that is needed.

    `settings` are those of `predict_training` beside rows and pictures.
    """
    at_once = min(micro_rows or rows, rows)
    ways = [(at_once, gradient_checkpointing), (1, gradient_checkpointing), (1, True)]
    for many, checkpointing in ways:
        found = predict_training(
            facts,
            rows=many,
            pictures=round(many * pictures_a_row),
            answer_tokens=None if answers_a_row is None else round(many * answers_a_row),
            gradient_checkpointing=checkpointing,
            width=machine.width,
            device=machine.device,
            **settings,
        )
        if _whole(found, machine) <= machine.free:
            break
    changes: dict[str, int | bool] = {}
    if many != at_once:
        changes["micro_rows"] = many
    if checkpointing != gradient_checkpointing:
        changes["gradient_checkpointing"] = checkpointing
    return Room(use, found, machine, changes)


def _gpu_memory() -> int | None:
    """Free bytes of the first NVIDIA GPU that programs may use; None where there is none."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    asker = shutil.which("nvidia-smi")
    if asker is None or not seen or seen == "-1":
        return None
    command = [asker, "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={seen}"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GPU_ASKED_SECONDS, check=True
        )
        return int(done.stdout.split()[0]) * 2**20
    return None


def _whole(found: Prediction, machine: Machine) -> int:
    return found.total + (IMPORTS if machine.device == "cpu" else 0)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
