"""Recipes are checked before anything heavy is loaded."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.errors import RecipeError
from mmchat.training.examples import Samples
from mmchat.training.feeding import Rows, StepFeed
from mmchat.training.packing import Branch, Tree
from mmchat.training.recipe import read_recipe, recipe_hash
from mmchat.training.tuning import Facts, own_samples, read_tuning, resolve
from tests.training.prepared import RECIPE

FACTS = Facts(
    samples=30,
    longest=60,
    context=512,
    hidden=64,
    parameters=1000,
    cuda=False,
    four_bit=False,
    has_projector=True,
    own_kind=True,
    replay=True,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_overrides(file: Path) -> None:
    recipe = read_recipe(file, ["seed=9", "stages.1.learning_rate=0.5", "name=other"])
    assert (recipe.seed, recipe.stages[1].learning_rate, recipe.name) == (9, 0.5, "other")
    assert recipe_hash(recipe) != recipe_hash(read_recipe(file))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.0.learning_rat=1", "did you mean learning_rate"),
        ("seed", "key=value"),
        ("stages.7.steps=1", "no such place"),
        ("stages.0.steps=0", "steps = 0 cannot be used, it has to be at least 1"),
        ("stages.0.checkpoint_every=0", "checkpoint_every = 0"),
        ("stages.1.evaluate_every=0", "evaluate_every = 0"),
        ("stages.1.learning_rate=nan", "learning_rate = nan"),
        ("stages.1.clip=inf", "clip = inf"),
        ("stages.1.weight_decay=-1", "weight_decay = -1"),
        ("stages.1.trains=[]", "one part or more"),
        ('stages.1.trains=["projector", "projector"]', "each once"),
        ("stages=[]", "has no stage"),
        ("stages.0.name=answers", "name of its own"),
        ("stages.0.objective=fun", "fun"),
        ("seed=many", "seed"),
    ],
)
def test_wrong_overrides(file: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_recipe(file, [override])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_nothing_can_draw_from_is_told(file: Path, seed: int) -> None:
    for read in (lambda of: read_recipe(file, of), lambda of: read_tuning(None, of)):
        with pytest.raises(RecipeError, match="seed"):
            read([f"seed={seed}"])


def test_stages_that_are_none_are_told(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    for stages in ("3", "[1, 2]", '"x"'):
        file.write_text(f"stages = {stages}")
        with pytest.raises(RecipeError):
            read_tuning(file, ["batch=8"])


def test_rows_of_several_lengths_are_told(tmp_path: Path) -> None:
    """A stage's longer rows would stay without their longer conversations."""
    file = tmp_path / "recipe.toml"
    stage = '[[stages]]\nname = "{}"\nrow_tokens = {}\n'
    file.write_text(stage.format("a", 64) + stage.format("b", 128))
    with pytest.raises(RecipeError, match="row_tokens are 64, 128: give all of them the same"):
        read_tuning(file)
    file.write_text(stage.format("a", 0) + stage.format("b", 128))
    chosen = resolve(read_tuning(file), FACTS)
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
            stage = read_tuning(None, [*of, "learning_rate=0.25"]).stages[0]
            assert stage.rates == (*rates, *(("vision_learning_rate",) * blocks))
            assert stage.rate == (0.5 if method == "projector" else 0.25)


@given(st.integers(1, 40), st.floats(0, 0.99))
def test_a_step_has_samples_of_its_own(batch: int, replay: float) -> None:
    """As many for the feed as for the number of steps."""
    trees = [Tree([], (), [Branch([1], [1], 1.0)])] * 3
    samples = Samples(trees, ["here"] * 3, [])
    rows = Rows(8, 0, None, packs=True, fixed=False)
    feed = StepFeed(samples, samples, rows, batch=batch, replay_share=replay, seed=1)
    own = own_samples(batch, replay)
    assert feed.shares == [own, batch - own] and own >= 1
    recipe = read_tuning(None, [f"batch={batch}", f"data.replay={replay}", "epochs=7"])
    assert resolve(recipe, FACTS).stages[0].steps == -(-FACTS.samples * 7 // own)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(broken)


def test_the_built_in_recipe_reads() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "adapters" / "scenes" / "recipe.toml")
    assert [stage.name for stage in recipe.stages] == ["cells", "answers", "together"]
