"""The sockets that the engine listens on, and the token that TCP clients need.

Only the user's own programs can open the private Unix socket. A TCP address (`mmchat engine
serve --port`) is for other clients, and every request needs the token.
"""

import contextlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mmchat.client.endpoint import Endpoint, socket_path
from mmchat.engine.request_fields import RequestError
from mmchat.engine.responses import error_response
from mmchat.errors import EngineError
from mmchat.settings import Settings, paths, private_dir

_BACKLOG = 128


@dataclass(frozen=True)
class TcpListener:
    """A listening TCP socket for other clients."""

    socket: socket.socket
    host: str
    token: str
    token_file: Path

    @property
    def url(self) -> str:
        """The base URL, as OpenAI's clients take it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.socket.getsockname()[1]}/v1"

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can connect."""
        return is_loopback(self.host)


@contextlib.contextmanager
def private_listener(settings: Settings) -> Iterator[tuple[socket.socket, Endpoint]]:
    """Opens the private socket, bound and listening; removes its file afterwards."""
    if settings.engine.transport == "tcp":
        with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
            port = listener.getsockname()[1]
            yield listener, Endpoint("tcp", os.getpid(), "", port, secrets.token_urlsafe(32))
        return
    path = socket_path()
    path.unlink(missing_ok=True)  # this process has the lock, so no other engine uses it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        try:
            yield listener, Endpoint("unix", os.getpid(), str(path))
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def tcp_listener(host: str, port: int, token_file: Path | None) -> Iterator[TcpListener]:
    """Opens a TCP socket for other clients, bound and listening; port 0 means any free one.

    Raises:
        EngineError: the address cannot be used, or the token file cannot be read or written.
    """
    file = token_file or private_dir(paths().data) / "engine-token"
    token = read_or_create_token(file)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(
            f"The engine cannot listen on {host}, port {port} ({reason}): choose another --port or "
            "--host."
        ) from error
    with listener:
        yield TcpListener(listener, host, token, file)


def read_or_create_token(file: Path) -> str:
    """Reads the token in `file`; creates a missing file that only its owner can read.

    Raises:
        EngineError: the file cannot be read or written, or has no usable token.
    """
    try:
        with contextlib.suppress(FileExistsError):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as target:
                target.write(f"{secrets.token_urlsafe(32)}\n")
        token = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise EngineError(
            f"The token file {file} cannot be read or written ({error.strerror}): choose another "
            "--token-file."
        ) from error
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or len(token.split()) != 1:
        raise EngineError(
            f"The token file {file} must contain one word of ASCII characters: correct it, or "
            "remove it to get a new token."
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether `host` is a name or address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TokenAuth:
    """Middleware that rejects requests without the token.

    If the service listens on a loopback address, the Host header must be one, too. So a web page
    cannot reach the service through a name that resolves to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, token: str, local: bool = True) -> None:
        self._app = app
        self._authorization = f"Bearer {token}".encode()
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
            return
        response = error_response(refusal)
        if refusal.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _refusal(self, headers: Headers) -> RequestError | None:
        if self._local and not is_loopback(_host_name(headers.get("host", ""))):
            return RequestError(
                "The Host header must be a name of this machine, such as localhost.",
                403,
                "wrong_host",
            )
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, self._authorization):
            return RequestError(
                "The token is missing or wrong: send 'Authorization: Bearer TOKEN'.",
                401,
                "invalid_api_key",
            )
        return None


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
