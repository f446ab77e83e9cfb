"""The client for another OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, mmchat."""

import contextlib
import ipaddress
import os
import time
import urllib.request
from collections.abc import AsyncGenerator, Sequence

import httpx

from mmchat.client import wire
from mmchat.client.protocol import Delta, Done, EngineStatus, Event, FinishReason, Options, Started
from mmchat.errors import EngineError, MmchatError
from mmchat.settings import ModelSettings, Settings
from mmchat.turns import ImagePart, Turn

_TIMEOUT = httpx.Timeout(15.0, connect=10.0)
_STREAM = httpx.Timeout(None, connect=10.0, write=60.0)
_HINTS = {
    401: "It needs an API key: set MMCHAT_ENGINE_TOKEN.",
    403: "It does not accept the API key: check MMCHAT_ENGINE_TOKEN.",
    404: "Check engine.url (it usually ends in /v1) and model.name.",
    413: "The pictures are too large for it: attach smaller ones.",
    429: "It is busy, or the rate limit is reached: try again later.",
}


class RemoteServer:
    """The server at `engine.url`, which cannot be started or stopped from here."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.engine.url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise EngineError(
                f"The setting engine.url is {settings.engine.url!r}, but must begin with http:// or "
                "https://."
            )
        self._settings = settings
        self._model = ""
        token = os.environ.get("MMCHAT_ENGINE_TOKEN", "").strip()
        if not (token.isascii() and token.isprintable()):
            raise EngineError("MMCHAT_ENGINE_TOKEN has characters that an API key cannot have.")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        proxy = environment_proxy(self._url)
        self._proxy = without_password(proxy) if proxy else ""
        self._name = without_password(self._url)
        try:
            # With its default transport, httpx would use the proxy even for this machine.
            transport = httpx.AsyncHTTPTransport(proxy=proxy)
        except OSError as error:  # also ssl.SSLError
            raise EngineError(
                f"The certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be loaded "
                f"({error.strerror or error}): correct or unset these variables."
            ) from error
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise EngineError(
                f"The proxy in the environment cannot be used ({error}): correct or unset "
                "ALL_PROXY, HTTP_PROXY and HTTPS_PROXY, or add the server to NO_PROXY."
            ) from error
        self._http = httpx.AsyncClient(headers=headers, transport=transport)

    async def status(self) -> EngineStatus:
        """What is known about the server. Raises EngineError if it does not respond."""
        model = await self._model_name(self._settings.model.name)
        return EngineStatus("", 0, "ready", model=model, device=self._name, vision=True)

    async def chat(
        self, turns: Sequence[Turn[ImagePart]], options: Options, model: str
    ) -> AsyncGenerator[Event, None]:
        model = await self._model_name(model)
        body = {
            "model": model,
            "messages": [wire.message(turn, by_reference=False) for turn in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **wire.request_options(options, include_defaults=False),
        }
        begin = time.monotonic()
        try:
            async with self._http.stream(
                "POST",
                f"{self._url}/chat/completions",
                content=wire.encode_json(body),
                headers=wire.JSON,
                timeout=_STREAM,
            ) as response:
                if not response.is_success:
                    raise self._refusal(response.status_code, await response.aread())
                answer = _stream_answer(response, model, self._name, begin)
                async with contextlib.aclosing(answer) as events:
                    async for event in events:
                        yield event
        except httpx.InvalidURL as error:
            raise EngineError(f"The setting engine.url is not a valid URL ({error}).") from error
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _model_name(self, requested: str) -> str:
        """`requested`, or the server's first model if the user has not chosen one."""
        if requested != ModelSettings().name:
            return requested
        if not self._model:
            names = await self._models()
            self._model = requested if requested in names or not names else names[0]
        return self._model

    async def _models(self) -> list[str]:
        try:
            reply = await self._http.get(f"{self._url}/models", timeout=_TIMEOUT)
        except httpx.InvalidURL as error:
            raise EngineError(f"The setting engine.url is not a valid URL ({error}).") from error
        except httpx.RequestError as error:
            raise self._unreachable(error) from error
        if not reply.is_success:
            raise self._refusal(reply.status_code, reply.content)
        return wire.model_names(reply.content)

    def _refusal(self, status: int, body: bytes) -> MmchatError:
        error = wire.read_error(body)
        through = f" through the proxy {self._proxy}" if self._proxy else ""
        parts = [
            f"The server {self._name} refused the request{through} ({status}).",
            _HINTS.get(status, ""),
        ]
        if error.message:
            parts.insert(1, f"It says: {error.message.rstrip('.')}.")
        return error.exception(" ".join(part for part in parts if part))

    def _unreachable(self, error: httpx.RequestError) -> EngineError:
        why = str(error) or type(error).__name__
        if self._proxy:
            return EngineError(
                f"The server {self._name} cannot be reached through the proxy {self._proxy}, or "
                f"the connection broke ({why}): check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or add the "
                "server to NO_PROXY."
            )
        return EngineError(
            f"The server {self._name} cannot be reached, or the connection broke ({why}): check "
            "engine.url and whether the server is running."
        )


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment sets for `url`.

    None for a server on this machine, which no proxy can reach, and for hosts in NO_PROXY.
    """
    try:
        server = httpx.URL(url)
    except httpx.InvalidURL:
        return None  # the first request reports it
    proxies = urllib.request.getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all")
    host = server.host if server.port is None else f"{server.host}:{server.port}"
    if not proxy or is_this_machine(server.host) or urllib.request.proxy_bypass(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_this_machine(host: str) -> bool:
    """Whether `host` is a loopback address (or all interfaces, which means the same here)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def without_password(url: str) -> str:
    """`url` without `user:password@`, so that it can be shown and stored."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


async def _stream_answer(
    response: httpx.Response, model: str, url: str, begin: float
) -> AsyncGenerator[Event, None]:
    usage = wire.Usage()
    finish: FinishReason | None = None
    first = 0.0
    pieces = 0
    yield Started(0, 0, 0, 0, 0)
    async for data in wire.sse_data(wire.split_lines(response.aiter_bytes())):
        chunk = wire.read_chunk(data, wire.Chunk)
        if chunk.error is not None:
            reason = wire.error_sentence(chunk.error) or "it gave no reason"
            raise EngineError(f"The server {url} failed while answering: {reason}")
        usage = chunk.usage or usage
        model = chunk.model or model
        for choice in chunk.choices[:1]:
            if choice.delta is not None and choice.delta.content:
                first = first or time.monotonic()
                pieces += 1
                yield Delta(choice.delta.content)
            if choice.finish_reason is not None:
                finish = "length" if choice.finish_reason == "length" else "stop"
    if finish is None:
        raise EngineError(
            f"The server {url} closed the connection before the answer was complete. The text so "
            "far is kept."
        )
    end = time.monotonic()
    first = first or end
    tokens = pieces if usage.completion_tokens is None else usage.completion_tokens
    yield Done(
        finish_reason=finish,
        completion_tokens=tokens,
        prefill_ms=(first - begin) * 1000,
        decode_ms=(end - first) * 1000,
        tokens_per_second=tokens / (end - first) if end > first else 0.0,
        model=model,
        device=url,
        prompt_tokens=usage.prompt_tokens or 0,
    )
