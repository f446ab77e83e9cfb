"""The engine's HTTP service: OpenAI's chat completions, and mmchat's extensions.

POST /v1/chat/completions       an answer, streamed or not
GET  /v1/models, /v1/models/ID  the models on this machine
GET  /health
GET  /x_mmchat/status           EngineStatus
POST /x_mmchat/load             loads a model; progress as server-sent events
POST /x_mmchat/adapter          switches the adapter of the loaded model
PUT  /x_mmchat/images/SHA256    uploads a picture that later requests refer to
POST /x_mmchat/stop             stops the engine
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import mmchat
from mmchat.client.protocol import Delta, Done, EngineStatus, Options
from mmchat.engine.request_fields import RequestError
from mmchat.engine.requests import (
    SHA256,
    AdapterRequest,
    ChatRequest,
    ImageStore,
    LoadRequest,
    model_choice,
    options_of,
    read_body,
    read_chat,
    read_json,
    turns_of,
)
from mmchat.engine.responses import END, Completion, error_body, error_response, json_response, sse
from mmchat.engine.worker import Job, ModelChoice, Worker, internal_error
from mmchat.errors import MmchatError
from mmchat.images import MAX_BYTES
from mmchat.model.catalogue import list_installed


class Service:
    """The routes of the service, for one worker."""

    def __init__(
        self,
        worker: Worker,
        defaults: Options,
        stop: Callable[[], None],
        log_file: str,
        url: str = "",
    ) -> None:
        """`stop` ends the engine; `url` is the address for other clients, if there is one."""
        self._worker = worker
        self._defaults = defaults
        self._stop = stop
        self._log_file = log_file
        self._url = url
        self._images = ImageStore()
        self.app = Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{model:path}", self.model, methods=["GET"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/x_mmchat/status", self.show_status, methods=["GET"]),
                Route("/x_mmchat/load", self.load, methods=["POST"]),
                Route("/x_mmchat/adapter", self.adapter, methods=["POST"]),
                Route("/x_mmchat/images/{sha256}", self.put_image, methods=["PUT"]),
                Route("/x_mmchat/stop", self.stop, methods=["POST"]),
            ],
            exception_handlers={
                MmchatError: _on_error,
                HTTPException: _on_http_error,
                ClientDisconnect: _on_disconnect,
                Exception: self._on_internal_error,
            },
        )

    async def health(self, request: Request) -> Response:
        status = "ending" if self._worker.ending else "ok"
        return json_response({"status": status, "version": mmchat.__version__, "pid": os.getpid()})

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": list((await self._models()).values())})

    async def model(self, request: Request) -> Response:
        models, name = await self._models(), request.path_params["model"]
        # The last part of a name is enough if only one model has it.
        short = [one for one in models if one.split("/")[-1].lower() == name.lower()]
        found = name if name in models else short[0] if len(short) == 1 else None
        if found is None:
            raise RequestError(
                f"There is no model {name}: GET /v1/models lists the installed ones.",
                404,
                "model_not_found",
                "model",
            )
        return json_response(models[found])

    async def _models(self) -> dict[str, dict[str, Any]]:
        """OpenAI's model objects by id, the default model first."""
        default = self._worker.backend_status.model or self._worker.default_model
        created = {default: 0}
        for model in await asyncio.to_thread(list_installed):
            if not model.problem:
                created[model.name] = int(model.folder.stat().st_mtime)
        return {
            name: {"id": name, "object": "model", "created": seconds, "owned_by": "mmchat"}
            for name, seconds in created.items()
        }

    async def chat(self, request: Request) -> Response:
        self._worker.touch()
        chat = await read_chat(request)
        options = options_of(chat, self._defaults)
        turns = await turns_of(chat, self._images)
        job = self._worker.chat(model_choice(chat), turns, options)
        completion = Completion(chat.model or self._worker.backend_status.model)
        if chat.stream:
            return _JobResponse(self._worker, job, self._stream(job, completion, chat))
        return _JobResponse(self._worker, job, self._complete(job, completion), "application/json")

    async def _stream(
        self, job: Job, completion: Completion, chat: ChatRequest
    ) -> AsyncGenerator[bytes, None]:
        # Other clients expect an HTTP status for an error, so nothing is sent to them before the
        # first token. mmchat's own clients show the progress of the load.
        hold = chat.x_mmchat is None
        held = [completion.first_chunk()]
        if not hold:
            yield held.pop()
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                if hold:
                    raise event
                yield sse(error_body(event))
                break
            held.append(completion.chunk(event))
            if isinstance(event, Done) and chat.include_usage:
                held.append(completion.usage_chunk(event))
            hold = hold and not isinstance(event, Delta | Done)
            if not hold:
                yield b"".join(held)
                held.clear()
        yield b"".join([*held, END])

    async def _complete(self, job: Job, completion: Completion) -> AsyncGenerator[bytes, None]:
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                raise event
            completion.add(event)
        yield msgspec.json.encode(completion.response())

    async def load(self, request: Request) -> Response:
        self._worker.touch()
        load = await read_json(request, LoadRequest)
        choice = ModelChoice(load.model, load.adapter, load.quantization, load.device)
        job = self._worker.load(choice)
        return _JobResponse(self._worker, job, self._stream_progress(job))

    async def _stream_progress(self, job: Job) -> AsyncGenerator[bytes, None]:
        yield b": loading\n\n"
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                yield sse(error_body(event))
                break
            yield sse({"x_mmchat": event})
        yield END

    async def adapter(self, request: Request) -> Response:
        self._worker.touch()
        body = await read_json(request, AdapterRequest)
        job = self._worker.load(ModelChoice(adapter=body.adapter))
        return _JobResponse(self._worker, job, self._switch_adapter(job), "application/json")

    async def _switch_adapter(self, job: Job) -> AsyncGenerator[bytes, None]:
        while (event := await job.events.get()) is not None:
            if isinstance(event, MmchatError):
                raise event
        yield msgspec.json.encode(self.status())

    async def put_image(self, request: Request) -> Response:
        self._worker.touch()
        sha256 = request.path_params["sha256"]
        if not SHA256.fullmatch(sha256):
            raise RequestError(
                "The path of a picture must end in its sha256, 64 hexadecimal digits."
            )
        data = await read_body(request, MAX_BYTES)
        mime = request.headers.get("content-type", "")
        if not self._images.put(sha256, data, mime):
            raise RequestError(
                "The sha256 of the bytes is not the one in the path: send them again."
            )
        return Response(status_code=204)

    async def show_status(self, request: Request) -> Response:
        return json_response(self.status())

    def status(self) -> EngineStatus:
        loaded, loading = self._worker.backend_status, self._worker.loading
        return EngineStatus(
            version=mmchat.__version__,
            pid=os.getpid(),
            state=self._worker.state,
            model=loading.model if loading is not None else loaded.model,
            adapter=loaded.adapter,
            device=loaded.device,
            quantization=loaded.quantization,
            compute_dtype=loaded.compute_dtype,
            memory_bytes=_memory(loaded.device, loaded.memory_bytes),
            idle_s=round(self._worker.idle_s, 3),
            fraction=loading.fraction if loading is not None else 0.0,
            stage=loading.stage if loading is not None else "",
            error=self._worker.error,
            context_length=loaded.context_length,
            vision=loaded.vision,
            weights_hash=loaded.weights_hash,
            adapter_hash=loaded.adapter_hash,
            waiting=self._worker.waiting,
            log_file=self._log_file,
            url=self._url,
        )

    async def stop(self, request: Request) -> Response:
        self._stop()
        return json_response({"stopping": True, "pid": os.getpid()})

    async def _on_internal_error(self, request: Request, error: Exception) -> Response:
        """The response; Starlette then raises `error` again, so that the log has the traceback."""
        return error_response(internal_error(error, self._log_file))


class _JobResponse(Response):
    """A response that cancels its job if the client disconnects.

    If `events` raises an MmchatError before the first bytes, the response has the status of that
    error.
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
        started = False
        try:
            async with contextlib.aclosing(self._events) as events:
                async for part in events:
                    if not started:
                        started = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": self.status_code,
                                "headers": self.raw_headers,
                            }
                        )
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        except MmchatError as error:
            if started:
                raise
            await error_response(error)(scope, receive, send)
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _memory(device: str, model_bytes: int) -> int:
    """Bytes that the process uses, on a GPU too."""
    import psutil

    resident = int(psutil.Process().memory_info().rss)
    return resident + model_bytes if device.startswith("cuda") else resident


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MmchatError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refusal = RequestError(
            f"{route} is not supported: use {allowed}.", 405, "method_not_supported"
        )
    else:
        refusal = RequestError(
            f"There is no {route}: the engine has /v1/chat/completions and /v1/models.",
            error.status_code,
            "unknown_url",
        )
    response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client disconnected while sending
