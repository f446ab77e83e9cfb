"""Recipes are checked before anything heavy is loaded."""

from pathlib import Path

import pytest

from mmchat.errors import RecipeError
from mmchat.training.recipe import read_recipe, recipe_hash
from tests.training.prepared import RECIPE


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
