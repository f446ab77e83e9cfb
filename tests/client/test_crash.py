"""The engine dies; the person gets a sentence, keeps what was written, and goes on."""

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mmchat.client import Delta, Done, EngineClient, Event, Options, Waiting
from mmchat.client.endpoint import engine_lives, log_file
from mmchat.client.spawn import EngineProcess
from mmchat.errors import EngineError
from mmchat.settings import load_settings
from mmchat.turns import ImagePart
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
    with pytest.raises(EngineError, match="the next message starts the engine again"):
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
    with pytest.raises(EngineError, match="engine is stopping"):
        async with contextlib.aclosing(client.chat(user("forever"), Options())) as events:
            async for event in events:
                seen.append(event)
                if isinstance(event, Delta) and len(seen) > 20:
                    await new_client().stop()
    assert text_of(seen).startswith("tick-1 ")
    assert not engine_lives()
    assert await ask(client, "say on") == "on "


async def test_a_message_in_line_is_asked_of_the_next_engine(new_client: Clients) -> None:
    """The one that is being answered is told; the one behind it had not begun and goes on."""
    client = new_client()
    pid = int(await ask(client, "pid"))
    running: list[Event] = []
    waiting: list[Event] = []
    first = asyncio.create_task(follow(client, "forever", running))
    await until(lambda: text_of(running))
    second = asyncio.create_task(follow(new_client(), "pid", waiting))
    await until(lambda: waiting)
    assert waiting == [Waiting(1)]
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(EngineError, match="engine is stopping"):
        await first
    await second
    assert isinstance(waiting[-1], Done) and int(text_of(waiting)) != pid


async def test_why_it_could_not_start_is_told_without_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings()
    monkeypatch.setenv("MMCHAT_GENERATION_TOP_P", "7")  # for the engine
    process = EngineProcess(settings)
    await until(lambda: process.exit_status() is not None)
    assert "top_p" in str(process.failure())
    log_file().unlink()
    assert "it printed nothing" in str(process.failure())


async def test_an_engine_that_is_killed_while_it_starts_is_told() -> None:
    for number, said in ((signal.SIGKILL, "ran out of memory"), (signal.SIGSEGV, str(log_file()))):
        process = EngineProcess(load_settings())
        os.kill(process.pid, number)
        await until(lambda process=process: process.exit_status() is not None)
        sentence = str(process.failure())
        assert f"was killed by signal {number:d} " in sentence and said in sentence


async def test_progress_in_the_log_is_not_taken_for_the_reason() -> None:
    process = EngineProcess(load_settings())
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: process.exit_status() is not None)
    with log_file().open("a", encoding="utf-8") as log:
        log.write("OSError: no room\n2026-11-28 02:22:31,235 INFO Started server process [1]\n")
    process._process.returncode = 1
    assert "could not start: OSError: no room" in str(process.failure())


async def test_relative_folders_reach_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_client: Clients
) -> None:
    """It works in another folder than we do, and finds the same home, model and adapter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-adapter").mkdir()
    monkeypatch.setenv("MMCHAT_HOME", "home")
    monkeypatch.setenv("MMCHAT_MODEL_NAME", "./my-model")
    monkeypatch.setenv("MMCHAT_MODEL_ADAPTER", "./my-adapter")
    client = new_client()
    await client.start()
    try:
        async for _ in client.load():
            pass
        status = await client.status()
        assert status is not None
        assert (status.model, status.adapter) == (
            str(tmp_path / "my-model"),
            str(tmp_path / "my-adapter"),
        )
        assert await ask(client, "say on") == "on "
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "home",
            "my-adapter",
            "my-model",
        ]
    finally:
        assert await client.stop()


def test_a_log_that_cannot_be_written_is_told() -> None:
    log_file().mkdir(parents=True)
    with pytest.raises(EngineError, match=r"log .* cannot be written"):
        EngineProcess(load_settings())


async def test_words_that_are_no_utf_8_arrive_mended(new_client: Clients) -> None:
    client = new_client()
    assert await ask(client, "say a\udcff") == "a\ufffd "
    for names in ({"model": "a\udcff"}, {"adapter": "a\udcff"}, {"model": "/nowhere/a\udcff"}):
        with pytest.raises(EngineError, match="not valid UTF-8: rename the folder"):
            async for _ in client.chat(user("hello"), Options(), **names):
                pass
    with pytest.raises(EngineError, match="not valid UTF-8: rename the folder"):
        await client.use_adapter("a\udcff")


async def test_a_new_engine_gets_the_pictures_again(new_client: Clients) -> None:
    client = new_client()
    picture = ImagePart("0" * 64, "image/png", b"not what the sum says")
    with pytest.raises(EngineError, match="not the one in the path"):
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
