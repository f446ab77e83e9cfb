"""What the engine answers over HTTP to stock clients, right ones and wrong ones."""

import asyncio
import base64
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmchat.client import Options
from mmchat.engine.service import Service
from mmchat.model.catalogue import add_folder
from mmchat.settings import paths
from tests.cli.folders import make_model
from tests.client.asking import png, until
from tests.engine.scripted import answers

CHAT = "/v1/chat/completions"
DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "scenes", "messages": [{"role": "user", "content": content}], **fields}


def picture(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": "echo-images"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


async def test_a_whole_answer_is_a_chat_completion(http: httpx.AsyncClient) -> None:
    reply = await http.post(CHAT, json=chat("say a b c"))
    body = reply.json()
    assert reply.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a b c "},
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["completion_tokens"] == 3
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 3


async def test_a_streamed_answer_is_what_stock_clients_read(http: httpx.AsyncClient) -> None:
    asked = chat("say a b c", stream=True, max_tokens=2, stream_options={"include_usage": True})
    reply = await http.post(CHAT, json=asked)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "a b "
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]


async def test_a_data_url_and_an_uploaded_picture_are_the_same(http: httpx.AsyncClient) -> None:
    data = png(7)
    sha256 = hashlib.sha256(data).hexdigest()
    reference = chat(picture(f"x-mmchat:sha256:{sha256}"))
    missing = await http.post(CHAT, json=reference)
    assert missing.status_code == 404
    assert missing.json()["error"]["x_mmchat"] == {"missing": [sha256]}
    wrong = await http.put(f"/x_mmchat/images/{sha256}", content=data + b"x")
    assert wrong.status_code == 400
    stored = await http.put(f"/x_mmchat/images/{sha256}", content=data)
    assert stored.status_code == 204
    by_reference = (await http.post(CHAT, json=reference)).json()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    by_url = (await http.post(CHAT, json=chat(picture(url)))).json()
    said = f"1 pictures: {sha256} "
    assert by_reference["choices"][0]["message"]["content"] == said
    assert by_url["choices"][0]["message"]["content"] == said


async def test_options_arrive_under_their_names(http: httpx.AsyncClient) -> None:
    asked = chat(
        "echo-options",
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        max_completion_tokens=9,
        seed=-4,
        stop="END",
        n=1,
        frequency_penalty=0,
        user="me",
    )
    reply = (await http.post(CHAT, json=asked)).json()
    assert json.loads(reply["choices"][0]["message"]["content"]) == {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "max_tokens": 9,
        "seed": -4,
        "stop": ["END"],
    }


async def test_what_asks_for_nothing_is_accepted(http: httpx.AsyncClient) -> None:
    nothing = {
        "model": None,
        "stream": None,
        "stream_options": {"include_usage": None},
        "response_format": {"type": "text"},
        "logit_bias": {},
        "tools": None,
        "n": None,
        "stop": None,
        "logprobs": False,
    }
    for fields in ({"stream": None}, nothing, dict.fromkeys([*nothing, "seed", "top_p", "user"])):
        reply = await http.post(CHAT, json={**chat("say a"), **fields})
        assert reply.json()["choices"][0]["message"]["content"] == "a ", reply.text
    asked = chat("echo-turns")
    asked["messages"].insert(0, {"role": "assistant", "content": None})
    reply = await http.post(CHAT, json=asked)
    assert reply.json()["choices"][0]["message"]["content"] == "assistant=\nuser=echo-turns\n"


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def replayed(**fields: Any) -> dict[str, Any]:
    """A conversation whose second message is the reply of some server, with `fields` in it."""
    return {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hi.", **fields},
            {"role": "user", "content": "echo-turns"},
        ]
    }


def parts(*given: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(given)}]}


def seen(image_url: Any) -> dict[str, Any]:
    return parts(
        {"type": "text", "text": "echo-turns"}, {"type": "image_url", "image_url": image_url}
    )


def asking(**fields: Any) -> dict[str, Any]:
    return chat("echo-turns", **fields)


HARMLESS: list[dict[str, Any]] = [
    # What the messages of OpenAI's SDK, vLLM, DeepSeek, OpenRouter and LiteLLM have.
    replayed(refusal=None),
    replayed(refusal=None, annotations=[], audio=None, function_call=None, tool_calls=None),
    replayed(tool_calls=[], annotations=[{"type": "url_citation"}]),
    replayed(reasoning_content="hm", reasoning=None, reasoning_details=[{"text": "hm"}]),
    replayed(provider_specific_fields={"x": 1}, thinking_blocks=None, prefix=False),
    replayed(name="mmchat", cache_control={"type": "ephemeral"}),
    replayed(content=None, refusal="Hi."),
    replayed(content=[{"type": "refusal", "refusal": "Hi."}]),
    replayed(content=[{"type": "text", "text": "Hi.", "annotations": []}]),
    asking(tools=[], tool_choice="none", parallel_tool_calls=True),
    asking(tools=None, tool_choice="auto", functions=[], function_call="none"),
    asking(parallel_tool_calls=None, service_tier="auto", top_logprobs=None, logprobs=None),
    asking(modalities=["text"], reasoning_effort="medium", verbosity="medium", audio=None),
    asking(prediction=None, web_search_options=None, prompt_cache_key="a", safety_identifier="b"),
    asking(store=True, metadata={"a": "b"}, service_tier="priority", user="me"),
    asking(skip_special_tokens=True, add_generation_prompt=True, cache_prompt=False),
    asking(stream_options={"include_usage": False, "include_obfuscation": False}),
    asking(frequency_penalty=0, presence_penalty=0.0, logit_bias={}, min_tokens=0, colour=None),
    parts({"type": "text", "text": "echo-turns", "cache_control": {"type": "ephemeral"}}),
    parts({"type": "text", "text": "echo-turns", "image_url": None}),
    seen({"url": DATA_URL, "detail": None}),
    seen({"url": DATA_URL, "detail": "high"}),
    seen(DATA_URL),
]


@pytest.mark.parametrize("body", HARMLESS, ids=lambda body: json.dumps(body)[-60:])
async def test_a_field_that_changes_nothing_is_ignored(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    reply = await http.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    said = reply.json()["choices"][0]["message"]["content"]
    turns = ["user=hello", "assistant=Hi."] if len(body["messages"]) == 3 else []
    assert said.split("<")[0].splitlines() == [*turns, "user=echo-turns"]


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    # (request, the code, the field, a part of the sentence)
    (
        replayed(tool_calls=[CALL], content=None),
        "unsupported_value",
        "messages[1].tool_calls",
        "no tools",
    ),
    (
        replayed(function_call={"name": "f"}),
        "unsupported_value",
        "messages[1].function_call",
        "no tools",
    ),
    (
        {"messages": [{"role": "tool", "tool_call_id": "1", "content": "42"}]},
        "unsupported_value",
        "messages[0]",
        "tool calls and their results",
    ),
    (replayed(prefix=True), "unknown_parameter", "messages[1].prefix", "unknown"),
    (asking(tools=[CALL]), "unsupported_parameter", "tools", "not supported"),
    (asking(tool_choice="required"), "unsupported_parameter", "tool_choice", "not supported"),
    (asking(logprobs=True), "unsupported_parameter", "logprobs", "not supported"),
    (asking(presence_penalty=1), "unsupported_parameter", "presence_penalty", "repetition_penalty"),
    (asking(modalities=["text", "audio"]), "unsupported_value", "modalities", '["text"]'),
    (asking(reasoning_effort="high"), "unsupported_value", "reasoning_effort", "not supported"),
    (asking(web_search_options={}), "unsupported_value", "web_search_options", "leave it out"),
    (asking(skip_special_tokens=False), "unsupported_value", "skip_special_tokens", "true"),
    (
        asking(response_format={"type": "json_schema"}),
        "unsupported_value",
        "response_format",
        '{"type": "text"}',
    ),
    (asking(colour="red"), "unknown_parameter", "colour", "'colour' is unknown"),
    (
        seen({"url": DATA_URL, "zoom": 2}),
        "unknown_parameter",
        "messages[0].content[1].image_url.zoom",
        "",
    ),
    (parts(), "invalid_value", "messages[0].content", "is empty"),
    ({"messages": [], "stream": True}, "invalid_value", "messages", "is empty"),
    ({"model": "scenes"}, "missing_required_parameter", "messages", "missing required field"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content", ""),
    (asking(temperature="hot"), "invalid_type", "temperature", "expected"),
    (asking(temperature=200), "invalid_value", "temperature", "between 0"),
    (asking(max_completion_tokens=0), "invalid_value", "max_tokens", "1 or more"),
    (seen({"url": "https://example.org/a.png"}), "invalid_image_url", "messages[0].content", ""),
    (seen({"url": "data:image/png;base64,@"}), "invalid_image", "messages[0].content", "base64"),
]


@pytest.mark.parametrize(("body", "code", "param", "says"), REFUSED)
async def test_a_field_that_would_change_the_answer_is_refused(
    http: httpx.AsyncClient, body: dict[str, Any], code: str, param: str, says: str
) -> None:
    reply = await http.post(CHAT, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)
    assert says in error["message"]
    assert "\n" not in error["message"]


async def test_half_an_emoji_and_a_byte_order_mark_are_read(http: httpx.AsyncClient) -> None:
    body = b'{"messages":[{"role":"user","content":"echo-turns \\ud83d \\ud83d\\ude00"}]}'
    for content in (body, b"\xef\xbb\xbf" + body):
        reply = await http.post(CHAT, content=content)
        assert reply.status_code == 200, reply.text
        said = reply.json()["choices"][0]["message"]["content"]
        assert said == "user=echo-turns \ufffd \U0001f600\n"


async def test_max_tokens_of_minus_one_is_no_limit(http: httpx.AsyncClient) -> None:
    reply = (await http.post(CHAT, json=chat("echo-options", max_tokens=-1))).json()
    options = json.loads(reply["choices"][0]["message"]["content"])
    assert options["max_tokens"] > 10**9


async def test_an_unexpected_exception_is_one_sentence_too() -> None:
    class Broken:
        @property
        def backend_status(self) -> None:
            raise LookupError("a bug in a handler")

    service = Service(Broken(), Options(), lambda: None, "/logs/engine.log")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        reply = await client.get("/v1/models")
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (500, "server_error")
    assert error["message"] == (
        "Internal error in the engine (LookupError). Details: /logs/engine.log"
    )


WRONG: list[tuple[str, Any, str]] = [
    ("not JSON", b"{", "valid JSON"),
    ("bytes", b"\xff\xfe\x00", "valid JSON"),
    ("deep", b"[" * 100_000, "The request"),
    ("empty", b"", "valid JSON"),
    ("a list", [], "expected 'object'"),
    ("no messages", {"model": "scenes"}, "messages"),
    ("empty messages", {"messages": []}, "messages is empty"),
    ("messages a string", {"messages": "hello"}, "$.messages"),
    ("unknown role", {"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
    ("no content", {"messages": [{"role": "user"}]}, "content"),
    ("content a number", chat(3), "content"),
    ("unknown part", chat([{"type": "audio", "audio": "x"}]), "audio"),
    ("unknown field", chat("x", colour="red"), "colour"),
    (
        "tools",
        chat("x", tools=[{"type": "function", "function": {"name": "f"}}]),
        "tools is not supported",
    ),
    ("logit_bias", chat("x", logit_bias={"5": 1}), "logit_bias is not supported"),
    ("json", chat("x", response_format={"type": "json_object"}), "json_object"),
    ("null content", chat(None), "messages[0].content is empty"),
    ("assistant last", {"messages": [{"role": "assistant", "content": "x"}]}, "the user's"),
    ("temperature", chat("x", temperature=-1), "temperature is -1.0, but must be"),
    ("temperature text", chat("x", temperature="hot"), "temperature"),
    ("top_p", chat("x", top_p=0), "top_p is 0.0, but must be"),
    ("min_p", chat("x", min_p=1), "min_p is 1.0, but must be"),
    ("top_k", chat("x", top_k=-1), "top_k is -1, but must be"),
    ("max_tokens", chat("x", max_tokens=0), "max_tokens is 0, but must be"),
    ("max_tokens huge", chat("x", max_tokens=10**30), "max_tokens"),
    ("penalty", chat("x", repetition_penalty=0), "repetition_penalty is 0.0, but must be"),
    ("seed", chat("x", seed=2**70), "seed"),
    ("two answers", chat("x", n=2), "n 2 is not supported"),
    ("frequency_penalty", chat("x", frequency_penalty=1.0), "frequency_penalty is not supported"),
    ("logprobs", chat("x", logprobs=True), "logprobs is not supported"),
    ("empty stop", chat("x", stop=["a", ""]), "stop must be"),
    ("many stops", chat("x", stop=["a"] * 17), "stop must be"),
    ("extra", chat("x", x_mmchat={"device": "moon"}), "moon"),
    ("network picture", chat(picture("http://127.0.0.1:1/a.png")), "fetches nothing"),
    ("https picture", chat(picture("https://example.org/a.png")), "fetches nothing"),
    ("file picture", chat(picture("file:///etc/passwd")), "reads no files"),
    ("path picture", chat(picture("/etc/passwd")), "reads no files"),
    ("bad base64", chat(picture("data:image/png;base64,@@@")), "base64"),
    ("no picture", chat(picture("data:image/png;base64,aGVsbG8=")), "picture"),
    ("bad reference", chat(picture("x-mmchat:sha256:../../x")), "64 hexadecimal"),
    (
        "system picture",
        {"messages": [{"role": "system", "content": picture(DATA_URL)}, *chat("x")["messages"]]},
        "not system messages",
    ),
]


async def test_a_wrong_request_is_refused_with_one_sentence(http: httpx.AsyncClient) -> None:
    for name, body, expected in WRONG:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = await http.post(CHAT, content=content)
        error = reply.json()["error"]
        assert reply.status_code == 400, name
        assert expected in error["message"], name
        assert error["type"] == "invalid_request_error", name
        assert "\n" not in error["message"], name
        assert "Traceback" not in error["message"], name
    assert (await http.get("/health")).json()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/completions", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_supported"),
        ("OPTIONS", CHAT, 405, "method_not_supported"),
        ("PUT", "/x_mmchat/images/abc", 400, "invalid_value"),
        ("PUT", "/x_mmchat/images/..%2f..%2fx", 404, "unknown_url"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
    ],
)
async def test_a_wrong_address_has_openais_status_and_code(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    reply = await http.request(method, path)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert error["message"]
    assert reply.headers.get("allow") == ("POST" if status == 405 else None)


async def test_too_large_a_body_is_refused_before_it_is_read(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 1_000_000

    try:
        reply = await http.put(f"/x_mmchat/images/{'0' * 64}", content=endless())
        assert reply.status_code == 413
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the server hung up while we were still sending
    assert sent < 200


FAILURES = [
    ("oom", "scenes", 500, "engine_error", None, "attach fewer pictures"),
    ("bug", "scenes", 500, "engine_error", None, "Internal error in the engine (RuntimeError)"),
    ("too-long", "scenes", 400, "context_length_exceeded", "messages", "has room for"),
    ("say x", "unknown", 404, "model_not_found", "model", "no model unknown"),
    ("say x", "broken", 422, "model_error", None, "cut short"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "model", "status", "code", "param", "says"), FAILURES)
async def test_a_failure_before_the_first_token_has_openais_status_and_code(
    http: httpx.AsyncClient,
    text: str,
    model: str,
    status: int,
    code: str,
    param: str | None,
    says: str,
    stream: bool,
) -> None:
    reply = await http.post(CHAT, json={**chat(text, stream=stream), "model": model})
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == ("server_error" if status == 500 else "invalid_request_error")
    assert says in error["message"]
    said = (await http.post(CHAT, json=chat("say on"))).json()["choices"][0]["message"]["content"]
    assert said == "on "


async def test_an_adapter_that_cannot_be_used_is_named(http: httpx.AsyncClient) -> None:
    reply = await http.post(CHAT, json=chat("say x", x_mmchat={"adapter": "broken"}))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (422, "adapter_error")
    assert error["param"] == "x_mmchat.adapter"


async def test_a_failure_after_the_first_token_is_an_event_of_the_stream(
    http: httpx.AsyncClient,
) -> None:
    reply = await http.post(CHAT, json=chat("fail-late", stream=True))
    assert reply.status_code == 200
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert json.loads(events[-2])["error"]["message"] == "The model failed in mid-answer."
    assert events[-1] == "[DONE]"
    text = [json.loads(event) for event in events[:-2]]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in text) == "one "


async def test_a_client_that_leaves_before_the_first_token_stops_the_model(
    http: httpx.AsyncClient,
) -> None:
    asked = len(answers())
    task = asyncio.create_task(http.post(CHAT, json=chat("hang", stream=True)))
    busy = 0
    while busy < 5:  # idle_s is rounded: one 0 may be the end of the request before
        idle = (await http.get("/x_mmchat/status")).json()["idle_s"]
        busy = busy + 1 if idle == 0 else 0
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await until(lambda: len(answers()) > asked)
    assert answers()[-1]["finish"] == "cancelled"


async def test_the_models_on_this_machine_are_listed(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "birds")
    add_folder(folder)
    (paths().models / "org--broken").mkdir()
    (paths().models / "org--broken" / ".mmchat.json").touch()
    await http.post(CHAT, json=chat("say x"))
    models = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["scenes", "birds"]  # the loaded one first
    for model in models:
        assert (model["object"], model["owned_by"]) == ("model", "mmchat")
        assert model["created"] > 1_700_000_000
        assert (await http.get(f"/v1/models/{model['id']}")).json() == model
    await http.post(CHAT, json={**chat("say x"), "model": str(folder)})
    models = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == [str(folder), "scenes", "birds"]
    assert (await http.get("/v1/models/org/broken")).status_code == 404
