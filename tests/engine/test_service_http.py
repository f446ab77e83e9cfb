"""What the engine answers over HTTP to stock clients, right ones and wrong ones."""

import base64
import hashlib
import json
from typing import Any

import httpx
import pytest

from mmchat.client import Options
from mmchat.engine.service import Service
from tests.client.asking import png

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
    assert "mistake of its own (LookupError)" in error["message"]
    assert error["message"].endswith("its log says where: /logs/engine.log")


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
    ("tools", chat("x", tools=[]), "tools is not supported"),
    ("logit_bias", chat("x", logit_bias={"5": 1}), "logit_bias is not supported"),
    ("json", chat("x", response_format={"type": "json_object"}), "json_object"),
    ("null content", chat(None), "content of user's message"),
    ("assistant last", {"messages": [{"role": "assistant", "content": "x"}]}, "the user's"),
    ("temperature", chat("x", temperature=-1), "temperature has to be"),
    ("temperature text", chat("x", temperature="hot"), "temperature"),
    ("top_p", chat("x", top_p=0), "top_p has to be"),
    ("min_p", chat("x", min_p=1), "min_p has to be"),
    ("top_k", chat("x", top_k=-1), "top_k has to be"),
    ("max_tokens", chat("x", max_tokens=0), "max_tokens has to be"),
    ("max_tokens huge", chat("x", max_tokens=10**30), "max_tokens"),
    ("penalty", chat("x", repetition_penalty=0), "repetition_penalty has to be"),
    ("seed", chat("x", seed=2**70), "seed"),
    ("two answers", chat("x", n=2), "$.n"),
    ("frequency_penalty", chat("x", frequency_penalty=1.0), "frequency_penalty is not supported"),
    ("logprobs", chat("x", logprobs=True), "logprobs is not supported"),
    ("empty stop", chat("x", stop=["a", ""]), "stop has to be"),
    ("many stops", chat("x", stop=["a"] * 17), "stop has to be"),
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
        "not in system's",
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
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", CHAT, 405),
        ("PUT", "/x_mmchat/images/abc", 400),
        ("PUT", "/x_mmchat/images/..%2f..%2fx", 404),
    ],
)
async def test_a_wrong_place_is_told(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    reply = await http.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


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


async def test_failures_have_a_status_and_the_engine_goes_on(http: httpx.AsyncClient) -> None:
    for text, model, status, sentence in [
        ("oom", "scenes", 500, "attach fewer pictures"),
        ("bug", "scenes", 500, "its log says where"),
        ("say x", "broken", 422, "cut short"),
    ]:
        reply = await http.post(CHAT, json={**chat(text), "model": model})
        assert reply.status_code == status
        assert sentence in reply.json()["error"]["message"]
    assert (await http.post(CHAT, json=chat("say on"))).json()["choices"][0]["message"][
        "content"
    ] == "on "


async def test_the_model_that_is_loaded_is_listed(http: httpx.AsyncClient) -> None:
    await http.post(CHAT, json=chat("say x"))
    models = (await http.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["scenes"]
