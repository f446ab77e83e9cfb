"""Signals that pause or finish a run, handled between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator

from mmchat.training.run_folder import KEEP

Request = Literal["", "pause", "keep"]
_REQUESTS: tuple[Request, ...] = ("", "pause", "keep")
_ANNOUNCED = {
    "pause": "Saving a checkpoint …",
    "keep": "Ending early and keeping the result …",
}


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
