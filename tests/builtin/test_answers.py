"""Asking the built-in model through the engine: the installed command, mmchat's client, stock HTTP."""

import base64
import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mmchat.client import Delta, Done, EngineClient, Event, Options, Started, Waiting
from mmchat.client.endpoint import read_endpoint
from mmchat.history import History, Origin
from mmchat.turns import Turn
from tests.builtin.asking import (
    LONG,
    PICTURE_TOKENS,
    SCENES,
    STARS,
    cpu_seconds,
    files,
    picture,
    user,
)
from tests.cli.conftest import Run, sentence
from tests.client.asking import text_of

if TYPE_CHECKING:
    from mmchat.model.loaded_model import LoadedModel

Clients = Callable[..., EngineClient]


def test_ask_answers_about_a_picture(mmchat: Run) -> None:
    done = mmchat("ask", "what is in the picture?", "-a", str(STARS), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    text = found["text"].lower()
    assert text.count("star") >= 1 and "large" in text
    assert found["finish_reason"] == "stop" and found["model"] == "scenes"
    usage, timings = found["usage"], found["timings"]
    assert usage["image_tokens"] == PICTURE_TOKENS < usage["prompt_tokens"]
    assert 0 < usage["completion_tokens"] < 100
    assert all(timings[name] > 0 for name in ("image_ms", "prefill_ms", "decode_ms"))
    status = json.loads(mmchat("engine", "status", "--json").stdout)
    assert (status["model"], status["quantization"]) == ("scenes", "4bit")
    assert status["state"] == "ready" and status["memory_bytes"] > 0
    with History.open() as history:
        origin = history.message(found["message_id"]).origin
    assert origin is not None
    assert (origin.quantization, origin.image_tokens) == ("4bit", PICTURE_TOKENS)


def test_the_answer_follows_the_picture_and_the_question(mmchat: Run) -> None:
    shown = {
        mmchat("ask", "what is in the picture?", "-a", str(file), "--no-save").stdout
        for file in files()
    }
    assert len(shown) == len(files()) >= 2
    other = mmchat("ask", "how many stars are there?", "-a", str(STARS), "--no-save").stdout
    assert other not in shown


def test_what_is_beyond_it_is_declined(mmchat: Run) -> None:
    said = mmchat("ask", "write me a poem", "--no-save").stdout
    assert "simple drawn scenes" in said and "larger model" in said


@contextlib.asynccontextmanager
async def stock_client(client: EngineClient) -> Any:
    """What any OpenAI client is: HTTP and JSON."""
    await client.start()
    endpoint = read_endpoint()
    assert endpoint is not None
    transport = httpx.AsyncHTTPTransport(uds=endpoint.socket, verify=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://engine", timeout=120
    ) as http:
        yield http


async def chunks(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(STARS.read_bytes()).decode()
    content = [
        {"type": "text", "text": "what is in the picture?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    asked = {
        "model": "scenes",
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    found = []
    async with http.stream("POST", "/v1/chat/completions", json=asked) as reply:
        assert reply.status_code == 200
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                found.append(line.removeprefix("data: "))
    assert found.pop() == "[DONE]"
    return [json.loads(one) for one in found]


def written(streamed: Sequence[dict[str, Any]]) -> str:
    choices = [choice for chunk in streamed for choice in chunk["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_a_stock_client_streams_and_repeats(new_client: Clients) -> None:
    async with stock_client(new_client()) as http:
        first = await chunks(http)
        told = [c for chunk in first for c in chunk["choices"] if c["delta"].get("content")]
        assert len(told) > 3
        reasons = [choice["finish_reason"] for chunk in first for choice in chunk["choices"]]
        assert [reason for reason in reasons if reason] == ["stop"]
        usage = first[-1]["usage"]
        assert usage["prompt_tokens"] > PICTURE_TOKENS
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        greedy = await chunks(http)
        assert written(greedy) == written(first) != ""
        drawn = [
            written(await chunks(http, temperature=3, max_tokens=20, seed=seed))
            for seed in (5, 5, 6)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        short = await chunks(http, max_tokens=2)
        assert [c["finish_reason"] for c in short[-2]["choices"]] == ["length"]


GREEDY = Options()


async def followed(
    client: EngineClient, turns: Sequence[Turn], options: Options = GREEDY
) -> list[Event]:
    async with contextlib.aclosing(client.chat(turns, options)) as events:
        return [event async for event in events]


FOLLOW_UP = [
    user(picture("stars"), "what is in the picture?"),
    Turn("assistant", ("I see a large orange star, a large red star and a large green star.",)),
    user("and how many objects are there in all?"),
]
CONVERSATIONS = {
    "one picture": [user(picture("moon"), "what is in the picture?")],
    "two pictures": [user(picture("stars"), picture("rings"), "which picture has more stars?")],
    "a picture inside the text": [user("is there a star in ", picture("crosses"), "?")],
    "a follow-up": FOLLOW_UP,
    "no picture": [user("hello")],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_greedy_answers_are_those_of_generate(
    name: str, new_client: Clients, loaded: "LoadedModel"
) -> None:
    import torch

    from mmchat.prompt.model_inputs import build_prompt

    turns = CONVERSATIONS[name]
    events = await followed(new_client(), turns, Options(max_tokens=48))
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.quantization, done.device) == (loaded.quantization, str(loaded.device))
    prompt = build_prompt(loaded, turns, 48)
    with torch.inference_mode():
        ids = loaded.model.generate(
            input_ids=prompt.input_ids,
            attention_mask=torch.ones_like(prompt.input_ids),
            **prompt.model_inputs,
            do_sample=False,
            max_new_tokens=48,
        )[0, prompt.input_ids.shape[1] :]
    assert text_of(events) == loaded.tokenizer.decode(ids, skip_special_tokens=True)
    assert done.completion_tokens == len(ids)
    assert done.prompt_tokens == prompt.input_ids.shape[1]


async def test_closing_the_stream_stops_the_decode(new_client: Clients) -> None:
    client = new_client()
    status = await client.start()
    turns = [user("tell me all")]
    await followed(client, turns, Options(max_tokens=1))  # loaded
    begin = cpu_seconds(status.pid)
    whole = await followed(client, turns, LONG)
    whole_cost = cpu_seconds(status.pid) - begin
    done = whole[-1]
    assert isinstance(done, Done) and done.completion_tokens > 100
    begin = cpu_seconds(status.pid)
    async with contextlib.aclosing(client.chat(turns, LONG)) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    after = await followed(client, [user("hello")])
    assert isinstance(after[-1], Done) and text_of(after)
    assert cpu_seconds(status.pid) - begin < whole_cost / 2


async def test_two_clients_at_once_are_both_answered(new_client: Clients) -> None:
    first, second = new_client(), new_client()
    await first.start()
    ended: list[str] = []
    async with (
        contextlib.aclosing(first.chat([user("tell me all")], LONG)) as slow,
        contextlib.aclosing(second.chat([user("hello")], Options())) as quick,
    ):
        async for event in slow:
            if isinstance(event, Delta):
                break  # it is being answered
        assert await anext(quick) == Waiting(1)
        status = await first.status()
        assert status is not None and status.waiting == 1
        async for event in slow:
            if isinstance(event, Done):
                ended.append("first")
        answer = [event async for event in quick]
        assert isinstance(answer[-1], Done) and text_of(answer)
    assert ended == ["first"]


async def test_what_exceeds_the_context_is_left_out_and_told(
    new_client: Clients, mmchat: Run
) -> None:
    question, answer = "what is in the picture?", "I see a large red star."
    shown = [picture(file.stem) for file in files()]
    rounds = 40
    with History.open() as history:
        conversation = history.new_conversation().id
        for number in range(rounds):
            part = shown[number % len(shown)]
            assert part.data is not None
            image = history.add_image(part.data, mime="image/png", width=9, height=9, name="a.png")
            history.add_message(conversation, "user", question, images=[image.sha256])
            history.add_message(conversation, "assistant", answer, origin=Origin(model="scenes"))
    done = mmchat("ask", "how many are there?", "--conversation", str(conversation), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["text"]
    with History.open() as history:
        origin = history.message(found["message_id"]).origin
    assert origin is not None
    dropped = origin.parameters["dropped_turns"]
    assert f"The {dropped} oldest messages were left out" in done.stderr
    assert "2048 tokens" in done.stderr
    assert found["usage"]["prompt_tokens"] <= 2048 - 512
    # Whole rounds go, so what is left is whole pictures.
    assert dropped % 2 == 0 and 0 < dropped < 2 * rounds
    assert found["usage"]["image_tokens"] == PICTURE_TOKENS * (rounds - dropped // 2)
    turns = [
        turn
        for number in range(rounds)
        for turn in (user(shown[number % len(shown)], question), Turn("assistant", (answer,)))
    ]
    events = await followed(new_client(), [*turns, user("how many are there?")])
    started = next(event for event in events if isinstance(event, Started))
    assert (started.dropped_turns, started.context_length) == (dropped, 2048)
    assert text_of(events) == found["text"]


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[Path]:
    """A model of 2 TB in weights, as far as its header and its (sparse) file tell."""
    folder = tmp_path / "huge"
    folder.mkdir()
    config = json.loads((SCENES / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps(config))
    name = "model.layers.0.mlp.up_proj.weight"
    whole = 2**41
    entry = {"dtype": "BF16", "shape": [2**20, 2**20], "data_offsets": [0, whole]}
    header = json.dumps({name: entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + whole)
    yield folder
    (folder / "model.safetensors").unlink()


def test_a_model_larger_than_the_memory_is_one_sentence(mmchat: Run, huge: Path) -> None:
    before = mmchat("ask", "hello", "--no-save").stdout
    for form in ("4bit", "fp32"):
        done = mmchat("ask", "hello", "--model", str(huge), MMCHAT_MODEL_QUANTIZATION=form)
        said = sentence(done)
        assert "GB of memory" in said and "smaller model" in said and done.stdout == ""
    assert mmchat("ask", "hello", "--no-save").stdout == before != ""
