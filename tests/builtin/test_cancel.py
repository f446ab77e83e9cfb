"""Leaving a question of the built-in model before its first word: what is under way ends soon."""

import asyncio
import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from mmchat.client import Done, EngineClient, Event, Options, Started
from mmchat.turns import ImagePart, Turn
from tests.builtin.asking import cpu_seconds, picture, user
from tests.client.asking import ask, until

if TYPE_CHECKING:
    from mmchat.engine.backend import TorchBackend
    from mmchat.model.loaded_model import LoadedModel

LONG_TALK = [
    turn
    for _ in range(14)
    for turn in (
        user(picture("stars"), "what is in the picture?"),
        Turn("assistant", ("I see a large red star and a large green star.",)),
    )
] + [user("and how many are there in all?")]


@pytest.fixture
def backend(loaded: "LoadedModel") -> "TorchBackend":
    """The engine's own, over the weights that this process holds."""
    from mmchat.adapters.active import ActiveAdapter
    from mmchat.engine.backend import TorchBackend

    backend = TorchBackend()
    backend._loaded, backend._adapter = loaded, ActiveAdapter(loaded)
    backend._runner = backend._runner_for(loaded, backend._adapter)
    return backend


@pytest.fixture
def forwards(loaded: "LoadedModel") -> Iterator[list[int]]:
    """The tokens that each forward of the text model has read."""
    read: list[int] = []

    def note(module: object, given: object, output: dict[str, object]) -> None:
        read.append(output["last_hidden_state"].shape[1])  # type: ignore[attr-defined]

    hook = loaded.model.model.language_model.register_forward_hook(note)
    yield read
    hook.remove()


def test_a_long_prefill_ends_within_one_chunk(backend: "TorchBackend", forwards: list[int]) -> None:
    from mmchat.engine.decode import PREFILL_CHUNK

    options = Options(max_tokens=1)
    started, *_ = backend.generate(LONG_TALK, options, lambda: False)
    assert isinstance(started, Started) and started.dropped_turns == 0
    whole = len(forwards)
    assert sum(forwards) == started.prompt_tokens
    assert whole > 4 and max(forwards) == PREFILL_CHUNK
    for read in (0, 1, whole - 1):
        forwards.clear()
        backend._prefix.clear()  # else what was read before is not read again
        events = backend.generate(LONG_TALK, options, lambda read=read: len(forwards) >= read)  # type: ignore[misc]
        done = list(events)[-1]
        assert isinstance(done, Done)
        assert (done.finish_reason, done.completion_tokens) == ("cancelled", 0)
        assert len(forwards) == read


def test_a_prefill_ends_when_the_stream_is_closed_at_its_start(
    backend: "TorchBackend", forwards: list[int]
) -> None:
    seen: list[Event] = []
    for event in backend.generate(LONG_TALK, Options(), lambda: bool(seen)):
        seen.append(event)
    assert isinstance(seen[0], Started) and isinstance(seen[-1], Done)
    assert seen[-1].finish_reason == "cancelled" and forwards == []


def photograph(seed: int) -> ImagePart:
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((4000 + seed, 4000)).convert("RGB").save(buffer, "PNG")
    data = buffer.getvalue()
    return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)


async def test_leaving_while_pictures_are_prepared_stops_that(
    new_client: Callable[..., EngineClient],
) -> None:
    client = new_client()
    pid = (await client.start()).pid
    await ask(client, "hello")  # loaded
    turns = [user(*map(photograph, range(8)), "what is in the picture?")]
    begin = cpu_seconds(pid)

    async def follow() -> None:
        async with contextlib.aclosing(client.chat(turns, Options())) as events:
            async for event in events:
                assert not isinstance(event, Started)

    task = asyncio.create_task(follow())
    await until(lambda: cpu_seconds(pid) > begin + 0.3)  # it is at them
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await ask(client, "hello")
    cut = cpu_seconds(pid) - begin
    begin = cpu_seconds(pid)
    async with contextlib.aclosing(client.chat(turns, Options(max_tokens=1))) as events:
        assert isinstance([event async for event in events][-1], Done)
    # Had it gone on, all pictures would have been ready by now.
    assert cut < cpu_seconds(pid) - begin
