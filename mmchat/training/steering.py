"""What signals ask of a run, heard between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator

from mmchat.training.progress import KEEP

Wanted = Literal["", "pause", "keep"]
_ALL: tuple[Wanted, ...] = ("", "pause", "keep")


class Steering:
    """SIGINT and SIGTERM pause, KEEP keeps; a second SIGINT ends at once, as ever."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.wanted: Wanted = ""
        self._say = say

    def agreed(self, accelerator: Accelerator) -> Wanted:
        """What is wanted, on all processes after the same step."""
        if accelerator.num_processes > 1:
            mine = torch.tensor([_ALL.index(self.wanted)], device=accelerator.device)
            self.wanted = _ALL[int(accelerator.gather(mine).max())]
        return self.wanted

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listens meanwhile; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, KEEP)}

        def pause(number: int, frame: Any) -> None:
            self.wanted = "pause"
            self._say("Saving a checkpoint …")
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        def keep(number: int, frame: Any) -> None:
            self.wanted = "keep"
            self._say("Ending early, and keeping what was learned …")

        for number, handler in ((signal.SIGINT, pause), (signal.SIGTERM, pause), (KEEP, keep)):
            signal.signal(number, handler)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)
