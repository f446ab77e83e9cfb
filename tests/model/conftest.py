"""Tiny checkpoints and the models loaded from them, made once for all tests."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from mmchat.model.loaded_model import LoadedModel
from tests.model import forms, tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> the folder of that tiny checkpoint, which must not be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    return lru_cache(lambda kind: tiny.build(kind, root / kind))


@pytest.fixture(scope="session")
def loaded(checkpoint: Callable[[str], Path]) -> Callable[[str, str], LoadedModel]:
    """(kind, one of FORMS) -> that tiny checkpoint, loaded on the CPU; it must not be changed."""
    return lru_cache(lambda kind, form: forms.load(checkpoint(kind), form))
