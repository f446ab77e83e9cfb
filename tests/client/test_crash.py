"""The engine dies; the person gets a sentence, keeps what was written, and goes on."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable

import pytest

from mmchat.client import Delta, EngineClient, Event, ImagePart, Options
from mmchat.client.endpoint import engine_lives, log_file
from mmchat.errors import EngineError
from tests.client.asking import ask, text_of, until, user

pytestmark = pytest.mark.usefixtures("scripted_engine")
Clients = Callable[..., EngineClient]


async def follow(client: EngineClient, text: str, seen: list[Event]) -> None:
    async with contextlib.aclosing(client.chat(user(text), Options())) as events:
        async for event in events:
            seen.append(event)


async def test_a_crash_in_mid_answer_keeps_the_words_and_the_next_message_works(
    new_client: Clients,
) -> None:
    client = new_client()
    seen: list[Event] = []
    with pytest.raises(EngineError, match="ended unexpectedly while answering") as caught:
        await follow(client, "crash", seen)
    assert text_of(seen) == "one two "
    assert str(log_file()) in str(caught.value)
    assert await ask(client, "say on") == "on "


async def test_kill_9_in_mid_answer_keeps_the_words_and_the_next_message_works(
    new_client: Clients,
) -> None:
    client = new_client()
    pid = int(await ask(client, "pid"))
    seen: list[Event] = []
    with pytest.raises(EngineError, match="the next message starts it again"):
        async with contextlib.aclosing(client.chat(user("gate never"), Options())) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, Delta):
                    os.kill(pid, signal.SIGKILL)
    assert text_of(seen) == "before "
    assert int(await ask(client, "pid")) != pid


async def test_a_crash_while_loading_is_told(new_client: Clients) -> None:
    client = new_client()
    with pytest.raises(EngineError, match="ended unexpectedly while loading"):
        async for _ in client.load("crash-load"):
            pass
    assert await ask(client, "say on") == "on "


async def test_being_asked_to_end_in_mid_answer_is_told(new_client: Clients) -> None:
    client = new_client()
    seen: list[Event] = []
    with pytest.raises(EngineError, match="was asked to end"):
        async with contextlib.aclosing(client.chat(user("forever"), Options())) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, Delta) and len(seen) > 20:
                    await new_client().stop()
    assert text_of(seen).startswith("tick-1 ")
    assert not engine_lives()
    assert await ask(client, "say on") == "on "


async def test_a_new_engine_gets_the_pictures_again(new_client: Clients) -> None:
    client = new_client()
    picture = ImagePart("0" * 64, "image/png", b"not what the sum says")
    with pytest.raises(EngineError, match="not those that the sha256 names"):
        await ask(client, "echo-images", picture)
    data = b"any bytes"
    picture = ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)
    known = ImagePart(picture.sha256)
    said = f"1 pictures: {picture.sha256} "
    assert await ask(client, "echo-images", picture) == said
    assert await ask(client, "echo-images", known) == said
    os.kill(int(await ask(client, "pid")), signal.SIGKILL)
    await until(lambda: not engine_lives())
    with pytest.raises(EngineError, match="attach it again"):
        await ask(client, "echo-images", known)
    assert await ask(client, "echo-images", picture) == said
