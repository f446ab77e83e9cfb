"""The engine's process: one, private, found again, replaced, and gone when it should be."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

import mmchat
from mmchat.client import EngineClient, local
from mmchat.client.endpoint import (
    Endpoint,
    endpoint_file,
    engine_lives,
    lock_file,
    log_file,
    read_endpoint,
    socket_path,
    take_engine_lock,
)
from mmchat.errors import EngineError, SettingsError
from mmchat.settings import paths
from tests.client.asking import ask, until

pytestmark = pytest.mark.usefixtures("scripted_engine")
Clients = Callable[..., EngineClient]

START = """
import asyncio
from mmchat.client import EngineClient
from mmchat.settings import load_settings
async def start_two():
    return await asyncio.gather(*(EngineClient(load_settings()).start() for _ in range(2)))
print(*(status.pid for status in asyncio.run(start_two())))
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_eight_simultaneous_starts_make_one_engine() -> None:
    starts = [
        subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE) for _ in range(4)
    ]
    pids = [
        pid for start in starts for pid in (await asyncio.to_thread(start.communicate))[0].split()
    ]
    assert len(pids) == 8
    assert {int(pid) for pid in pids} == {int(lock_file().read_text())}


async def test_two_clients_share_it_and_it_outlives_them(new_client: Clients) -> None:
    first = await ask(new_client(), "pid")
    assert await ask(new_client(), "pid") == first
    process = psutil.Process(int(first))
    assert os.getsid(process.pid) == process.pid  # a session of its own: no terminal ends it
    assert str(Path(f"/proc/{process.pid}/fd/0").readlink()) == "/dev/null"
    assert process.cwd() == str(paths().runtime)


async def test_everything_it_makes_is_private_whatever_the_umask(new_client: Clients) -> None:
    before = os.umask(0)
    try:
        await new_client().start()
    finally:
        os.umask(before)
    for folder in (paths().runtime, paths().logs):
        assert mode(folder) == 0o700
    for file in (socket_path(), lock_file(), endpoint_file(), log_file()):
        assert mode(file) == 0o600


async def test_stop_leaves_nothing_but_the_log(new_client: Clients) -> None:
    client = new_client()
    assert await client.status() is None
    assert not await client.stop()
    pid = (await client.start()).pid
    assert await client.stop()
    assert not engine_lives()
    assert {file.name for file in paths().runtime.iterdir()} == {"engine.lock"}
    assert await client.status() is None
    await until(lambda: not psutil.pid_exists(pid) or ended(pid))


def ended(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly(new_client: Clients, number: signal.Signals) -> None:
    os.kill((await new_client().start()).pid, number)
    await until(lambda: not engine_lives())
    assert not endpoint_file().exists()
    assert not socket_path().exists()


SIGNALLED = """
import os, sys
from mmchat.engine import process
from mmchat.engine.__main__ import main
write = process.write_endpoint
def signalled(endpoint):
    os.kill(os.getpid(), {number})
    write(endpoint)
process.write_endpoint = signalled
sys.exit(main([]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_in_mid_start_ends_it_too(number: signal.Signals) -> None:
    start = subprocess.Popen([sys.executable, "-c", SIGNALLED.format(number=int(number))])
    try:
        assert await asyncio.to_thread(start.wait, 30) == 0
    finally:
        start.kill()
        start.wait()
    assert not engine_lives()
    assert not endpoint_file().exists()
    assert not socket_path().exists()


async def test_what_a_killed_engine_leaves_blocks_no_start(new_client: Clients) -> None:
    client = new_client()
    first = (await client.start()).pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: not engine_lives())
    assert socket_path().exists()
    assert endpoint_file().exists()
    assert await client.status() is None
    assert (await client.start()).pid != first


async def test_anything_in_the_sockets_place_blocks_no_start(new_client: Clients) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path()))
    endpoint_file().write_text("not json")
    lock_file().write_text("4711")
    assert await ask(new_client(), "say hello") == "hello "


async def test_an_engine_of_another_version_is_replaced(new_client: Clients) -> None:
    main = "from mmchat.engine.__main__ import main; sys.exit(main([]))"
    older = f"import mmchat, sys; mmchat.__version__ = '0.0.0'; {main}"
    old = subprocess.Popen([sys.executable, "-c", older])
    await until(read_endpoint)
    status = await new_client().status()
    assert status is None or status.version == "0.0.0"
    assert (await new_client().start()).version == mmchat.__version__
    assert await asyncio.to_thread(old.wait, 30) == 0


async def test_a_hanging_engine_is_ended(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.client.local._TIMEOUT", httpx.Timeout(0.2))
    monkeypatch.setattr("mmchat.client.spawn.END_TIMEOUT", 0.2)
    client = new_client()
    pid = (await client.start()).pid
    os.kill(pid, signal.SIGSTOP)
    assert await client.stop()
    assert not engine_lives()


async def test_an_engine_that_hangs_is_told_and_not_waited_for(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = new_client()
    pid = int(await ask(client, "pid"))
    for name, value in [
        ("_TIMEOUT", httpx.Timeout(0.2)),
        ("_RESPONSE_TIMEOUT", 0.2),
        ("START_TIMEOUT", 0.5),
    ]:
        monkeypatch.setattr(f"mmchat.client.local.{name}", value)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EngineError, match="does not respond: stop it with"):
            await ask(client, "say hello")
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_known_engine_is_not_questioned_before_each_message(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def note(request: httpx.Request) -> None:
        asked.append(request.url.path)

    make = local._http_client

    def watched(endpoint: Endpoint) -> httpx.AsyncClient:
        client = make(endpoint)
        client.event_hooks = {"request": [note], "response": []}
        return client

    monkeypatch.setattr(local, "_http_client", watched)
    client = new_client()
    await client.start()
    asked.clear()
    for _ in range(2):
        assert await ask(client, "say hello") == "hello "
    assert asked == ["/v1/chat/completions"] * 2


async def test_it_ends_when_nobody_asks(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_IDLE_SECONDS", "1")
    client = new_client()
    pid = int(await ask(client, "pid"))
    await until(lambda: not engine_lives())
    assert not socket_path().exists()
    assert int(await ask(client, "pid")) != pid  # and the next message starts another


async def test_a_request_that_meets_an_ending_engine_goes_to_the_next(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_IDLE_SECONDS", "1")
    client = new_client()
    pid = await ask(client, "pid")
    transport = httpx.AsyncHTTPTransport(uds=str(socket_path()), verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as http:
        with contextlib.suppress(httpx.TransportError):
            while (await http.get("/health")).json()["status"] == "ok":
                pass
        assert await ask(client, "pid") != pid


async def test_it_does_not_end_while_it_answers(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_IDLE_SECONDS", "1")
    words = " ".join("abcdefghijklmnopqrstuvwxyz")  # longer than the idle time
    assert await ask(new_client(), f"slowly {words}") == f"{words} "


async def test_a_deep_home_has_its_socket_elsewhere(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / ("deep" * 40)))
    temporary = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setenv("TMPDIR", temporary)
    monkeypatch.setattr(tempfile, "tempdir", None)
    client = new_client()
    assert await ask(client, "say deep") == "deep "
    path = socket_path()
    assert path.is_relative_to(temporary)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert await client.stop()
    assert not path.exists()
    path.parent.rmdir()
    path.parent.symlink_to(tmp_path)  # somebody's trap
    with pytest.raises(EngineError, match="is a link or belongs to somebody else"):
        socket_path()
    with pytest.raises(EngineError, match="is a link or belongs to somebody else"):
        await client.start()


async def test_over_tcp_only_who_knows_the_token_is_let_in(new_client: Clients) -> None:
    client = new_client(engine__transport="tcp")
    assert await ask(client, "say tcp") == "tcp "
    endpoint = read_endpoint()
    assert endpoint is not None
    assert endpoint.transport == "tcp"
    assert mode(endpoint_file()) == 0o600
    assert len(endpoint.token) >= 32
    right = {"authorization": f"Bearer {endpoint.token}"}
    url = f"http://127.0.0.1:{endpoint.port}/health"
    async with httpx.AsyncClient(trust_env=False, verify=False) as http:
        assert (await http.get(url, headers=right)).status_code == 200
        assert (await http.get(url)).status_code == 401
        for wrong in ("Bearer x", f"Bearer {endpoint.token}x", endpoint.token, "Bearer é"):
            headers = {"authorization": wrong.encode()}
            assert (await http.get(url, headers=headers)).status_code == 401
        rebound = {**right, "host": f"evil.example:{endpoint.port}"}
        assert (await http.get(url, headers=rebound)).status_code == 403
    # Another client, of the other transport, finds the same one.
    assert await ask(new_client(), "pid") == str(endpoint.pid)


async def test_a_start_that_fails_says_why_and_where(
    new_client: Clients, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_GENERATION_TOP_P", "7")
    monkeypatch.setattr("mmchat.settings._from_environment", dict)  # here, not in the engine
    with pytest.raises(EngineError, match=r"could not start: .*top_p.*engine\.log"):
        await new_client().start()


async def test_a_backend_that_cannot_be_loaded_is_a_sentence(
    new_client: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMCHAT_ENGINE_BACKEND", "no_such_module:create")
    client = new_client()
    with pytest.raises(EngineError, match="reinstall mmchat"):
        await ask(client, "hello")


async def test_a_home_that_cannot_be_written_is_a_sentence(
    new_client: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = new_client()
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(SettingsError, match="MMCHAT_HOME"):
        await client.start()


async def test_a_large_log_is_put_aside(new_client: Clients) -> None:
    paths().logs.mkdir()
    log_file().write_bytes(b"x" * 1_100_000)
    await new_client().start()
    assert log_file().with_suffix(".log.1").stat().st_size >= 1_000_000
    assert log_file().stat().st_size < 10_000


def test_the_lock_is_the_liveness(home: Path) -> None:
    assert not engine_lives()
    lock = take_engine_lock()
    assert lock is not None
    assert engine_lives()
    assert take_engine_lock() is None
    lock.release()
    assert not engine_lives()
    second = take_engine_lock()
    assert second is not None
    second.release()
