"""One request at a time: streaming, cancelling, standing in line."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from mmchat.client import Delta, Done, EngineClient, Event, Loading, Options, Started, Waiting
from mmchat.errors import AdapterError, EngineError, ModelError
from tests.client.asking import ask, events_of, text_of, until, user
from tests.engine.scripted import answers, open_gate

Clients = Callable[..., EngineClient]


async def test_a_word_arrives_before_the_next_is_made(
    shared_engine: object, new_client: Clients
) -> None:
    async with contextlib.aclosing(new_client().chat(user("gate streams"), Options())) as events:
        async for event in events:
            if isinstance(event, Delta):
                assert event.text == "before "
                break
        open_gate("streams")  # only now can the rest be made
        rest = [event async for event in events]
    assert text_of(rest) == "after "


async def test_events_come_in_their_order(shared_engine: object, new_client: Clients) -> None:
    client = new_client()
    kinds = [type(event) for event in await events_of(client, "say a b")]
    assert kinds[-4:] == [Started, Delta, Delta, Done]
    assert set(kinds[:-4]) <= {Loading}


@pytest.mark.parametrize("command", ["forever", "hang"])
async def test_closing_the_stream_stops_the_model(
    shared_engine: object, new_client: Clients, command: str
) -> None:
    client = new_client()
    asked = len(answers())
    async with contextlib.aclosing(client.chat(user(command), Options(max_tokens=10**9))) as events:
        async for event in events:
            if isinstance(event, Delta) or (command == "hang" and isinstance(event, Started)):
                break
    await until(lambda: len(answers()) > asked)
    assert answers()[-1]["finish"] == "cancelled"
    assert await ask(client, "say next") == "next "


async def test_cancelling_the_task_stops_the_model(
    shared_engine: object, new_client: Clients
) -> None:
    asked = len(answers())
    seen: list[Event] = []

    async def follow() -> None:
        async with contextlib.aclosing(new_client().chat(user("forever"), Options())) as events:
            async for event in events:
                seen.append(event)

    task = asyncio.create_task(follow())
    await until(lambda: any(isinstance(event, Delta) for event in seen))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until(lambda: len(answers()) > asked)
    assert answers()[-1]["finish"] == "cancelled"


async def test_the_others_are_told_their_place_and_may_leave(
    shared_engine: object, new_client: Clients
) -> None:
    seen: dict[str, list[Event]] = {}

    async def follow(name: str, text: str) -> None:
        seen[name] = []
        async with contextlib.aclosing(new_client().chat(user(text), Options())) as events:
            async for event in events:
                seen[name].append(event)

    async def in_line(name: str, text: str, first: Event) -> asyncio.Task[None]:
        task = asyncio.create_task(follow(name, text))
        await until(lambda: first in seen.get(name, []))
        return task

    running = await in_line("running", "gate line", Delta("before "))
    second = await in_line("second", "say second", Waiting(1))
    third = await in_line("third", "say third", Waiting(2))
    status = await new_client().status()
    assert status is not None
    assert status.waiting == 2
    assert status.idle_s == 0
    second.cancel()
    await until(lambda: Waiting(1) in seen["third"])  # moved up
    open_gate("line")
    await asyncio.gather(running, third)
    assert text_of(seen["third"]) == "third "
    assert Started not in map(type, seen["second"])
    assert "say second" not in [answer["text"] for answer in answers()]


async def test_text_of_every_script_is_whole(shared_engine: object, new_client: Clients) -> None:
    said = await ask(new_client(), "unicode")
    assert said == "aée\u0301漢😀👨\u200d👩\u200d👧\u2028end"


async def test_models_and_adapters_are_switched_and_failures_survived(
    shared_engine: object, new_client: Clients
) -> None:
    client = new_client()
    assert [step.fraction for step in [s async for s in client.load("first")]] == [0.0, 0.25, 1.0]
    done = (await events_of(client, "say x"))[-1]
    assert isinstance(done, Done)
    assert (done.model, done.adapter) == ("first", "")
    assert (await client.use_adapter("birds")).adapter == "birds"
    done = (await events_of(client, "say x"))[-1]
    assert isinstance(done, Done)
    assert (done.model, done.adapter) == ("first", "birds")
    with pytest.raises(AdapterError, match="does not fit"):
        await client.use_adapter("broken")
    with pytest.raises(AdapterError, match="other sizes"):
        await client.use_adapter("unfit")
    done = (await events_of(client, "say x"))[-1]
    assert isinstance(done, Done)
    assert done.adapter == "birds"  # put on again, for the unfit one had taken it off
    for model, kind, sentence in [
        ("broken", ModelError, "cut short"),
        ("buggy", EngineError, "Internal error in the engine"),
    ]:
        with pytest.raises(kind, match=sentence):
            async for _ in client.load(model):
                pass
    status = await client.status()
    assert status is not None
    assert status.state == "failed"
    assert "Internal error in the engine" in status.error
    assert await ask(client, "say again") == "again "
    status = await client.status()
    assert status is not None
    assert (status.state, status.model, status.adapter) == ("ready", "first", "birds")
    assert status.error == ""


async def leave_a_load(client: EngineClient, model: str) -> None:
    """Asks for a load, and goes away in the midst of it."""
    async with contextlib.aclosing(client.load(model)) as steps:
        async for step in steps:
            if step.fraction == 0.5:
                return


async def test_a_load_that_nobody_waits_for_makes_room_for_another_model(
    shared_engine: object, new_client: Clients
) -> None:
    client = new_client()
    await leave_a_load(client, "steps-never")  # its gate stays shut
    answer = client.chat(user("say x"), Options(), model="other")
    async with asyncio.timeout(30), contextlib.aclosing(answer) as events:
        done = [event async for event in events][-1]
    assert isinstance(done, Done)
    assert done.model == "other"
    status = await client.status()
    assert status is not None
    assert (status.state, status.model, status.error) == ("ready", "other", "")


async def test_a_load_that_somebody_else_wants_goes_on(
    shared_engine: object, new_client: Clients
) -> None:
    client = new_client()
    await leave_a_load(client, "steps-same")
    seen: list[Event] = []

    async def follow() -> None:
        answer = client.chat(user("say x"), Options(), model="steps-same")
        async with contextlib.aclosing(answer) as events:
            async for event in events:
                seen.append(event)

    task = asyncio.create_task(follow())
    await until(lambda: Waiting(1) in seen)
    open_gate("same")
    await task
    assert isinstance(seen[-1], Done) and seen[-1].model == "steps-same"
    assert not any(isinstance(event, Loading) for event in seen)  # not begun again


async def test_a_load_tells_how_far_it_is(shared_engine: object, new_client: Clients) -> None:
    client = new_client()
    async with contextlib.aclosing(client.load("gate-load")) as steps:
        async for step in steps:
            if step.fraction == 0.25:
                break
        status = await client.status()
        assert status is not None
        assert (status.state, status.model, status.fraction) == ("loading", "gate-load", 0.25)
        open_gate("load")
        assert [step.stage async for step in steps] == ["Ready"]
