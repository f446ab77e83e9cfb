"""Engines for the tests of the client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.scripted import engine_by_script


@pytest.fixture
def scripted_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines that are started in this test answer by script (`tests/engine/scripted.py`)."""
    with engine_by_script(monkeypatch):
        yield
