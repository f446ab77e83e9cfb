"""Another OpenAI-compatible server at `engine.url`: a real one over TCP that answers by script."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmchat.client import Delta, Done, EngineClient, Started
from mmchat.client.endpoint import engine_lives
from mmchat.client.remote import environment_proxy
from mmchat.errors import EngineError
from mmchat.settings import load_settings
from mmchat.turns import ImagePart
from tests.client.asking import ask, events_of, png, text_of

Clients = Callable[..., EngineClient]


def chunk(text: str | None = None, finish: str | None = None, **fields: Any) -> str:
    delta = {} if text is None else {"content": text, "reasoning_content": None}
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return f"data: {json.dumps({'id': '1', 'model': 'big', 'choices': [choice], **fields})}\n\n"


class Server(BaseHTTPRequestHandler):
    """`script` is what the next chat request gets: status and body."""

    script: ClassVar[tuple[int, str]]
    seen: ClassVar[list[tuple[str, str | None, Any]]]

    def do_GET(self) -> None:
        self._reply(200, json.dumps({"object": "list", "data": [{"id": "big"}, {"id": "small"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((self.path, self.headers.get("authorization"), body))
        self._reply(*self.script)

    def _reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    class Scripted(Server):
        script = (200, chunk("hello ") + chunk("you", "stop") + "data: [DONE]\n\n")
        seen: ClassVar[list[tuple[str, str | None, Any]]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("MMCHAT_ENGINE_URL", f"http://127.0.0.1:{http.server_port}/v1/")
        yield Scripted
        http.shutdown()
        thread.join()


async def test_it_is_asked_in_the_plain_protocol(
    server: type[Server], new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_TOKEN", "key")
    events = await events_of(new_client(), "what is this?", ImagePart("0" * 64, "", png()))
    assert [type(event) for event in events] == [Started, Delta, Delta, Done]
    assert text_of(events) == "hello you"
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.completion_tokens, done.model) == ("stop", 2, "big")
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer key")
    assert body["model"] == "big"  # nobody chose one: the server's first
    assert "x_mmchat" not in body
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64")
    assert not engine_lives()


async def test_usage_comments_and_a_chosen_model(server: type[Server], new_client: Clients) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 7}
    server.script = (
        200,
        ": ping\n\n"
        + chunk("cut")
        + chunk(None, "length")
        + f'data: {{"choices": [], "usage": {json.dumps(usage)}}}\n\n',
    )
    done = (await events_of(new_client(model__name="small"), "hello", temperature=0.5))[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.prompt_tokens, done.completion_tokens) == ("length", 30, 7)
    _, key, body = server.seen[0]
    assert key is None
    assert (body["model"], body["temperature"]) == ("small", 0.5)


async def test_words_that_are_no_utf_8_arrive_mended(
    server: type[Server], new_client: Clients
) -> None:
    assert await ask(new_client(), "say a\udcff") == "hello you"
    assert server.seen[0][2]["messages"][0]["content"] == "say a\ufffd"
    with pytest.raises(EngineError, match="not valid UTF-8: rename the folder"):
        await ask(new_client(model__name="a\udcff"), "hello")


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, '{"error": {"message": "bad key"}}', "bad key. It needs an API key"),
        (404, "not here", "Check engine.url"),
        (413, "", "too large"),
        (429, '{"detail": "slow down"}', "slow down. It is busy"),
        (500, "<html>", "500"),
        (302, "", "302"),
        (200, chunk("half"), "closed the connection before"),
        (200, "data: nonsense\n\n", "not follow the chat-completions protocol"),
        (200, '<html lang="en">hello</html>', "closed the connection before"),
        (200, chunk("half") + 'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
    ],
)
async def test_what_goes_wrong_is_a_sentence(
    server: type[Server], new_client: Clients, status: int, body: str, sentence: str
) -> None:
    server.script = (status, body)
    with pytest.raises(EngineError, match=sentence):
        await ask(new_client(), "hello")


async def test_a_server_that_is_not_there(
    server: type[Server], new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, sentence in [
        ("http://127.0.0.1:1/v1", "cannot be reached"),
        ("http://host:port/v1", "is not a valid URL"),
        ("localhost:80", "must begin with"),
    ]:
        with pytest.raises(EngineError, match=sentence):
            await ask(new_client(engine__url=url), "hello")


async def test_a_body_that_is_not_what_its_head_says(
    server: type[Server], new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Server.end_headers

    def claim(self: Server) -> None:
        self.send_header("content-encoding", "gzip")
        reply(self)

    monkeypatch.setattr(server, "end_headers", claim)
    with pytest.raises(EngineError, match="cannot be reached, or the connection broke"):
        await ask(new_client(), "hello")


def test_a_proxy_of_an_unknown_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_URL", "http://server.invalid/v1")
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(EngineError, match="proxy in the environment"):
        EngineClient(load_settings())


@pytest.mark.parametrize("named", ["missing.pem", "not-pem.txt", ""])
def test_certificates_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    (tmp_path / "not-pem.txt").write_text("no certificate")
    monkeypatch.setenv("MMCHAT_ENGINE_URL", "https://server.invalid/v1")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / named))
    with pytest.raises(EngineError, match="SSL_CERT_FILE or SSL_CERT_DIR cannot be loaded"):
        EngineClient(load_settings())


@pytest.mark.parametrize("token", ["a\nb", "schlüssel"])
def test_a_key_that_no_header_can_hold(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_URL", "http://server.invalid/v1")
    monkeypatch.setenv("MMCHAT_ENGINE_TOKEN", token)
    with pytest.raises(EngineError, match="characters that an API key cannot have") as caught:
        EngineClient(load_settings())
    assert token not in str(caught.value)


PROXIES = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]


@pytest.mark.parametrize("variable", PROXIES)
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "gopher://127.0.0.1:1"])
async def test_a_server_on_this_machine_is_asked_without_a_proxy(
    server: type[Server],
    new_client: Clients,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    proxy: str,
) -> None:
    monkeypatch.setenv(variable, proxy)
    assert await ask(new_client(), "hello") == "hello you"


@pytest.mark.parametrize("variable", PROXIES)
async def test_a_proxy_that_fails_is_named(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://me:secret@127.0.0.1:1")
    with pytest.raises(EngineError, match=r"through the proxy http://127\.0\.0\.1:1") as caught:
        await ask(new_client(engine__url="http://server.invalid/v1"), "hello")
    assert "NO_PROXY" in str(caught.value) and "secret" not in str(caught.value)


def test_which_proxy_a_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "proxy:3128")
    monkeypatch.setenv("all_proxy", "http://other:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert environment_proxy("http://host/v1") == "http://proxy:3128"
    assert environment_proxy("https://host/v1") == "http://other:3128"
    for host in ("localhost", "a.localhost", "127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0"):
        assert environment_proxy(f"http://{host}:8080/v1") is None
    assert environment_proxy("http://inside.example:8080/v1") is None


async def test_a_key_in_the_address_is_sent_and_not_shown(
    server: type[Server], new_client: Clients
) -> None:
    url = os.environ["MMCHAT_ENGINE_URL"].replace("//", "//me:secret@")
    done = (await events_of(new_client(engine__url=url), "hello"))[-1]
    assert isinstance(done, Done) and "secret" not in done.device
    assert str(server.seen[0][1]).startswith("Basic ")
    server.script = (500, "")
    with pytest.raises(EngineError) as caught:
        await ask(new_client(engine__url=url), "hello")
    assert "secret" not in str(caught.value)


async def test_the_local_engines_own_ways(server: type[Server], new_client: Clients) -> None:
    client = new_client()
    status = await client.start()
    assert (status.state, status.model) == ("ready", "big")
    assert [step async for step in client.load()] == []
    with pytest.raises(EngineError, match="adapter of a remote server cannot be switched"):
        await client.use_adapter("birds")
    with pytest.raises(EngineError, match="attach it again"):
        await ask(client, "hello", ImagePart("0" * 64))
    assert not await client.stop()
