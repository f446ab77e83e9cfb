"""The tiny base of the adapters' tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmchat.model.loaded_model import LoadedModel
from tests.adapters.adapting import active
from tests.model import forms
from tests.model.conftest import checkpoint, loaded, one_thread

__all__ = ["checkpoint", "loaded", "one_thread"]


@pytest.fixture(scope="module", params=forms.FORMS)
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> LoadedModel:
    """The tiny base of the adapters' tests, in every form."""
    return forms.load(checkpoint("visual_prefix"), request.param)


@pytest.fixture
def base(model: LoadedModel) -> Iterator[LoadedModel]:
    """It, bare again after each test."""
    yield model
    active(model).switch("")
