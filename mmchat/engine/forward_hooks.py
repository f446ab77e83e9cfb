"""Hooks for one forward pass of a model: to stop it early, or to time a part of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class ForwardCancelled(Exception):  # noqa: N818 - not an error
    """The forward pass was stopped because its result is not needed any more."""


@contextlib.contextmanager
def cancellable(model: nn.Module, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Stops a forward pass of `model` with ForwardCancelled before the next block once `cancelled`.

    The blocks are the members of its module lists: layers of the text model, the vision tower or a
    perceiver. A forward pass that completes computes the same numbers as without hooks.
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
    """Measures the milliseconds of the forward passes of `module`; 0 if it is None."""

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
    """A clock in seconds, read after the GPU has finished its queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
