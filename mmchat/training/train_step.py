"""One optimizer step, exact whatever it is cut into, on one process or several.

A step's loss is the mean over the trained tokens (by their weights) of all its rows, on all
processes, whatever the number of rows that are computed at once: each micro-batch gives a sum,
and the sum of the weights is known before the first is computed. So accumulating n times one
row equals one time n rows, and so does splitting them over processes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmchat.errors import RecipeError
from mmchat.model.load_plan import is_out_of_memory
from mmchat.training.packing import Batch, join


@dataclass(slots=True)
class RowInput:
    """One packed row and the features of its pictures."""

    batch: Batch
    features: Any = None
    """(pictures, patches, vision_width); pixels where the encoder trains; a Hugging Face VLM's inputs."""


@dataclass(slots=True)
class StepInput:
    """The rows of a step that this process computes. `waited` seconds went by until they came."""

    rows: list[RowInput]
    places: list[str]
    """Where its samples come from, to name them in messages."""
    samples: int
    tokens: int
    waited: float = 0.0


@dataclass(slots=True)
class StepResult:
    """What a step gave: the loss, the gradient's norm before clipping, and counts."""

    loss: float
    grad_norm: float
    seconds: float
    tokens: int
    samples: int
    waited: float


class TrainStep:
    """Runs whole steps on a loss module: `module(batch, features)` -> the sum of weighted losses."""

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
        """Each group of the optimizers has its learning rate before any schedule as `rate`; `rates`
        are the recipe's keys for them. `micro_rows` are computed at once; 0 is all of a step.

        Every one of `parts` (its parameters by its name) has to get a gradient in every step; those
        in `needs_pictures` only in steps with pictures.
        """
        self.accelerator = accelerator
        self.module = module
        self.optimizers = list(optimizers)
        self.parameters = list(parameters)
        self.clip = clip
        self.micro_rows = micro_rows
        self.say = say
        self.rates = tuple(rates)
        # The smallest first: one number that is not 0 is enough.
        self.parts = {
            name: sorted(part, key=lambda tensor: tensor.numel())
            for name, part in (parts or {}).items()
        }
        self.needs_pictures = needs_pictures
        self._spikes = LossSpikeGuard()

    def step(self, step_input: StepInput, factor: float, label: str) -> StepResult:
        """Forward, backward and update, with every learning rate at `factor` of its own.

        Raises RecipeError if loss or gradient are not finite, if a part that trains got no gradient,
        if the loss explodes or if the memory is too small; then no weight was changed. `label` names
        the step in messages.
        """
        began = time.monotonic()
        loss = self.backward(step_input)
        grad_norm = self._update(loss, factor, label, step_input)
        return StepResult(
            loss,
            grad_norm,
            time.monotonic() - began,
            step_input.tokens,
            step_input.samples,
            step_input.waited,
        )

    @property
    def spiked(self) -> bool:
        """Whether the last steps were far above the usual loss: no checkpoint is made of them."""
        return self._spikes.active

    def backward(self, step_input: StepInput) -> float:
        """Gradients of the step's mean loss; -> that loss over all processes.

        Where memory runs out, fewer rows are computed at once. Raises RecipeError if one row alone
        is too much.
        """
        while True:
            try:
                return self._accumulate(step_input)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                at_once = min(self.micro_rows or len(step_input.rows), len(step_input.rows))
                # Several processes would have to halve together, and one of them is stuck.
                if at_once <= 1 or self.accelerator.num_processes > 1:
                    raise self._out_of_memory(error) from error
                self.micro_rows = (at_once + 1) // 2
            self._zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.say(
                f"The memory ran out with {at_once} rows at once: going on with {self.micro_rows}, "
                "which gives the same steps."
            )

    def _accumulate(self, step_input: StepInput) -> float:
        accelerator = self.accelerator
        weight = sum(float(row.batch.weights.sum(dtype=torch.float64)) for row in step_input.rows)
        (total,) = self._sum([weight])
        if not total:
            raise RecipeError(
                f"None of the samples {', '.join(step_input.places[:3])} has an answer that fits: raise "
                "row_tokens, or take them out."
            )
        loss = 0.0
        micro_batches = list(self._micro_batches(step_input.rows))
        for number, (batch, features) in enumerate(micro_batches, 1):
            # Gradients are exchanged once, with the last micro-batch.
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                value = self.module(batch, features)
                # Processes' gradients are averaged, and ours are parts of one sum.
                (value * (accelerator.num_processes / total)).backward()
            loss += float(value.detach())
        (loss,) = self._sum([loss])
        return loss / total

    def _micro_batches(self, rows: Sequence[RowInput]) -> Iterator[tuple[Batch, Any]]:
        size = self.micro_rows or max(len(rows), 1)
        for start in range(0, len(rows), size):
            yield collate_rows(rows[start : start + size], self.accelerator.device)

    def _update(self, loss: float, factor: float, label: str, step_input: StepInput) -> float:
        self._check_gradients(loss, label, step_input)
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            # Before the step: a gradient that is not finite would spoil weights and checkpoint.
            raise self._diverged(
                f"{label}: the loss is {loss}, its gradient's norm {norm}", step_input
            )
        if self._spikes.exploded(loss):
            usual = self._spikes.usual
            raise self._diverged(
                f"{label}: the loss grew to {loss:.2f} from {usual:.2f}", step_input
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.step()
        self._zero_grad()
        return norm

    def _check_gradients(self, loss: float, label: str, step_input: StepInput) -> None:
        """A part that trains and gets no gradient would stay as it is, and the run would end well."""
        if loss == 0:
            return  # nothing is left to learn
        here = [float(any(row.batch.images for row in step_input.rows))]
        here += [float(has_gradient(part)) for part in self.parts.values()]
        pictures, *found = self._sum(here)  # each process may hold a piece of a part
        missing = [
            name
            for name, there in zip(self.parts, found, strict=True)
            if not there and (pictures or name not in self.needs_pictures)
        ]
        if not missing:
            return
        self._zero_grad()
        shown = ", ".join(missing[:6]) + (" …" if len(missing) > 6 else "")
        raise RecipeError(
            f"{label}: no gradient reached {shown}, so nothing would be learned there. Nothing was "
            "changed in this step. Leave that part out of the training or try another method (--set "
            "method=lora), and please report the model."
        )

    def _diverged(self, what: str, step_input: StepInput) -> RecipeError:
        self._zero_grad()
        places = step_input.places
        shown = ", ".join(places[:3]) + (" …" if len(places) > 3 else "")
        rates = " ".join(f"--set {rate}=…" for rate in self.rates)
        return RecipeError(
            f"{what}{f' (its samples: {shown})' if places else ''}. Lower the learning rates "
            f"({rates}){' or correct those samples' if places else ''}, and go on from the last "
            "checkpoint with --resume."
        )

    def _out_of_memory(self, error: Exception) -> RecipeError:
        return RecipeError(
            f"The memory ran out ({' '.join(str(error).split())[:120]}): go on with --resume and "
            "--set micro_rows=1, shorter rows (--set row_tokens=…) or --set gradient_checkpointing=true."
        )

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _sum(self, values: list[float]) -> list[float]:
        """The sum of each over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        summed: list[float] = self.accelerator.reduce(tensor, "sum").tolist()
        return summed


def has_gradient(parameters: Sequence[Tensor]) -> bool:
    """Whether any number of their gradients differs from 0."""
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def collate_rows(rows: Sequence[RowInput], device: torch.device) -> tuple[Batch, Any]:
    """Rows of one length -> the batch of them and the features of all its pictures, on `device`.

    A Hugging Face VLM's inputs stay as they are: it computes one row at a time.
    """
    batch = join([row.batch for row in rows]).to(device)
    given = [row.features for row in rows if row.features is not None]
    if given and isinstance(given[0], dict):
        return batch, {name: value.to(device) for name, value in given[0].items()}
    return batch, torch.cat(given).to(device) if given else None


class LossSpikeGuard:
    """Tells when the loss has left its usual range for good: far above it, several steps in a row."""

    FACTOR, STEPS, FIRST = 4.0, 5, 10

    def __init__(self) -> None:
        self.usual = 0.0
        """A running mean of the losses that were not far above it."""
        self._seen = 0
        self._above = 0

    def exploded(self, loss: float) -> bool:
        """Adds a loss; whether it is one too many."""
        if self._seen >= self.FIRST and loss > self.FACTOR * self.usual + 1.0:
            self._above += 1
            return self._above >= self.STEPS
        self._above = 0
        self._seen += 1
        share = max(1 / self._seen, 0.1)
        self.usual += share * (loss - self.usual)
        return False

    @property
    def active(self) -> bool:
        """Whether the last losses were far above the usual one."""
        return self._above > 0


def schedule_factor(kind: str, step: int, steps: int, warmup: float, decay: float) -> float:
    """The learning rates' factor at `step` of `steps`, from 0 to 1.

    `cosine` falls to 0 as half a cosine after the warm-up (Loshchilov and Hutter 2017,
    "SGDR"), `linear` in a straight line, `constant` not at all; `wsd` (warm-up, stable, decay)
    only over the last `decay` of the steps (Hägele et al. 2024).
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / (rising + 1)
    if kind == "constant":
        return 1.0
    if kind == "wsd":
        return min(1.0, (steps - step) / max(1, round(steps * decay)))
    done = (step - rising) / max(1, steps - rising)
    return 1 - done if kind == "linear" else (1 + math.cos(math.pi * done)) / 2
