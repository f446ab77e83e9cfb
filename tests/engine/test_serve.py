"""`mmchat engine serve --port`: an address for other clients, with a token that stays the same."""

import contextlib
import json
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmchat.client import EngineClient
from mmchat.client.endpoint import read_endpoint
from mmchat.engine.listeners import is_loopback, read_or_create_token
from mmchat.errors import EngineError
from mmchat.settings import paths
from tests.cli.conftest import MMCHAT, Run, mmchat, sentence
from tests.client.asking import ask, until

__all__ = ["mmchat"]

pytestmark = pytest.mark.usefixtures("scripted_engine")
Clients = Callable[..., EngineClient]


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """An engine in the foreground; it must end without a traceback."""
    process = subprocess.Popen(
        [MMCHAT, "engine", "serve", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in log
    finally:
        process.kill()
        process.communicate()


async def address(client: EngineClient) -> str:
    """The address of the engine, once it listens."""
    await until(read_endpoint)
    status = await client.status()
    assert status is not None and status.url.startswith("http://")
    return status.url


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "scenes", "messages": [{"role": "user", "content": text}], **fields}


def http(token: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(headers=headers, trust_env=False, verify=False)


async def test_other_clients_use_it_with_the_token(
    new_client: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_IDLE_SECONDS", "0.05")  # not for one that a person started
    file = tmp_path / "token"
    own = new_client()
    tokens = []
    for _ in range(2):
        with serving("--port", "0", "--token-file", str(file)):
            url = await address(own)
            tokens.append(file.read_text().strip())
            async with http(tokens[-1]) as client:
                assert [one["id"] for one in (await client.get(f"{url}/models")).json()["data"]]
                reply = await client.post(f"{url}/chat/completions", json=chat("say a b"))
                assert reply.json()["choices"][0]["message"]["content"] == "a b "
                streamed = chat("say c", stream=True)
                assert '"c "' in (await client.post(f"{url}/chat/completions", json=streamed)).text
                # An address that is forwarded has another port.
                forwarded = {"host": "localhost:1234"}
                assert (await client.get(f"{url}/models", headers=forwarded)).is_success
                rebound = await client.get(f"{url}/models", headers={"host": "evil.example"})
                assert rebound.status_code == 403
            async with http("wrong") as client:
                for method, path in [("GET", "/models"), ("POST", "/chat/completions")]:
                    refused = await client.request(method, f"{url}{path}")
                    error = refused.json()["error"]
                    assert (refused.status_code, error["code"]) == (401, "invalid_api_key")
                    assert refused.headers["www-authenticate"] == "Bearer"
                stop = url.replace("/v1", "/x_mmchat/stop")
                assert (await client.post(stop)).status_code == 401
            # The app uses the same engine, by its private socket and without the token.
            endpoint = read_endpoint()
            assert endpoint is not None and endpoint.transport == "unix"
            assert await ask(own, "pid") == str(endpoint.pid)
            idle = 0.0
            while idle < 0.2:
                status = await own.status()
                assert status is not None
                idle = status.idle_s
    assert len(set(tokens)) == 1 and len(tokens[0]) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_without_a_token_file_the_token_is_kept_at_home(new_client: Clients) -> None:
    own = new_client()
    with serving("--port", "0"):
        url = await address(own)
        kept = paths().data / "engine-token"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        async with http(kept.read_text().strip()) as client:
            assert (await client.get(f"{url}/models")).is_success


async def test_an_end_reaches_the_clients_of_the_address(new_client: Clients) -> None:
    own = new_client()
    with serving("--port", "0") as process:
        url = await address(own)
        async with http((paths().data / "engine-token").read_text().strip()) as client:
            request = client.build_request(
                "POST", f"{url}/chat/completions", json=chat("forever", stream=True)
            )
            reply = await client.send(request, stream=True)
            text = ""
            async for part in reply.aiter_text():
                text += part
                if "tick-1" in text:
                    process.send_signal(signal.SIGINT)
    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert json.loads(data[-2])["error"]["code"] == "engine_ending"


async def test_without_a_port_there_is_no_address(new_client: Clients) -> None:
    own = new_client()
    with serving():
        await until(read_endpoint)
        status = await own.status()
        assert status is not None and status.url == ""
    assert not (paths().data / "engine-token").exists()


def test_what_cannot_be_used_is_one_sentence(mmchat: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = sentence(mmchat("engine", "serve", "--port", port))
    assert f"cannot listen on 127.0.0.1, port {port}" in said and "choose another" in said
    assert "cannot listen on 192.0.2.1" in sentence(
        mmchat("engine", "serve", "--port", "0", "--host", "192.0.2.1")
    )
    missing = str(tmp_path / "no" / "token")
    said = sentence(mmchat("engine", "serve", "--port", "0", "--token-file", missing))
    assert missing in said and "No such file" in said
    for wrong in (["--host", "0.0.0.0"], ["--token-file", "x"]):
        done = mmchat("engine", "serve", *wrong)
        assert done.returncode == 2 and f"{wrong[0]} needs --port" in done.stderr


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", "é".encode(), b"a\0b"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(EngineError, match="must contain one word"):
        read_or_create_token(tmp_path / "token")


def test_a_token_of_ones_own_is_used(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("my-own-token\n")
    assert read_or_create_token(tmp_path / "token") == "my-own-token"


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.8.8", "::1"]))
    assert not any(map(is_loopback, ["", "0.0.0.0", "::", "192.168.1.2", "localhost.evil.example"]))
