"""accelerate's state of the process, kept apart for each run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

_STATES: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)


class OwnAccelerator:
    """An `Accelerator` that does not depend on any other of this process, and leaves those alone.

    accelerate keeps what an `Accelerator` was made with (device, mixed precision) for the whole
    process, and refuses another that wants something else: a second run, or a notebook that uses
    accelerate itself. Inside `active()` that state is the run's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._state: list[dict[str, Any]] = [{} for _ in _STATES]
        with self.active():
            # Mixed precision is ours (`objectives.autocast`).
            self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Whatever asks accelerate for the process's state meanwhile finds this run's; may be nested."""
        others = [kind._shared_state for kind in _STATES]
        for kind, own in zip(_STATES, self._state, strict=True):
            kind._shared_state = own
        try:
            yield
        finally:
            for kind, other in zip(_STATES, others, strict=True):
                kind._shared_state = other
