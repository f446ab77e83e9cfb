"""The local engine: finds or starts it, and asks it over its private socket."""

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
from mmchat.client.spawn import Spawned, end_process
from mmchat.errors import EngineError
from mmchat.settings import Settings
from mmchat.turns import ImagePart, Turn

START_PATIENCE = 60.0
"""Seconds to wait for a process that neither answers nor ends."""
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_STREAM = httpx.Timeout(None, connect=5.0, write=60.0)
_BEGIN = 30.0
"""Seconds until a stream begins; the engine sends its first bytes before a model is loaded."""

_T = TypeVar("_T")


class _Health(Struct):
    """The answer of every version of the engine to `GET /health`."""

    version: str
    pid: int
    status: str = "ok"
    """Or "ending": it takes no more requests and is about to end."""


class LocalEngine:
    """This person's engine; used from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._endpoint: Endpoint | None = None
        self._checked: Endpoint | None = None
        """The engine that is known to have this version; checked again only if it fails."""
        self._retired: list[httpx.AsyncClient] = []
        self._starting = asyncio.Lock()

    async def status(self) -> EngineStatus | None:
        """None if no engine answers."""
        return await self._ask("/x_mmchat/status", EngineStatus)

    async def start(self) -> EngineStatus:
        """The engine of this version, found or started."""
        async with self._starting:
            health = await self._health()
            if health is not None and health.version != mmchat.__version__:
                await self._end(health.pid)
                health = None
            elif health is not None and health.status == "ending":
                await end_process(health.pid)
                health = None
            if health is None:
                health = await self._spawned()
            if health.version != mmchat.__version__:
                raise EngineError(
                    f"An engine of mmchat {health.version} keeps starting, and this is "
                    f"{mmchat.__version__}: close the other mmchat."
                )
            status = await self.status()
            if status is None:
                raise broken("starting")
            self._checked = self._endpoint
            return status

    async def stop(self) -> bool:
        """False if none ran."""
        async with self._starting:
            if not engine_lives():
                return False
            endpoint = read_endpoint()
            if endpoint is None:  # it is starting, or ending
                await self._answering(None, 10.0)
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
        await self._ready()
        async with contextlib.aclosing(self._events("/x_mmchat/load", body, "loading")) as events:
            async for event in events:
                if isinstance(event, Waiting):
                    yield Loading(model, f"Waiting in line (place {event.place})", 0.0)
                elif isinstance(event, Loading):
                    yield event

    async def use_adapter(self, name: str) -> EngineStatus:
        await self._ready()
        client = await self._reached()
        try:
            reply = await client.post(
                "/x_mmchat/adapter",
                content=wire.encoded({"adapter": name}),
                headers=wire.JSON,
                timeout=_STREAM,
            )
        except httpx.TransportError as error:
            raise broken("switching the adapter") from error
        await _refused(reply)
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
            "messages": wire.messages(turns, by_reference=True),
            "stream": True,
            **wire.options(options, everything=True),
            "x_mmchat": {
                "adapter": adapter,
                "quantization": quantization,
                "device": self._settings.model.device,
            },
        }
        pictures = {picture.sha256: picture for turn in turns for picture in turn.images}
        await self._ready()
        path = "/v1/chat/completions"
        async with contextlib.aclosing(self._events(path, body, "answering", pictures)) as events:
            async for event in events:
                yield event
                if isinstance(event, Done):
                    return
        raise broken("answering")

    async def aclose(self) -> None:
        clients = [*self._retired, *([self._http] if self._http is not None else [])]
        self._retired, self._http, self._endpoint = [], None, None
        for client in clients:
            await client.aclose()

    async def _events(
        self,
        path: str,
        body: dict[str, Any],
        doing: str,
        pictures: dict[str, ImagePart] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The stream's events.

        Pictures that the engine does not have are uploaded. An engine that ended before it took
        the request, or while the request waited in line, is started again.
        """
        restarts = uploads = 0
        content = wire.encoded(body)
        while True:
            client = await self._reached()
            request = client.build_request(
                "POST", path, content=content, headers=wire.JSON, timeout=_STREAM
            )
            begun = False
            try:
                async with asyncio.timeout(_BEGIN):
                    response = await client.send(request, stream=True)
            except (httpx.TransportError, TimeoutError) as error:
                if restarts == 2:
                    raise broken(doing) from error
                restarts += 1
                await self.start()
                continue
            try:
                if response.status_code == 503 and restarts < 2:  # it is ending
                    restarts += 1
                    await self.start()
                    continue
                missing = await _refused(response)
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
                raise broken(doing) from error
            finally:
                await response.aclose()
            known = pictures or {}
            if uploads == 3 or not set(missing) <= set(known):
                raise EngineError(
                    "The engine cannot hold the pictures of this conversation: attach fewer."
                )
            uploads += 1
            for sha256 in missing:
                await self._upload(known[sha256])

    async def _upload(self, picture: ImagePart) -> None:
        if picture.data is None:
            raise EngineError(
                f"The engine no longer has the picture {picture.sha256[:12]}: attach it again."
            )
        client = await self._reached()
        try:
            reply = await client.put(
                f"/x_mmchat/images/{picture.sha256}",
                content=picture.data,
                headers={"content-type": picture.mime or "application/octet-stream"},
                timeout=_STREAM,
            )
        except httpx.TransportError as error:
            raise broken("taking a picture") from error
        await _refused(reply)

    async def _health(self) -> _Health | None:
        return await self._ask("/health", _Health)

    async def _ask(self, path: str, kind: type[_T]) -> _T | None:
        client = self._connected()
        if client is None:
            return None
        try:
            reply = await client.get(path, timeout=_TIMEOUT)
            return msgspec.json.decode(reply.content, type=kind) if reply.is_success else None
        except (httpx.TransportError, msgspec.DecodeError):
            return None

    async def _spawned(self) -> _Health:
        """Starts an engine until one answers, which may be one that another process started.

        Raises EngineError if it ends or does not answer.
        """
        deadline = time.monotonic() + START_PATIENCE
        process: Spawned | None = None
        while time.monotonic() < deadline:
            if process is None and not engine_lives():
                process = Spawned(self._settings)
            health = await self._answering(process, 1.0)
            if health is not None:
                return health
            ended = process.exit_status() if process is not None else None
            if process is not None and ended is not None:
                if ended not in (0, ALREADY_RUNNING):  # 0: it was stopped normally
                    raise process.failure()
                process = None
        raise EngineError(
            f"The engine does not answer: end it with `mmchat engine stop`, or see its log: "
            f"{log_file()}"
        )

    async def _answering(self, process: Spawned | None, patience: float) -> _Health | None:
        """The engine's answer; None after `patience` seconds, or when the engine has ended.

        process: the engine that is waited for; None for any.
        """
        deadline = time.monotonic() + patience
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
        client = self._connected()
        if client is not None:
            # If it hangs or is gone, its process is ended below.
            with contextlib.suppress(httpx.TransportError):
                await client.post("/x_mmchat/stop", timeout=_TIMEOUT)
        await end_process(pid)

    async def _ready(self) -> None:
        """Makes sure that an engine of this version runs; asks it only if it is not known yet."""
        endpoint = read_endpoint()
        if endpoint is None or endpoint != self._checked:
            await self.start()

    async def _reached(self) -> httpx.AsyncClient:
        client = self._connected()
        if client is None:
            await self.start()
            client = self._connected()
        if client is None:
            raise broken("starting")
        return client

    def _connected(self) -> httpx.AsyncClient | None:
        """A client of the engine that runs now; None if none listens."""
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
    # Nothing is encrypted here: verify=False avoids reading the system's certificates (0.1 s).
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
    """The events of a streamed answer. Raises EngineError or ModelError if one is an error."""
    async for data in wire.server_sent(wire.split_lines(response.aiter_bytes())):
        chunk = wire.read_chunk(data, wire.EngineChunk)
        if chunk.error is not None:
            failed = wire.parsed_error({"error": chunk.error})
            raise failed.raised(failed.message or "The engine failed and gave no reason.")
        if chunk.x_mmchat is not None:
            yield chunk.x_mmchat
        for choice in chunk.choices:
            if choice.delta is not None and choice.delta.content:
                yield Delta(choice.delta.content)


async def _refused(response: httpx.Response) -> list[str]:
    """The pictures that have to be uploaded first; empty for a success.

    Raises EngineError or ModelError for any other refusal.
    """
    if response.is_success:
        return []
    body = wire.error_object(await response.aread())
    if body.missing:
        return body.missing
    raise body.raised(body.message or f"The engine refused the request ({response.status_code}).")


def broken(doing: str) -> EngineError:
    return EngineError(
        f"The engine ended unexpectedly while {doing} (its log: {log_file()}); "
        "what was written is kept, and the next message starts it again."
    )
