"""`mmchat train`: from a recipe and data to a model."""

from pathlib import Path

import click

from mmchat.cli.output import note, say


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="What is trained, and how.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where the model, its checkpoints and its losses go.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in DIR, if any.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value for a key of the recipe.",
)
def train(data: Path, recipe: Path, out: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """Train a model on DATA, a folder with train/ and held-out/.

    It can be stopped at any moment (Ctrl-C, kill); --resume goes on.

    \b
    Example:
      mmchat train build/scenes --recipe adapters/scenes/recipe.toml --out build/scenes/model --resume
    """
    for key in overrides:
        if "=" not in key:
            raise click.UsageError(f"--set takes KEY=VALUE, not {key!r}.")
    from mmchat.training.recipe import read_recipe

    read_recipe(recipe, overrides)  # a mistake is told before torch is imported
    from mmchat.training.run import train as run

    made = run(data, recipe, out, resume=resume, overrides=overrides, say=note)
    say(str(made))
