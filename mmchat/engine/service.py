"""The engine's HTTP service: OpenAI chat-completions, and what mmchat adds to it.

POST /v1/chat/completions       an answer, streamed or whole
GET  /v1/models, /health
GET  /x_mmchat/status           EngineStatus
POST /x_mmchat/load             loads a model; progress as server-sent events
POST /x_mmchat/adapter          switches the adapter of the loaded model
PUT  /x_mmchat/images/SHA256    a picture's bytes, to be referred to later
POST /x_mmchat/stop
"""

import contextlib
import hmac
import os
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import mmchat
from mmchat.client.protocol import Done, EngineStatus, Options
from mmchat.engine.image_store import PictureStore
from mmchat.engine.requests import (
    SHA256,
    AdapterRequest,
    ChatRequest,
    LoadRequest,
    RequestError,
    choice_of,
    options_of,
    read_body,
    read_json,
    turns_of,
)
from mmchat.engine.responses import END, Completion, error_body, sse, status_code
from mmchat.engine.worker import Choice, Job, Worker, own_mistake
from mmchat.errors import MmchatError
from mmchat.images import MAX_BYTES

Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The routes, over one worker."""

    def __init__(
        self, worker: Worker, defaults: Options, stop: Callable[[], None], log_file: str
    ) -> None:
        self._worker = worker
        self._defaults = defaults
        self._stop = stop
        self._log_file = log_file
        self._pictures = PictureStore()
        self.app = Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/x_mmchat/status", self.show_status, methods=["GET"]),
                Route("/x_mmchat/load", self.load, methods=["POST"]),
                Route("/x_mmchat/adapter", self.adapter, methods=["POST"]),
                Route("/x_mmchat/images/{sha256}", self.put_image, methods=["PUT"]),
                Route("/x_mmchat/stop", self.stop, methods=["POST"]),
            ],
            exception_handlers={
                MmchatError: _answer_error,
                HTTPException: _answer_http_error,
                ClientDisconnect: _answer_nobody,
                Exception: self._answer_mistake,
            },
        )

    async def health(self, request: Request) -> Response:
        status = "ending" if self._worker.ending else "ok"
        return _json({"status": status, "version": mmchat.__version__, "pid": os.getpid()})

    async def models(self, request: Request) -> Response:
        name = self._worker.backend_status.model or self._worker.default_model
        return _json(
            {
                "object": "list",
                "data": [{"id": name, "object": "model", "created": 0, "owned_by": "mmchat"}],
            }
        )

    async def chat(self, request: Request) -> Response:
        self._worker.touch()
        asked = await read_json(request, ChatRequest)
        options = options_of(asked, self._defaults)
        turns = await turns_of(asked, self._pictures)
        job = self._worker.chat(choice_of(asked), turns, options)
        completion = Completion(asked.model or self._worker.backend_status.model)
        if asked.stream:
            return _Following(self._worker, job, self._streamed(job, completion, asked))
        return _Following(self._worker, job, self._whole(job, completion), "application/json")

    async def _streamed(
        self, job: Job, completion: Completion, asked: ChatRequest
    ) -> AsyncGenerator[bytes, None]:
        yield completion.opening()
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                yield sse(error_body(event))
                break
            yield completion.chunk(event)
            if isinstance(event, Done) and asked.include_usage:
                yield completion.usage(event)
        yield END

    async def _whole(self, job: Job, completion: Completion) -> AsyncGenerator[bytes, None]:
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                raise event
            completion.add(event)
        yield msgspec.json.encode(completion.whole())

    async def load(self, request: Request) -> Response:
        self._worker.touch()
        asked = await read_json(request, LoadRequest)
        choice = Choice(asked.model, asked.adapter, asked.quantization, asked.device)
        job = self._worker.load(choice)
        return _Following(self._worker, job, self._progress(job))

    async def _progress(self, job: Job) -> AsyncGenerator[bytes, None]:
        yield b": loading\n\n"
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                yield sse(error_body(event))
                break
            yield sse({"x_mmchat": event})
        yield END

    async def adapter(self, request: Request) -> Response:
        self._worker.touch()
        asked = await read_json(request, AdapterRequest)
        job = self._worker.load(Choice(adapter=asked.adapter))
        return _Following(self._worker, job, self._switched(job), "application/json")

    async def _switched(self, job: Job) -> AsyncGenerator[bytes, None]:
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                raise event
        yield msgspec.json.encode(self.status())

    async def put_image(self, request: Request) -> Response:
        self._worker.touch()
        sha256 = request.path_params["sha256"]
        if not SHA256.fullmatch(sha256):
            raise RequestError("A picture is named by its sha256: 64 hexadecimal digits.")
        data = await read_body(request, MAX_BYTES)
        mime = request.headers.get("content-type", "")
        if not self._pictures.put(sha256, data, mime):
            raise RequestError("The bytes are not those that the sha256 names: send them again.")
        return Response(status_code=204)

    async def show_status(self, request: Request) -> Response:
        return _json(self.status())

    def status(self) -> EngineStatus:
        held, loading = self._worker.backend_status, self._worker.loading
        return EngineStatus(
            version=mmchat.__version__,
            pid=os.getpid(),
            state=self._worker.state,
            model=loading.model if loading is not None else held.model,
            adapter=held.adapter,
            device=held.device,
            quantization=held.quantization,
            compute_dtype=held.compute_dtype,
            memory_bytes=_memory(held.device, held.memory_bytes),
            idle_s=round(self._worker.idle_s, 3),
            fraction=loading.fraction if loading is not None else 0.0,
            stage=loading.stage if loading is not None else "",
            error=self._worker.error,
            context_length=held.context_length,
            vision=held.vision,
            weights_hash=held.weights_hash,
            adapter_hash=held.adapter_hash,
            waiting=self._worker.waiting,
            log_file=self._log_file,
        )

    async def _answer_mistake(self, request: Request, error: Exception) -> Response:
        """Starlette raises `error` again behind it, so that the log has the traceback."""
        return _refusal(own_mistake(error, self._log_file))

    async def stop(self, request: Request) -> Response:
        self._stop()
        return _json({"stopping": True, "pid": os.getpid()})


class _Following(Response):
    """A response that ends its job when the client leaves, in line or in mid-answer.

    A failure before the first byte becomes an error status; `events` raises it.
    """

    def __init__(
        self,
        worker: Worker,
        job: Job,
        events: AsyncGenerator[bytes, None],
        media_type: str = "text/event-stream; charset=utf-8",
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._worker = worker
        self._job = job
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                await self._stream(scope, receive, send)
                group.cancel_scope.cancel()
        finally:
            self._worker.cancel(self._job)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async with contextlib.aclosing(self._events) as events:
                async for part in events:
                    if not begun:
                        begun = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": self.status_code,
                                "headers": self.raw_headers,
                            }
                        )
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except MmchatError as error:
            if begun:
                raise
            await _refusal(error)(scope, receive, send)
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class TokenGuard:
    """Lets in who knows the token and calls this host by a loopback name (no DNS rebinding)."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = f"Bearer {token}".encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self._hosts:
            refusal = RequestError("The Host header has to name this machine.", 403, "wrong_host")
        elif not hmac.compare_digest(
            headers.get("authorization", "").encode("latin-1"), self._token
        ):
            refusal = RequestError("The engine's token is missing or wrong.", 401, "wrong_token")
        else:
            await self._app(scope, receive, send)
            return
        await _refusal(refusal)(scope, receive, send)


def _memory(device: str, held: int) -> int:
    import psutil

    resident = int(psutil.Process().memory_info().rss)
    return resident + held if device.startswith("cuda") else resident


def _json(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _refusal(error: MmchatError) -> Response:
    response = _json(error_body(error), status_code(error))
    if response.status_code in (401, 403, 413):  # the rest of such a body is not waited for
        response.headers["connection"] = "close"
    return response


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MmchatError)
    return _refusal(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail}."
    return _json(error_body(RequestError(sentence, code="not_found")), error.status_code)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client left while it was sending
