"""The built-in model behind real doors: the installed command and a real engine process."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import mmchat
from tests.client.conftest import new_client
from tests.engine.scripted import end_engine

if TYPE_CHECKING:
    from mmchat.model.loaded_model import LoadedModel

__all__ = ["mmchat", "new_client"]


@pytest.fixture(scope="session")
def builtin_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of these tests; whichever engine it has is ended at the end."""
    folder = tmp_path_factory.mktemp("builtin")
    yield folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_HOME", str(folder))
        end_engine()


@pytest.fixture(autouse=True)
def engine(home: Path, builtin_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test lives in that home: its engine, once started, holds the built-in model."""
    monkeypatch.setenv("MMCHAT_HOME", str(builtin_home))
    return builtin_home


@pytest.fixture(scope="session")
def loaded() -> "LoadedModel":
    """The same weights in the same 4-bit form as the engine has, in this process."""
    import torch

    from mmchat.model.loading import load_model

    torch.set_num_threads(1)
    return load_model("scenes")
