"""Recipes are checked before anything heavy is loaded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.errors import RecipeError
from mmchat.training.dataloader import RowPacker, StepDataset
from mmchat.training.encode import Samples
from mmchat.training.finetune_config import (
    RunInfo,
    config_hash,
    new_samples_per_step,
    read_config,
    resolve,
)
from mmchat.training.packing import Branch, Tree

FACTS = RunInfo(
    samples=30,
    longest=60,
    context=512,
    hidden=64,
    parameters=1000,
    cuda=False,
    four_bit=False,
    has_projector=True,
    visual_prefix=True,
    replay=True,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "mine"\n[[stages]]\nname = "a"\n[[stages]]\nname = "b"\n')
    return path


def test_overrides(file: Path) -> None:
    recipe = read_config(file, ["seed=9", "stages.1.learning_rate=0.5", "name=other", "batch=3"])
    assert (recipe.seed, recipe.stages[1].learning_rate, recipe.name) == (9, 0.5, "other")
    assert [stage.batch for stage in recipe.stages] == [3, 3]
    assert config_hash(recipe) != config_hash(read_config(file))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.0.learning_rat=1", "did you mean learning_rate"),
        ("lora.rnk=1", "there is no key rnk .did you mean lora.rank.."),
        ("held_out=0.3", "there is no key held_out .did you mean data.held_out.."),
        ("stages.0.steps=x", "stages.0.steps must be a whole number, not text"),
        ("seed", "key=value"),
        ("stages.7.steps=1", "no such key"),
        ("stages.0.steps=-1", "steps = -1 cannot be used: it must be 0 or more"),
        (
            "stages.0.vision_blocks=-1",
            "vision_blocks = -1 cannot be used: it must be 0 or more, or all",
        ),
        ("stages.0.vision_blocks=some", "vision_blocks"),
        ("stages.0.batch=0", "batch = 0"),
        ("stages.1.learning_rate=nan", "learning_rate = nan"),
        ("stages.1.clip=inf", "clip = inf"),
        ("stages.1.weight_decay=-1", "weight_decay = -1"),
        ("stages.1.projector=perhaps", "projector"),
        ("stages=[]", "has no stages"),
        ("stages.0.name=b", "its own name"),
        ("stages.0.method=fun", "stages.0.method cannot be 'fun'"),
        ("seed=many", "seed"),
    ],
)
def test_wrong_overrides(file: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_config(file, [override])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_nothing_can_draw_from_is_told(seed: int) -> None:
    with pytest.raises(RecipeError, match="seed"):
        read_config(None, [f"seed={seed}"])


def test_stages_that_are_none_are_told(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    for stages in ("3", "[1, 2]", '"x"'):
        file.write_text(f"stages = {stages}")
        with pytest.raises(RecipeError):
            read_config(file, ["batch=8"])


def test_rows_of_several_lengths_are_told(tmp_path: Path) -> None:
    """A stage's longer rows would stay without their longer conversations."""
    file = tmp_path / "recipe.toml"
    stage = '[[stages]]\nname = "{}"\nrow_tokens = {}\n'
    file.write_text(stage.format("a", 64) + stage.format("b", 128))
    with pytest.raises(RecipeError, match="row_tokens are 64, 128: use the same value in all"):
        read_config(file)
    file.write_text(stage.format("a", 0) + stage.format("b", 128))
    chosen = resolve(read_config(file), FACTS)
    assert [one.row_tokens for one in chosen.stages] == [128, 128]
    assert resolve(chosen, FACTS) == chosen


def test_the_rates_that_count() -> None:
    """What is shown, and what is named where the loss explodes."""
    stages = {
        "projector": ("projector_learning_rate",),
        "lora": ("learning_rate", "projector_learning_rate"),
    }
    for method, rates in stages.items():
        for blocks in (0, 1):
            of = [f"method={method}", f"vision_blocks={blocks}", "projector_learning_rate=0.5"]
            stage = read_config(None, [*of, "learning_rate=0.25"]).stages[0]
            assert stage.rates == (*rates, *(("vision_learning_rate",) * blocks))
            assert stage.rate == (0.5 if method == "projector" else 0.25)


@given(st.integers(1, 40), st.floats(0, 0.99))
def test_a_step_has_samples_of_its_own(batch: int, replay: float) -> None:
    """As many for the feed as for the number of steps."""
    trees = [Tree([], (), [Branch([1], [1], 1.0)])] * 3
    samples = Samples(trees, ["here"] * 3, [])
    rows = RowPacker(8, 0, None, pack=True, fixed_length=False)
    feed = StepDataset(samples, samples, rows, batch=batch, replay_share=replay, seed=1)
    own = new_samples_per_step(batch, replay)
    assert feed.counts == [own, batch - own] and own >= 1
    recipe = read_config(None, [f"batch={batch}", f"data.replay={replay}", "epochs=7"])
    assert resolve(recipe, FACTS).stages[0].steps == -(-FACTS.samples * 7 // own)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_config(broken)
