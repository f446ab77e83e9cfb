"""The engine's process: one per user, guarded by a lock, and ended when it is idle.

Start: lock (if another engine has it, exit `ALREADY_RUNNING`), log, sockets, endpoint file, service.
End: requests, service, endpoint file, sockets. The system releases the lock.
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
    endpoint_file,
    log_file,
    open_log,
    take_engine_lock,
    write_endpoint,
)
from mmchat.errors import EngineError
from mmchat.settings import Settings, private_dir

if TYPE_CHECKING:
    from mmchat.engine.listeners import TcpListener

MAX_LOG = 1_000_000
"""The size in bytes at which engine.log is rotated to engine.log.1."""

log = logging.getLogger(__name__)


class TcpAddress(NamedTuple):
    """The address for other clients, and the file of the token that they need."""

    host: str
    port: int
    token_file: Path | None


def serve(
    settings: Settings, backend: str, foreground: bool = False, tcp: TcpAddress | None = None
) -> int:
    """Runs the engine until it is stopped; returns the exit status.

    In the foreground it logs to the terminal and does not end when it is idle.
    """
    lock = take_engine_lock()
    if lock is None:
        return ALREADY_RUNNING
    endpoint_file().unlink(missing_ok=True)
    private_dir(log_file().parent)
    if not foreground:
        _redirect_output()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    faulthandler.enable()
    # Records signals that arrive before uvicorn handles them. Uvicorn raises a signal again when it
    # has shut down; the engine has cleaned up by then.
    early_signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: early_signals.append(number))
    from mmchat.engine.listeners import private_listener, tcp_listener

    with contextlib.ExitStack() as stack:
        listener, endpoint = stack.enter_context(private_listener(settings))
        public = stack.enter_context(tcp_listener(*tcp)) if tcp is not None else None
        ended = asyncio.run(
            _run(settings, backend, listener, endpoint, public, foreground, early_signals)
        )
    logging.shutdown()
    if not ended:  # the model's thread is in a native call that cannot be interrupted
        os._exit(0)
    return 0


async def _run(
    settings: Settings,
    backend: str,
    listener: socket.socket,
    endpoint: Endpoint,
    public: "TcpListener | None",
    foreground: bool,
    early_signals: Sequence[int],
) -> bool:
    """Serves until it is stopped; returns whether the model's thread has ended too.

    `early_signals` are those that arrived before the service had its own handlers.
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
            self.should_exit = self.should_exit or bool(early_signals)  # uvicorn handles later ones
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
            yield  # the private server handles them and stops this one

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
        log.info("listening on %s (API key: the content of %s)", public.url, public.token_file)
        if not public.is_local:
            log.warning(
                "other machines can connect, and the connection is not encrypted: use it only on a "
                "network that you trust"
            )
    write_endpoint(endpoint)
    log.info("engine %d is listening (%s)", endpoint.pid, endpoint.transport)
    idle_seconds = math.inf if foreground else settings.engine.idle_seconds
    watcher = asyncio.create_task(_stop_when_idle(worker, idle_seconds, stop, foreground))
    try:
        await asyncio.gather(*serving)
    finally:
        watcher.cancel()
    log.info("engine %d has stopped", endpoint.pid)
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


async def _stop_when_idle(
    worker: Any, idle_seconds: float, stop: Callable[[], None], foreground: bool
) -> None:
    """Stops the engine after `idle_seconds` without a request; rotates its log meanwhile."""
    while worker.idle_s < idle_seconds:
        await asyncio.sleep(min(1.0, max(0.02, idle_seconds / 10)))
        # A full disk or a removed log must not keep the engine alive forever.
        with contextlib.suppress(OSError):
            if not foreground and log_file().stat().st_size > MAX_LOG:
                _redirect_output()
    log.info("no request for %.0f s", idle_seconds)
    stop()


def _create_backend(path: str) -> Any:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise EngineError(
            f"The engine cannot load its backend {path} ({error}): "
            "reinstall mmchat with all its dependencies."
        ) from error


def _redirect_output() -> None:
    """Redirects standard output and error to the log, including those of native libraries."""
    file = log_file()
    if file.exists() and file.stat().st_size > MAX_LOG:
        file.replace(file.with_suffix(".log.1"))
    handle = open_log()
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
