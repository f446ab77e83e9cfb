"""Finds or starts the local engine, and sends requests over its private socket."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import httpx
import msgspec
from msgspec import Struct

import mmchat
from mmchat.client import wire
from mmchat.client.endpoint import (
    ALREADY_RUNNING,
    Endpoint,
    engine_lives,
    lock_holder,
    log_file,
    read_endpoint,
)
from mmchat.client.protocol import (
    Delta,
    Done,
    EndingError,
    EngineStatus,
    Event,
    Loading,
    Options,
    Waiting,
)
from mmchat.client.spawn import EngineProcess, end_process
from mmchat.errors import EngineError
from mmchat.settings import Settings
from mmchat.turns import ImagePart, Turn

START_TIMEOUT = 60.0
"""Seconds to wait for a process that neither responds nor ends."""
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_STREAM = httpx.Timeout(None, connect=5.0, write=60.0)
_RESPONSE_TIMEOUT = 30.0
"""Seconds until a response begins; the engine sends its first bytes before it loads a model."""

_T = TypeVar("_T")


class _Health(Struct):
    """The response to `GET /health`, the same for every version of the engine."""

    version: str
    pid: int
    status: str = "ok"
    """Or "ending": it refuses requests and is about to end."""


class LocalEngine:
    """The user's own engine; used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._endpoint: Endpoint | None = None
        self._checked: Endpoint | None = None
        """The engine whose version was checked; checked again only if it fails."""
        self._retired: list[httpx.AsyncClient] = []
        self._starting = asyncio.Lock()

    async def status(self) -> EngineStatus | None:
        """None if no engine responds."""
        return await self._get("/x_mmchat/status", EngineStatus)

    async def start(self) -> EngineStatus:
        """Finds or starts an engine of this version. Raises EngineError."""
        async with self._starting:
            health = await self._health()
            if health is not None and health.version != mmchat.__version__:
                await self._end(health.pid)
                health = None
            elif health is not None and health.status == "ending":
                await end_process(health.pid)
                health = None
            if health is None:
                health = await self._spawn()
            if health.version != mmchat.__version__:
                raise EngineError(
                    f"An engine of mmchat {health.version} keeps starting, but this is mmchat "
                    f"{mmchat.__version__}: close the other one."
                )
            status = await self.status()
            if status is None:
                raise _connection_lost("starting")
            self._checked = self._endpoint
            return status

    async def stop(self) -> bool:
        """Stops the engine; False if none was running."""
        async with self._starting:
            if not engine_lives():
                return False
            endpoint = read_endpoint()
            if endpoint is None:  # it is starting or ending
                await self._wait_for_health(None, 10.0)
                endpoint = read_endpoint()
            pid = lock_holder() if endpoint is None else endpoint.pid
            if engine_lives() and pid is not None:
                await self._end(pid)
            return True

    async def load(
        self, model: str, adapter: str, quantization: str
    ) -> AsyncGenerator[Loading, None]:
        body = {
            "model": model,
            "adapter": adapter,
            "quantization": quantization,
            "device": self._settings.model.device,
        }
        await self._ensure_running()
        async with contextlib.aclosing(self._events("/x_mmchat/load", body, "loading")) as events:
            async for event in events:
                if isinstance(event, Waiting):
                    yield Loading(model, f"Waiting in line (place {event.place})", 0.0)
                elif isinstance(event, Loading):
                    yield event

    async def use_adapter(self, name: str) -> EngineStatus:
        await self._ensure_running()
        client = await self._require_client()
        try:
            reply = await client.post(
                "/x_mmchat/adapter",
                content=wire.encode_json({"adapter": name}),
                headers=wire.JSON,
                timeout=_STREAM,
            )
        except httpx.TransportError as error:
            raise _connection_lost("switching the adapter") from error
        await _check_response(reply)
        return msgspec.json.decode(reply.content, type=EngineStatus)

    async def chat(
        self,
        turns: Sequence[Turn[ImagePart]],
        options: Options,
        model: str,
        adapter: str,
        quantization: str,
    ) -> AsyncGenerator[Event, None]:
        body = {
            "model": model,
            "messages": [wire.message(turn, by_reference=True) for turn in turns],
            "stream": True,
            **wire.request_options(options, include_defaults=True),
            "x_mmchat": {
                "adapter": adapter,
                "quantization": quantization,
                "device": self._settings.model.device,
            },
        }
        pictures = {picture.sha256: picture for turn in turns for picture in turn.images}
        await self._ensure_running()
        path = "/v1/chat/completions"
        async with contextlib.aclosing(self._events(path, body, "answering", pictures)) as events:
            async for event in events:
                yield event
                if isinstance(event, Done):
                    return
        raise _connection_lost("answering")

    async def aclose(self) -> None:
        clients = [*self._retired, *([self._http] if self._http is not None else [])]
        self._retired, self._http, self._endpoint = [], None, None
        for client in clients:
            await client.aclose()

    async def _events(
        self,
        path: str,
        body: dict[str, Any],
        activity: str,
        pictures: dict[str, ImagePart] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Streams the events of a request.

        Uploads the pictures that the engine does not have. Starts the engine again if it ends
        before the request is processed. `activity` is for messages.
        """
        restarts = uploads = 0
        content = wire.encode_json(body)
        while True:
            client = await self._require_client()
            request = client.build_request(
                "POST", path, content=content, headers=wire.JSON, timeout=_STREAM
            )
            begun = False
            try:
                async with asyncio.timeout(_RESPONSE_TIMEOUT):
                    response = await client.send(request, stream=True)
            except (httpx.TransportError, TimeoutError) as error:
                if restarts == 2:
                    raise _connection_lost(activity) from error
                restarts += 1
                await self.start()
                continue
            try:
                if response.status_code == 503 and restarts < 2:  # the engine is ending
                    restarts += 1
                    await self.start()
                    continue
                missing = await _check_response(response)
                if not missing:
                    async with contextlib.aclosing(stream_events(response)) as events:
                        async for event in events:
                            begun = begun or not isinstance(event, Waiting)
                            yield event
                    return
            except EndingError:
                if begun or restarts == 2:
                    raise
                restarts += 1
                await self.start()
                continue
            except httpx.TransportError as error:
                raise _connection_lost(activity) from error
            finally:
                await response.aclose()
            available = pictures or {}
            if uploads == 3 or not set(missing) <= set(available):
                raise EngineError(
                    "The engine cannot hold the pictures of this conversation: attach fewer."
                )
            uploads += 1
            for sha256 in missing:
                await self._upload(available[sha256])

    async def _upload(self, picture: ImagePart) -> None:
        if picture.data is None:
            raise EngineError(
                f"The engine no longer has the picture {picture.sha256[:12]}: attach it again."
            )
        client = await self._require_client()
        try:
            reply = await client.put(
                f"/x_mmchat/images/{picture.sha256}",
                content=picture.data,
                headers={"content-type": picture.mime or "application/octet-stream"},
                timeout=_STREAM,
            )
        except httpx.TransportError as error:
            raise _connection_lost("receiving a picture") from error
        await _check_response(reply)

    async def _health(self) -> _Health | None:
        return await self._get("/health", _Health)

    async def _get(self, path: str, kind: type[_T]) -> _T | None:
        """None if no engine responds."""
        client = self._current_client()
        if client is None:
            return None
        try:
            reply = await client.get(path, timeout=_TIMEOUT)
            return msgspec.json.decode(reply.content, type=kind) if reply.is_success else None
        except (httpx.TransportError, msgspec.DecodeError):
            return None

    async def _spawn(self) -> _Health:
        """Starts an engine and waits until one responds, maybe one that another process started.

        Raises EngineError if it ends or does not respond.
        """
        deadline = time.monotonic() + START_TIMEOUT
        process: EngineProcess | None = None
        while time.monotonic() < deadline:
            if process is None and not engine_lives():
                process = EngineProcess(self._settings)
            health = await self._wait_for_health(process, 1.0)
            if health is not None:
                return health
            status = process.exit_status() if process is not None else None
            if process is not None and status is not None:
                if status not in (0, ALREADY_RUNNING):  # 0: stopped normally
                    raise process.failure()
                process = None
        raise EngineError(
            f"The engine does not respond: stop it with `mmchat engine stop`, or see its log: "
            f"{log_file()}"
        )

    async def _wait_for_health(
        self, process: EngineProcess | None, seconds: float
    ) -> _Health | None:
        """The engine's health; None after `seconds`, or when `process` (None: any) has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            health = await self._health()
            if health is not None:
                return health
            ended = not engine_lives() if process is None else process.exit_status() is not None
            if ended:
                return None
            await asyncio.sleep(0.02)
        return None

    async def _end(self, pid: int) -> None:
        client = self._current_client()
        if client is not None:
            # If it hangs or has ended, its process is ended below.
            with contextlib.suppress(httpx.TransportError):
                await client.post("/x_mmchat/stop", timeout=_TIMEOUT)
        await end_process(pid)

    async def _ensure_running(self) -> None:
        """Makes sure that an engine of this version runs; checks each engine only once."""
        endpoint = read_endpoint()
        if endpoint is None or endpoint != self._checked:
            await self.start()

    async def _require_client(self) -> httpx.AsyncClient:
        """A client of the running engine, which is started if needed. Raises EngineError."""
        client = self._current_client()
        if client is None:
            await self.start()
            client = self._current_client()
        if client is None:
            raise _connection_lost("starting")
        return client

    def _current_client(self) -> httpx.AsyncClient | None:
        """A client of the running engine; None if none is listening."""
        endpoint = read_endpoint()
        if endpoint is None:
            return None
        if self._http is None or endpoint != self._endpoint:
            if self._http is not None:
                self._retired.append(self._http)
            self._http = _http_client(endpoint)
            self._endpoint = endpoint
        return self._http


def _http_client(endpoint: Endpoint) -> httpx.AsyncClient:
    # There is no TLS here; verify=False avoids loading the system's certificates (0.1 s).
    if endpoint.transport == "unix":
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=endpoint.socket, verify=False),
            base_url="http://mmchat",
            trust_env=False,
        )
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{endpoint.port}",
        headers={"authorization": f"Bearer {endpoint.token}"},
        trust_env=False,
        verify=False,
    )


async def stream_events(response: httpx.Response) -> AsyncGenerator[Event, None]:
    """Yields the events of a streamed answer. Raises MmchatError if one is an error."""
    async for data in wire.sse_data(wire.split_lines(response.aiter_bytes())):
        chunk = wire.read_chunk(data, wire.EngineChunk)
        if chunk.error is not None:
            failed = wire.parse_error({"error": chunk.error})
            raise failed.exception(failed.message or "The engine failed and gave no reason.")
        if chunk.x_mmchat is not None:
            yield chunk.x_mmchat
        for choice in chunk.choices:
            if choice.delta is not None and choice.delta.content:
                yield Delta(choice.delta.content)


async def _check_response(response: httpx.Response) -> list[str]:
    """The sha256 of pictures to upload first; empty if the request succeeded.

    Raises MmchatError for any other error.
    """
    if response.is_success:
        return []
    body = wire.read_error(await response.aread())
    if body.missing:
        return body.missing
    raise body.exception(
        body.message or f"The engine refused the request ({response.status_code})."
    )


def _connection_lost(activity: str) -> EngineError:
    return EngineError(
        f"The engine ended unexpectedly while {activity} (its log: {log_file()}). "
        "The text so far is kept, and the next message starts the engine again."
    )
