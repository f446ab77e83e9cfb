"""One forward of a foreign model, watched from outside: how long a part takes, and whether to go on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class StoppedError(Exception):
    """The forward was cut short, for nobody waits for it."""


@contextlib.contextmanager
def stoppable(model: nn.Module, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Raises StoppedError out of a forward of `model` before its next block, once `cancelled`.

    The blocks are the members of its module lists: layers of the text model, of the
    vision tower, of a perceiver. The numbers of a forward that goes through are not touched.
    """

    def ask(*_: object) -> None:
        if cancelled():
            raise StoppedError

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    hooks = [block.register_forward_pre_hook(ask) for blocks in lists for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Stopwatch:
    """Milliseconds that the module's forwards took; 0 where there is no module."""

    def __init__(self, module: nn.Module | None) -> None:
        self.ms = 0.0
        self._module = module
        self._began = 0.0
        self._hooks: list[Any] = []

    def __enter__(self) -> "Stopwatch":
        if self._module is not None:
            self._hooks = [
                self._module.register_forward_pre_hook(self._start),
                self._module.register_forward_hook(self._stop),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: object) -> None:
        self._began = now()

    def _stop(self, *_: object) -> None:
        self.ms += (now() - self._began) * 1000


def now() -> float:
    """Seconds, when all that was asked of a GPU so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
