"""The loop: exact steps from micro-batches, on one process or several, that can be stopped at any one.

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
from mmchat.model.planning import is_out_of_memory
from mmchat.training.packing import Batch, join


@dataclass(slots=True)
class RowInput:
    """One packed row and the features of its pictures."""

    batch: Batch
    features: Any = None
    """(pictures, patches, vision_width); pixels where the encoder trains; a stock model's inputs."""


@dataclass(slots=True)
class StepInput:
    """The rows of a step that this process computes. `waited` seconds went by until they came."""

    rows: list[RowInput]
    places: list[str]
    """Where its samples come from, for what has to be told about them."""
    samples: int
    tokens: int
    waited: float = 0.0


@dataclass(slots=True)
class StepFigures:
    """What a step gave."""

    loss: float
    norm: float
    seconds: float
    tokens: int
    samples: int
    waited: float


class Updates:
    """Does optimizer steps with gradients that are there: clipped, at the schedule's rates, watched."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[Tensor],
        *,
        clip: float,
        rates: Sequence[str],
        clip_norm: Callable[[Sequence[Tensor], float], Any] = nn.utils.clip_grad_norm_,
        parts: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Each group of the optimizers has its learning rate as `rate`; `rates` are the recipe's keys
        of those that count. `clip_norm` clips the gradients to a norm, and gives what it was. Every
        one of `parts` (its parameters by its name) has to get a gradient in every step."""
        self.optimizers = list(optimizers)
        # The smallest first: one number that is not 0 is enough.
        self.parts = {
            name: sorted(part, key=lambda tensor: tensor.numel())
            for name, part in (parts or {}).items()
        }
        self.parameters = list(parameters)
        self.clip = clip
        self.rates = tuple(rates)
        self._clip_norm = clip_norm
        self._watch = Explosion()

    def apply(self, loss: float, factor: float, called: str, places: Sequence[str] = ()) -> float:
        """One optimizer step with every learning rate at `factor` of its own; -> the gradient's norm.

        Raises RecipeError if loss or gradient are not finite, if a part that trains got no gradient
        or if the loss explodes; then nothing was changed. `called` names the step, `places` are where
        its samples come from.
        """
        self._check_gradients(loss, called, places)
        norm = float(self._clip_norm(self.parameters, self.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            # Before the step: a gradient that is not finite would spoil weights and checkpoint.
            self._fail(f"{called}: the loss is {loss}, its gradient's norm {norm}", places)
        if self._watch.exploded(loss):
            self._fail(
                f"{called}: the loss grew to {loss:.2f} from {self._watch.usual:.2f}", places
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def suspicious(self) -> bool:
        """Whether the last steps were far above: no checkpoint is to be made of them."""
        return self._watch.suspicious

    def _check_gradients(self, loss: float, called: str, places: Sequence[str]) -> None:
        """A part that trains and gets no gradient would stay as it is, and the run would end well."""
        if loss == 0:
            return  # nothing is left to learn
        missing = self._without_gradient()
        if not missing:
            return
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        shown = ", ".join(missing[:6]) + (" …" if len(missing) > 6 else "")
        raise RecipeError(
            f"{called}: no gradient reached {shown}, so nothing would be learned there. Nothing was "
            "changed in this step. Leave that part out of the training or try another method (--set "
            "method=lora), and please report the model."
        )

    def _without_gradient(self) -> list[str]:
        """The names of `parts` whose gradients are absent or all 0."""
        return [name for name, part in self.parts.items() if not has_gradient(part)]

    def _fail(self, what: str, places: Sequence[str]) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        shown = ", ".join(places[:3]) + (" …" if len(places) > 3 else "")
        rates = " ".join(f"--set {rate}=…" for rate in self.rates)
        raise RecipeError(
            f"{what}{f' (its samples: {shown})' if places else ''}. The last checkpoint is whole: lower "
            f"the learning rates ({rates}){' or mend those samples' if places else ''}, and go on with "
            "--resume."
        )


class Steps(Updates):
    """Does whole steps on a loss module: `module(batch, features)` -> the sum of weighted losses."""

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
        seeing: Container[str] = (),
    ) -> None:
        """`seeing` are those of `parts` that get a gradient only in steps with pictures. The rest is
        as in `Updates`."""
        super().__init__(
            optimizers,
            parameters,
            clip=clip,
            rates=rates,
            clip_norm=accelerator.clip_grad_norm_,
            parts=parts,
        )
        self.seeing = seeing
        self._pictures = True
        self.accelerator = accelerator
        self.module = module
        self.micro_rows = micro_rows
        """Rows at once; 0 is all of a step."""
        self.say = say

    def step(self, given: StepInput, factor: float, called: str) -> StepFigures:
        """Gradients of `given`, and `apply` with them; raises RecipeError as that does, and where the
        memory is too small."""
        began = time.monotonic()
        loss = self._backward(given)
        self._pictures = any(row.batch.images for row in given.rows)
        norm = self.apply(loss, factor, called, given.places)
        seconds = time.monotonic() - began
        return StepFigures(loss, norm, seconds, given.tokens, given.samples, given.waited)

    def _backward(self, given: StepInput) -> float:
        """Gradients of the step's mean loss; -> that loss over all processes."""
        while True:
            try:
                return self._accumulate(given)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                at_once = min(self.micro_rows or len(given.rows), len(given.rows))
                # Several processes would have to halve together, and one of them is stuck.
                if at_once <= 1 or self.accelerator.num_processes > 1:
                    raise self._out_of_memory(error) from error
                self.micro_rows = (at_once + 1) // 2
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.say(
                f"The memory ran out with {at_once} rows at once: going on with {self.micro_rows}, "
                "which gives the same steps."
            )

    def _out_of_memory(self, error: Exception) -> RecipeError:
        return RecipeError(
            f"The memory ran out ({' '.join(str(error).split())[:120]}): go on with --resume and "
            "--set micro_rows=1, shorter rows (--set row_tokens=…) or --set gradient_checkpointing=true."
        )

    def _accumulate(self, given: StepInput) -> float:
        accelerator = self.accelerator
        weight = sum(float(row.batch.weights.sum(dtype=torch.float64)) for row in given.rows)
        total = float(self._reduce(weight))
        if not total:
            raise RecipeError(
                f"None of the samples {', '.join(given.places[:3])} asks for an answer: raise row_tokens, "
                "or take them out."
            )
        loss = 0.0
        micro = list(self._micro_batches(given.rows))
        for number, (batch, features) in enumerate(micro, 1):
            # Gradients are exchanged once, with the last micro-batch.
            last = number == len(micro)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                value = self.module(batch, features)
                # Processes' gradients are averaged, and ours are parts of one sum.
                (value * (accelerator.num_processes / total)).backward()
            loss += float(value.detach())
        return float(self._reduce(loss)) / total

    def _micro_batches(self, rows: Sequence[RowInput]) -> Iterator[tuple[Batch, Any]]:
        size = self.micro_rows or max(len(rows), 1)
        for start in range(0, len(rows), size):
            yield together(rows[start : start + size], self.accelerator.device)

    def _without_gradient(self) -> list[str]:
        """As in `Updates`, over all processes: each may hold a piece of a part."""
        here = [float(self._pictures), *(float(has_gradient(part)) for part in self.parts.values())]
        pictures, *found = self._reduce_all(here)
        return [
            name
            for name, there in zip(self.parts, found, strict=True)
            if not there and (pictures or name not in self.seeing)
        ]

    def _reduce(self, value: float) -> float:
        """The sum over all processes."""
        return self._reduce_all([value])[0]

    def _reduce_all(self, values: list[float]) -> list[float]:
        """The sum of each over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        reduced: list[float] = self.accelerator.reduce(tensor, "sum").tolist()
        return reduced


def has_gradient(parameters: Sequence[Tensor]) -> bool:
    """Whether any number of their gradients differs from 0."""
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def together(rows: Sequence[RowInput], device: torch.device) -> tuple[Batch, Any]:
    """Rows of one length -> the batch of them and the features of all its pictures, on `device`.

    A stock model's inputs stay as they are: it computes one row at a time.
    """
    batch = join([row.batch for row in rows]).to(device)
    given = [row.features for row in rows if row.features is not None]
    if given and isinstance(given[0], dict):
        return batch, {name: value.to(device) for name, value in given[0].items()}
    return batch, torch.cat(given).to(device) if given else None


class Explosion:
    """Tells when the loss has left what it was for good: far above its usual, several steps on end."""

    FACTOR, STEPS, FIRST = 4.0, 5, 10

    def __init__(self) -> None:
        self.usual = 0.0
        """A running mean of what was not far above it."""
        self._seen = 0
        self._above = 0

    def exploded(self, loss: float) -> bool:
        if self._seen >= self.FIRST and loss > self.FACTOR * self.usual + 1.0:
            self._above += 1
            return self._above >= self.STEPS
        self._above = 0
        self._seen += 1
        share = max(1 / self._seen, 0.1)
        self.usual += share * (loss - self.usual)
        return False

    @property
    def suspicious(self) -> bool:
        """Whether the last steps were far above: no checkpoint is to be made of them."""
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
