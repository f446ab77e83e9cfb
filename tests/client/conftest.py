"""Engines for the tests of client and service: real processes that answer by script."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mmchat.client import EngineClient
from mmchat.settings import load_settings
from tests.engine.scripted import end_engine, engine_by_script, environment


@pytest.fixture
def scripted_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines that are started in this test answer by script (`tests/engine/scripted.py`)."""
    with engine_by_script(monkeypatch):
        yield


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose engine serves a whole module."""
    folder = tmp_path_factory.mktemp("shared")
    yield folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_HOME", str(folder))
        end_engine()


@pytest.fixture
def shared_engine(home: Path, shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test lives in the module's home; its engine answers by script."""
    for name, value in {**environment(), "MMCHAT_HOME": str(shared_home)}.items():
        monkeypatch.setenv(name, value)
    return shared_home


@pytest.fixture
async def new_client() -> AsyncIterator[Callable[..., EngineClient]]:
    """Makes clients with settings such as `{"engine.transport": "tcp"}`."""
    made: list[EngineClient] = []

    def make(**overrides: str) -> EngineClient:
        named = {name.replace("__", "."): value for name, value in overrides.items()}
        made.append(EngineClient(load_settings(named)))
        return made[-1]

    yield make
    for client in made:
        await client.aclose()
