"""Isolates accelerate's process-wide state, so that runs in one process do not affect each other."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

_STATES: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)


class IsolatedAccelerator:
    """An `Accelerator` that is independent of any other in this process.

    accelerate keeps the options of an `Accelerator` (device, mixed precision) for the whole process and
    refuses another with different ones, such as that of a second run or of a notebook that uses
    accelerate itself. Inside `active()`, the state is this run's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._state: list[dict[str, Any]] = [{} for _ in _STATES]
        with self.active():
            # `losses.autocast` does the mixed precision.
            self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes this run's state the process-wide one, and restores the other afterwards. May be nested."""
        others = [state._shared_state for state in _STATES]
        for state, own in zip(_STATES, self._state, strict=True):
            state._shared_state = own
        try:
            yield
        finally:
            for state, other in zip(_STATES, others, strict=True):
                state._shared_state = other
