"""One tiny base for the tests of training that only look at it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmchat.training.base import build_config, build_model, build_processor, train_tokenizer
from mmchat.training.collation import Collator
from mmchat.training.dataset import PreparedData
from mmchat.training.recipe import Recipe, read_recipe
from tests.training.prepared import RECIPE, write_prepared


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """What runs compute in, those in other processes too: both are tested on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", request.param)
        yield request.param


@dataclass(frozen=True)
class Tiny:
    """A tiny base with its data, recipe and collator."""

    data: PreparedData
    recipe: Recipe
    tokenizer: Any
    model: Any
    collator: Collator


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    file = folder / "recipe.toml"
    file.write_text(RECIPE)
    recipe = read_recipe(file)
    data = PreparedData(folder / "train")
    tokenizer = train_tokenizer(data.texts(100), recipe.base.vocabulary_size, 512)
    config = build_config(recipe.base, tokenizer)
    processor = build_processor(tokenizer, config)
    collator = Collator(tokenizer, processor.image_token, processor.prefix_tokens, 0.75)
    return Tiny(data, recipe, tokenizer, build_model(config, 1), collator)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Path]:
    """(data folder, recipe file) of a run that a test may do with as it likes."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    return write_prepared(tmp_path / "data"), recipe
