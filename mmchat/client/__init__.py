"""The engine seen from outside: find or start it, ask it, stop it. Free of torch."""

from typing import TYPE_CHECKING, Any

from mmchat.client.protocol import (
    Delta,
    Done,
    EngineStatus,
    Event,
    ImagePart,
    Loading,
    Options,
    Started,
    Turn,
    Waiting,
)
from mmchat.marks import marks_of_nothing, place_pictures

if TYPE_CHECKING:
    from mmchat.client.engine_client import EngineClient

__all__ = [
    "Delta",
    "Done",
    "EngineClient",
    "EngineStatus",
    "Event",
    "ImagePart",
    "Loading",
    "Options",
    "Started",
    "Turn",
    "Waiting",
    "marks_of_nothing",
    "place_pictures",
]


def __getattr__(name: str) -> Any:
    # httpx is for those who ask; the engine and the types do without its 0.1 s.
    if name == "EngineClient":
        from mmchat.client.engine_client import EngineClient

        return EngineClient
    raise AttributeError(f"module {__name__} has no attribute {name}")
