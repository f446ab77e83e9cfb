"""Runs one optimizer step, exactly, for any micro-batch size and number of processes.

A step's loss is the weighted mean over the labels of all its rows, on all processes. Each micro-batch
computes a sum, and the sum of the weights is known before the first one. Therefore n micro-batches of
one row equal one of n rows, and so do rows that are split over processes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmchat.errors import RecipeError, describe_error
from mmchat.model.load_plan import is_out_of_memory
from mmchat.training.packing import Batch, join


@dataclass(slots=True)
class RowInput:
    """One packed row and the features of its pictures."""

    batch: Batch
    features: Any = None
    """(pictures, patches, vision_width); pixels if the encoder trains; a dict for a Hugging Face VLM."""


@dataclass(slots=True)
class StepInput:
    """The rows of a step that this process computes."""

    rows: list[RowInput]
    places: list[str]
    """Where the samples come from, for messages."""
    samples: int
    tokens: int
    wait_seconds: float = 0.0
    """How long the process waited for this input."""


@dataclass(slots=True)
class StepResult:
    """The loss, the gradient norm before clipping, and counts of a step."""

    loss: float
    grad_norm: float
    seconds: float
    tokens: int
    samples: int
    wait_seconds: float


class TrainStep:
    """Runs steps on a loss module: `module(batch, features)` -> the sum of the weighted losses."""

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[Tensor],
        *,
        clip: float,
        micro_rows: int,
        say: Callable[[str], None],
        rates: Sequence[str] = ("learning_rate",),
        parts: Mapping[str, Sequence[Tensor]] | None = None,
        needs_pictures: Container[str] = (),
    ) -> None:
        """optimizers: each group has its learning rate before the schedule as `rate`; `rates` are the
        recipe's keys for them. micro_rows: how many rows are computed at once, 0 for all of a step.
        parts: parameters by part; each part must get a gradient in every step, or only in steps with
        pictures if it is in `needs_pictures`.
        """
        self.accelerator = accelerator
        self.module = module
        self.optimizers = list(optimizers)
        self.parameters = list(parameters)
        self.clip = clip
        self.micro_rows = micro_rows
        self.say = say
        self.rates = tuple(rates)
        # The smallest first, because one value other than 0 is enough.
        self.parts = {
            name: sorted(part, key=lambda tensor: tensor.numel())
            for name, part in (parts or {}).items()
        }
        self.needs_pictures = needs_pictures
        self._spikes = LossSpikeGuard()

    def step(self, step_input: StepInput, factor: float, label: str) -> StepResult:
        """Forward, backward and update, with every learning rate multiplied by `factor`.

        label: names the step in messages. Raises RecipeError if loss or gradient is not finite, if a
        trained part got no gradient, if the loss explodes or if the memory is too small; then no weight
        has changed.
        """
        start = time.monotonic()
        loss = self.backward(step_input)
        grad_norm = self._update(loss, factor, label, step_input)
        return StepResult(
            loss,
            grad_norm,
            time.monotonic() - start,
            step_input.tokens,
            step_input.samples,
            step_input.wait_seconds,
        )

    @property
    def spiked(self) -> bool:
        """Whether the last losses were far above the mean. No checkpoint is saved then."""
        return self._spikes.active

    def backward(self, step_input: StepInput) -> float:
        """Computes the gradients of the step's mean loss; -> that loss, over all processes.

        If the memory runs out, fewer rows are computed at once. Raises RecipeError if a single row is too
        large.
        """
        while True:
            try:
                return self._accumulate(step_input)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                at_once = min(self.micro_rows or len(step_input.rows), len(step_input.rows))
                # Several processes would have to reduce together, but the others are still waiting.
                if at_once <= 1 or self.accelerator.num_processes > 1:
                    raise RecipeError(
                        f"The memory ran out ({describe_error(error, 120)}): continue with --resume "
                        "and --set micro_rows=1, shorter rows (--set row_tokens=…) or --set "
                        "gradient_checkpointing=true."
                    ) from error
                self.micro_rows = (at_once + 1) // 2
            self._zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.say(
                f"The memory ran out with {at_once} rows at once: continuing with {self.micro_rows}, which "
                "gives the same steps."
            )

    def _accumulate(self, step_input: StepInput) -> float:
        accelerator = self.accelerator
        weight = sum(float(row.batch.weights.sum(dtype=torch.float64)) for row in step_input.rows)
        (total,) = self._sum([weight])
        if not total:
            raise RecipeError(
                f"None of the samples {', '.join(step_input.places[:3])} has an answer that fits: increase "
                "row_tokens, or remove them."
            )
        loss = 0.0
        rows = step_input.rows
        size = self.micro_rows or max(len(rows), 1)
        micro_batches = [
            collate_rows(rows[start : start + size], accelerator.device)
            for start in range(0, len(rows), size)
        ]
        for number, (batch, features) in enumerate(micro_batches, 1):
            # Gradients are exchanged once, with the last micro-batch.
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                value = self.module(batch, features)
                # Gradients are averaged over processes, but these are parts of one sum.
                (value * (accelerator.num_processes / total)).backward()
            loss += float(value.detach())
        (loss,) = self._sum([loss])
        return loss / total

    def _update(self, loss: float, factor: float, label: str, step_input: StepInput) -> float:
        self._check_gradients(loss, label, step_input)
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            # Before the update, which would make weights and checkpoint unusable.
            raise self._diverged(
                f"{label}: the loss is {loss} and its gradient norm is {norm}", step_input
            )
        if self._spikes.update(loss):
            mean = self._spikes.mean
            raise self._diverged(
                f"{label}: the loss grew to {loss:.2f} from {mean:.2f}", step_input
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.step()
        self._zero_grad()
        return norm

    def _check_gradients(self, loss: float, label: str, step_input: StepInput) -> None:
        """Raises RecipeError if a trained part got no gradient, because it would silently not learn."""
        if loss == 0:
            return  # nothing is left to learn
        flags = [float(any(row.batch.images for row in step_input.rows))]
        for part in self.parts.values():
            flags.append(float(any(p.grad is not None and bool(p.grad.any()) for p in part)))
        pictures, *learning = self._sum(flags)  # over all processes
        missing = [
            name
            for name, learns in zip(self.parts, learning, strict=True)
            if not learns and (pictures or name not in self.needs_pictures)
        ]
        if not missing:
            return
        self._zero_grad()
        names = ", ".join(missing[:6]) + (" …" if len(missing) > 6 else "")
        raise RecipeError(
            f"{label}: no gradient reached {names}, so it would not learn. This step changed nothing. "
            "Do not train that part, or try another method (--set method=lora), and please report the "
            "model."
        )

    def _diverged(self, what: str, step_input: StepInput) -> RecipeError:
        self._zero_grad()
        places = step_input.places
        names = ", ".join(places[:3]) + (" …" if len(places) > 3 else "")
        rates = " ".join(f"--set {rate}=…" for rate in self.rates)
        return RecipeError(
            f"{what}{f' (its samples: {names})' if places else ''}. Lower the learning rates "
            f"({rates}){' or correct those samples' if places else ''}, then continue from the last "
            "checkpoint with --resume."
        )

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _sum(self, values: list[float]) -> list[float]:
        """The sum of each value over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        summed: list[float] = self.accelerator.reduce(tensor, "sum").tolist()
        return summed


def collate_rows(rows: Sequence[RowInput], device: torch.device) -> tuple[Batch, Any]:
    """Joins rows of the same length into a batch and the features of its pictures, on `device`.

    For a Hugging Face VLM, which computes one row at a time, the features are its input dict.
    """
    batch = join([row.batch for row in rows]).to(device)
    features = [row.features for row in rows if row.features is not None]
    if features and isinstance(features[0], dict):
        return batch, {name: value.to(device) for name, value in features[0].items()}
    return batch, torch.cat(features).to(device) if features else None


class LossSpikeGuard:
    """Detects an exploding loss: far above its running mean for several steps in a row."""

    FACTOR, MAX_SPIKES, WARMUP = 4.0, 5, 10

    def __init__(self) -> None:
        self.mean = 0.0
        """The running mean of the losses, without spikes."""
        self._count = 0
        self._spikes = 0

    def update(self, loss: float) -> bool:
        """Adds a loss; -> whether it is one spike too many."""
        if self._count >= self.WARMUP and loss > self.FACTOR * self.mean + 1.0:
            self._spikes += 1
            return self._spikes >= self.MAX_SPIKES
        self._spikes = 0
        self._count += 1
        self.mean += max(1 / self._count, 0.1) * (loss - self.mean)
        return False

    @property
    def active(self) -> bool:
        """Whether the last loss was a spike."""
        return self._spikes > 0


def schedule_factor(schedule: str, step: int, steps: int, warmup: float, decay: float) -> float:
    """The factor of the learning rates at `step` of `steps`, from 0 to 1.

    warmup, decay: shares of the steps. After the warm-up, `cosine` falls to 0 as half a cosine
    (Loshchilov and Hutter 2017, "SGDR"), `linear` falls linearly, `constant` stays, and `wsd` (warm-up,
    stable, decay) falls only over the last `decay` of the steps (Hägele et al. 2024). These are
    functions of the step alone, so that a resumed run needs no scheduler state.
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        return min(1.0, (steps - step) / max(1, round(steps * decay)))
    done = (step - rising) / max(1, steps - rising)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
