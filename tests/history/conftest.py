"""A history in a file of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmchat.history import History


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "history.db"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History.open(path) as opened:
        yield opened
