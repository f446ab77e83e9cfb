"""The engine's process: alone, private, found by its socket, and gone when nobody asks.

Order of a start: lock (else another engine lives: exit `ALREADY_RUNNING`), log,
socket, endpoint file, service. Order of an end: requests, service, endpoint file,
socket; the system frees the lock.
"""

import asyncio
import contextlib
import faulthandler
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mmchat.client.endpoint import (
    ALREADY_RUNNING,
    Endpoint,
    EngineLock,
    endpoint_file,
    log_file,
    socket_path,
    write_endpoint,
)
from mmchat.errors import EngineError
from mmchat.settings import Settings, private_dir

MAX_LOG = 1_000_000
"""Bytes after which engine.log becomes engine.log.1."""

log = logging.getLogger(__name__)


def serve(settings: Settings, backend: str, foreground: bool = False) -> int:
    """Runs the engine until it is told to end; its exit status."""
    lock = EngineLock()
    patience = time.monotonic() + 0.2
    while not lock.take():  # whoever asks whether an engine lives holds the lock for an instant
        if time.monotonic() > patience:
            return ALREADY_RUNNING
        time.sleep(0.01)
    endpoint_file().unlink(missing_ok=True)
    private_dir(log_file().parent)
    if not foreground:
        _redirect_output(log_file())
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    faulthandler.enable()
    # A signal that comes before uvicorn listens for it is kept. Uvicorn raises its own again when it
    # is done, by when we clean up by ourselves.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early.append(number))
    with _listening(settings) as (listener, endpoint):
        ended = asyncio.run(_serve(settings, backend, listener, endpoint, foreground, early))
    logging.shutdown()
    if not ended:  # the model's thread is inside a long native call that nothing can end
        os._exit(0)
    return 0


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[tuple[socket.socket, Endpoint]]:
    """A bound, private socket that listens; its file goes with it."""
    transport: Literal["unix", "tcp"] = "unix" if hasattr(socket, "AF_UNIX") else "tcp"
    if settings.engine.transport != "auto":
        transport = settings.engine.transport
    if transport == "tcp":
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            port = listener.getsockname()[1]
            yield listener, Endpoint("tcp", os.getpid(), "", port, secrets.token_urlsafe(32))
        return
    path = socket_path()
    path.unlink(missing_ok=True)  # we hold the lock: whoever bound it is gone
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(128)
        try:
            yield listener, Endpoint("unix", os.getpid(), str(path))
        finally:
            path.unlink(missing_ok=True)


async def _serve(
    settings: Settings,
    backend: str,
    listener: socket.socket,
    endpoint: Endpoint,
    foreground: bool,
    early: Sequence[int],
) -> bool:
    """Serves until told to end; whether the model's thread has ended too.

    `early` holds the signals that came before the service had its own handlers.
    """
    import uvicorn

    from mmchat.client.protocol import Options
    from mmchat.engine.service import Service, TokenGuard
    from mmchat.engine.worker import Choice, Worker

    made = settings.generation
    default = Choice(
        settings.model.name,
        settings.model.adapter,
        settings.model.quantization,
        settings.model.device,
    )
    worker = Worker(lambda: _create_backend(backend), default, str(log_file()))

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            self.should_exit = self.should_exit or bool(early)  # by now no signal is missed
            await super().main_loop()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            endpoint_file().unlink(missing_ok=True)
            worker.close()
            await super().shutdown(sockets)

    def stop() -> None:
        worker.refuse()
        server.should_exit = True

    service = Service(
        worker,
        Options(
            temperature=made.temperature,
            top_k=made.top_k,
            top_p=made.top_p,
            min_p=made.min_p,
            repetition_penalty=made.repetition_penalty,
            max_tokens=made.max_tokens,
            seed=made.seed,
        ),
        stop,
        str(log_file()),
    )
    app: Any = service.app
    if endpoint.transport == "tcp":
        app = TokenGuard(app, endpoint.token, endpoint.port)
    server = Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=2,
        )
    )
    write_endpoint(endpoint)
    log.info("engine %d listens (%s)", endpoint.pid, endpoint.transport)
    watcher = asyncio.create_task(_watch(worker, settings.engine.idle_seconds, stop, foreground))
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
    log.info("engine %d ends", endpoint.pid)
    return await asyncio.to_thread(worker.join, 2.0)


async def _watch(worker: Any, idle_seconds: float, stop: Callable[[], None], fg: bool) -> None:
    """Ends the engine when nobody has asked for long, and keeps its log small."""
    while worker.idle_s < idle_seconds:
        await asyncio.sleep(min(1.0, max(0.02, idle_seconds / 10)))
        # A full disk or a log that somebody removed must not keep it alive for ever.
        with contextlib.suppress(OSError):
            if not fg and log_file().stat().st_size > MAX_LOG:
                _redirect_output(log_file())
    log.info("nobody asked for %.0f s", idle_seconds)
    stop()


def _create_backend(path: str) -> Any:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"The engine cannot load its backend {path} ({error}): "
            "install mmchat again, with all that it needs."
        ) from error


def _redirect_output(file: Path) -> None:
    """Standard output and error, those of native libraries too, into the log."""
    if file.exists() and file.stat().st_size > MAX_LOG:
        file.replace(file.with_suffix(".log.1"))
    handle = open_log(file)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def open_log(file: Path) -> int:
    """A descriptor that appends to the log, readable by this person only."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
