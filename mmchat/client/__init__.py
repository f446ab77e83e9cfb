"""The engine seen from outside: find or start it, ask it, stop it. Free of torch."""

from mmchat.client.engine_client import EngineClient
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
    place_pictures,
)

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
    "place_pictures",
]
