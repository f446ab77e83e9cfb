"""The engine's client: finds, starts, queries and stops the engine. Does not import torch."""

from typing import TYPE_CHECKING, Any

from mmchat.client.protocol import (
    Delta,
    Done,
    EngineStatus,
    Event,
    Loading,
    Options,
    Started,
    Waiting,
)

if TYPE_CHECKING:
    from mmchat.client.engine_client import EngineClient

__all__ = [
    "Delta",
    "Done",
    "EngineClient",
    "EngineStatus",
    "Event",
    "Loading",
    "Options",
    "Started",
    "Waiting",
]


def __getattr__(name: str) -> Any:
    # Importing httpx takes 0.1 s, which the engine and users of the types do not need.
    if name == "EngineClient":
        from mmchat.client.engine_client import EngineClient

        return EngineClient
    raise AttributeError(f"module {__name__} has no attribute {name}")
