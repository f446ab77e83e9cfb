"""Short ways to ask, for tests."""

import asyncio
import contextlib
import struct
import time
import zlib
from collections.abc import Callable

from mmchat.client import Delta, Done, EngineClient, Event, Options
from mmchat.turns import ImagePart, Turn, place_pictures


def user(text: str, *pictures: ImagePart) -> list[Turn]:
    return [Turn("user", place_pictures(text, pictures))]


async def ask(client: EngineClient, text: str, *pictures: ImagePart, **options: object) -> str:
    """The answer's text; asserts that it was completed."""
    events = await events_of(client, text, *pictures, **options)
    assert isinstance(events[-1], Done)
    return text_of(events)


async def events_of(
    client: EngineClient, text: str, *pictures: ImagePart, **options: object
) -> list[Event]:
    answer = client.chat(user(text, *pictures), Options(**options))  # type: ignore[arg-type]
    async with contextlib.aclosing(answer) as events:
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits for a condition, not for a time; fails when it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for never came"
        await asyncio.sleep(0.005)


def png(colour: int = 0) -> bytes:
    """A grey PNG of 2x2 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = bytes([0, colour, colour]) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
