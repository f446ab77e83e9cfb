"""Hooks around one forward pass of a model: stop it early, measure a part of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class ForwardCancelled(Exception):  # noqa: N818 - nothing went wrong
    """The forward pass was stopped early because its result is not needed any more."""


@contextlib.contextmanager
def cancellable(model: nn.Module, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Raises ForwardCancelled from a forward pass of `model`, before its next block, once `cancelled`.

    The blocks are the members of its module lists: layers of the text model, of the
    vision tower, of a perceiver. A forward pass that completes computes the same numbers.
    """

    def check(*_: object) -> None:
        if cancelled():
            raise ForwardCancelled

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    hooks = [block.register_forward_pre_hook(check) for blocks in lists for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class ForwardTimer:
    """Milliseconds that the forward passes of `module` took; 0 if there is no module."""

    def __init__(self, module: nn.Module | None) -> None:
        self.ms = 0.0
        self._module = module
        self._start = 0.0
        self._hooks: list[Any] = []

    def __enter__(self) -> "ForwardTimer":
        if self._module is not None:
            self._hooks = [
                self._module.register_forward_pre_hook(self._before),
                self._module.register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, *_: object) -> None:
        self._start = synchronized_time()

    def _after(self, *_: object) -> None:
        self.ms += (synchronized_time() - self._start) * 1000


def synchronized_time() -> float:
    """Seconds of a clock, after the GPU has finished everything that was queued on it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
