"""The engine's process: one for each person, found by its lock, and ended when it is idle.

Start: lock (if another engine has it, exit `ALREADY_RUNNING`), log, sockets, endpoint file, service.
End: requests, service, endpoint file, sockets. The system frees the lock.
"""

import asyncio
import contextlib
import faulthandler
import importlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmchat.client.endpoint import (
    ALREADY_RUNNING,
    Endpoint,
    EngineLock,
    endpoint_file,
    log_file,
    write_endpoint,
)
from mmchat.errors import EngineError
from mmchat.settings import Settings, private_dir

if TYPE_CHECKING:
    from mmchat.engine.listeners import TcpListener

MAX_LOG = 1_000_000
"""Bytes after which engine.log becomes engine.log.1."""

log = logging.getLogger(__name__)


class TcpAddress(NamedTuple):
    """Where other clients reach the engine, and the file of the token that they need."""

    host: str
    port: int
    token_file: Path | None


def serve(
    settings: Settings, backend: str, foreground: bool = False, tcp: TcpAddress | None = None
) -> int:
    """Runs the engine until it is told to end; returns the exit status.

    In the foreground it logs to the terminal, and does not end when it is idle.
    """
    lock = EngineLock()
    if not lock.take():
        return ALREADY_RUNNING
    endpoint_file().unlink(missing_ok=True)
    private_dir(log_file().parent)
    if not foreground:
        _redirect_output(log_file())
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    faulthandler.enable()
    # Keeps a signal that comes before uvicorn listens for it. Uvicorn raises its own again when it is
    # done; the engine has cleaned up by then.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early.append(number))
    from mmchat.engine.listeners import private_listener, tcp_listener

    with contextlib.ExitStack() as stack:
        listener, endpoint = stack.enter_context(private_listener(settings))
        public = stack.enter_context(tcp_listener(*tcp)) if tcp is not None else None
        ended = asyncio.run(_run(settings, backend, listener, endpoint, public, foreground, early))
    logging.shutdown()
    if not ended:  # the model's thread is in a long native call that nothing can end
        os._exit(0)
    return 0


async def _run(
    settings: Settings,
    backend: str,
    listener: socket.socket,
    endpoint: Endpoint,
    public: "TcpListener | None",
    foreground: bool,
    early: Sequence[int],
) -> bool:
    """Serves until told to end; returns whether the model's thread has ended too.

    `early` holds the signals that came before the service had its own handlers.
    """
    import uvicorn

    from mmchat.client.protocol import Options
    from mmchat.engine.listeners import TokenAuth
    from mmchat.engine.service import Service
    from mmchat.engine.worker import ModelChoice, Worker
    from mmchat.sampling_params import SamplingParams

    chosen = settings.model
    worker = Worker(
        lambda: _create_backend(backend),
        ModelChoice(chosen.name, chosen.adapter, chosen.quantization, chosen.device),
        str(log_file()),
    )

    class PrivateServer(uvicorn.Server):
        async def main_loop(self) -> None:
            self.should_exit = self.should_exit or bool(early)  # from now on no signal is missed
            await super().main_loop()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            endpoint_file().unlink(missing_ok=True)
            worker.close()
            for server in servers:
                server.should_exit = True
            await super().shutdown(sockets)

    class PublicServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield  # the private server handles them, and ends this one

    def stop() -> None:
        worker.stop_accepting()
        private.should_exit = True

    service = Service(
        worker,
        Options(
            **{
                name: getattr(settings.generation, name)
                for name in SamplingParams.__struct_fields__
            }
        ),
        stop,
        str(log_file()),
        public.url if public is not None else "",
    )
    app: Any = service.app
    needs_token = endpoint.transport == "tcp"
    private = PrivateServer(_config(TokenAuth(app, endpoint.token) if needs_token else app))
    servers: list[uvicorn.Server] = [private]
    serving = [private.serve(sockets=[listener])]
    if public is not None:
        guarded = TokenAuth(app, public.token, public.is_local)
        servers.append(PublicServer(_config(guarded)))
        serving.append(servers[1].serve(sockets=[public.socket]))
        log.info("listens on %s (API key: the content of %s)", public.url, public.token_file)
        if not public.is_local:
            log.warning(
                "other machines can connect, and the connection is not encrypted: use it only in a "
                "network that you trust"
            )
    write_endpoint(endpoint)
    log.info("engine %d listens (%s)", endpoint.pid, endpoint.transport)
    patience = math.inf if foreground else settings.engine.idle_seconds
    watcher = asyncio.create_task(_watch(worker, patience, stop, foreground))
    try:
        await asyncio.gather(*serving)
    finally:
        watcher.cancel()
    log.info("engine %d ends", endpoint.pid)
    return await asyncio.to_thread(worker.join, 2.0)


def _config(app: Any) -> Any:
    import uvicorn

    return uvicorn.Config(
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


async def _watch(
    worker: Any, idle_seconds: float, stop: Callable[[], None], foreground: bool
) -> None:
    """Ends the engine when there was no request for `idle_seconds`, and keeps its log small."""
    while worker.idle_s < idle_seconds:
        await asyncio.sleep(min(1.0, max(0.02, idle_seconds / 10)))
        # A full disk or a log that somebody removed must not keep the engine alive for ever.
        with contextlib.suppress(OSError):
            if not foreground and log_file().stat().st_size > MAX_LOG:
                _redirect_output(log_file())
    log.info("no request for %.0f s", idle_seconds)
    stop()


def _create_backend(path: str) -> Any:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"The engine cannot load its backend {path} ({error}): "
            "install mmchat again, with all its dependencies."
        ) from error


def _redirect_output(file: Path) -> None:
    """Sends standard output and error to the log, those of native libraries too."""
    if file.exists() and file.stat().st_size > MAX_LOG:
        file.replace(file.with_suffix(".log.1"))
    handle = open_log(file)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def open_log(file: Path) -> int:
    """A file descriptor that appends to the log, which only this person can read."""
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
