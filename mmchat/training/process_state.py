"""What a run changes in its process and puts back: accelerate's state, torch's determinism, signal handlers.

Signals pause or finish a run. They are handled between two steps.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from mmchat.training.run_folder import KEEP

_STATES: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
Request = Literal["", "pause", "keep"]
_REQUESTS: tuple[Request, ...] = ("", "pause", "keep")
_ANNOUNCED = {"pause": "Saving a checkpoint …", "keep": "Ending early and keeping the result …"}


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


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Makes every operation deterministic on a CPU, so that resuming is exact."""
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(previous or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(previous)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP pause; KEEP ends early and keeps the result; a second SIGINT ends at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.requested: Request = ""
        self._announced: Request = ""
        self._say = say

    def agreed(self, accelerator: Accelerator) -> Request:
        """The request, the same on all processes after the same step."""
        if accelerator.num_processes > 1:
            mine = torch.tensor([_REQUESTS.index(self.requested)], device=accelerator.device)
            self.requested = _REQUESTS[int(accelerator.gather(mine).max())]
        if self.requested != self._announced:
            # Not in the handler: it may have interrupted a write to the same terminal.
            self._announced = self.requested
            self._say(_ANNOUNCED[self.requested])
        return self.requested

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Handles the signals while the block runs; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        pausing = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            pausing.append(signal.SIGHUP)
        before = {n: signal.getsignal(n) for n in (*pausing, KEEP)}

        def pause(number: int, frame: Any) -> None:
            self.requested = "pause"
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        def keep(number: int, frame: Any) -> None:
            self.requested = "keep"

        for number in pausing:
            signal.signal(number, pause)
        signal.signal(KEEP, keep)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)
