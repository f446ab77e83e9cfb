"""One tiny base for the tests of training that only look at it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmchat.data import read_data
from mmchat.data.types import Example
from mmchat.training.encode import ExampleEncoder, Samples
from mmchat.training.feature_cache import pixel_values
from mmchat.training.prepare import BasePreprocessor
from tests.training.prepared import RECIPE, write_prepared
from tests.training.runner import SAMPLE_TOKENS
from tests.training.tuned import tiny_base


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """What runs compute in, those in other processes too: both are tested on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", request.param)
        yield request.param


@pytest.fixture(scope="module", autouse=True)
def short_sample_answers() -> Iterator[None]:
    """Random weights never end an answer by themselves, and most of a tiny run would be spent on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmchat.training.validation.MAX_NEW_TOKENS", SAMPLE_TOKENS)
        yield


@dataclass(frozen=True)
class Tiny:
    """A tiny base of random weights with the conversations of a prepared folder."""

    model: Any
    processor: Any
    examples: list[Example]
    encoder: ExampleEncoder
    samples: Samples

    def features(self, images: Sequence[int]) -> torch.Tensor | None:
        """(pictures, patches, vision_width) of `samples.pictures`."""
        if not images:
            return None
        pictures = [self.samples.pictures[image] for image in images]
        pixels = torch.cat([pixel_values(self.processor, picture) for picture in pictures])
        found: torch.Tensor = self.model.encode_images(pixels)
        return found


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = write_prepared(tmp_path_factory.mktemp("prepared")) / "train"
    model, processor = tiny_base(folder)
    examples = list(read_data(folder).examples)
    reader = BasePreprocessor("tiny", "visual_prefix", processor, processor.tokenizer, True)
    encoder = ExampleEncoder(reader)
    samples = encoder.build_samples(encoder.encode_examples(examples, 512), 512).weighted_by_length(
        0.75
    )
    return Tiny(model, processor, examples, encoder, samples)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, Path]:
    """(data folder, recipe file) of a run that a test may do with as it likes."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    return write_prepared(tmp_path / "data"), recipe
