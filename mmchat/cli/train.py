"""`mmchat train`: trains an adapter on data."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import to_builtins

from mmchat.cli.output import json_object_option, note, say, say_json, say_table
from mmchat.display.numbers import format_count, format_duration, format_percent

if TYPE_CHECKING:
    from mmchat.cli.train_args import TrainArgs


@click.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", default="", help="The name of the adapter.")
@click.option(
    "--model",
    metavar="M",
    default="",
    help="The base; by default the model that the settings choose.",
)
@click.option("--from-history", is_flag=True, help="Train on your own rated and corrected answers.")
@click.option(
    "--rating",
    "ratings",
    type=click.Choice(["good", "corrected"]),
    multiple=True,
    help="With --from-history: only these answers.",
)
@click.option(
    "--since", metavar="DATE", default="", help="With --from-history: only from this day on."
)
@click.option(
    "--conversation",
    "conversations",
    type=int,
    multiple=True,
    metavar="ID",
    help="With --from-history: only these conversations.",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="T",
    help="With --from-history: only conversations with this tag.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What is trained, and how; there are good defaults.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the recipe.",
)
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint.")
@click.option(
    "--restart", is_flag=True, help="Start again, even if a run with this name was started."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, without loading weights.")
@click.option(
    "--allow-bad", is_flag=True, help="Continue even if more than 1 % of the data is bad."
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Another folder with pictures that DATA names.",
)
@click.option(
    "--no-measure",
    "measure",
    flag_value=False,
    default=True,
    help="Do not measure before and after.",
)
@json_object_option
def train(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Train an adapter on DATA, or on your own answers.

    DATA is pictures with texts, folders of pictures, or conversations.

    `mmchat data inspect DATA` shows what is recognised. Some of the pictures are held out, and
    the right answers about them are counted before and after. Ctrl-C saves; --resume continues.

    \b
    Examples:
      mmchat train my-photos/ --name birds
      mmchat train --from-history --name mine --dry-run
    """
    from mmchat.cli.train_args import TrainArgs

    args = TrainArgs(**options)
    args.check()
    if dry_run:
        plan = plan_training(args, note)
        say_json(plan) if as_json else say_plan(plan)
        return
    from mmchat.cli.training_job import TrainingJob
    from mmchat.cli.training_panel import watch

    with watch(as_json) as watcher:
        status = TrainingJob(args, watcher).run()
    if status.state == "paused":
        note(status.message)
        sys.exit(130)
    if as_json:
        say_json(to_builtins(status))
    else:
        say(status.message)


def plan_training(args: "TrainArgs", say: Callable[[str], None]) -> dict[str, Any]:
    """What `mmchat train` would do with `args`, without loading weights; JSON-ready."""
    from mmchat.cli.train_args import add_data, read_data, read_recipe

    recipe, folder = read_recipe(args)
    data = read_data(args, recipe, folder)
    from mmchat.training.prepare import prepare
    from mmchat.training.run_plan import plan_run

    prepared = prepare(
        add_data(recipe, data, args),
        data.train,
        data.held_out,
        allow_bad=args.allow_bad,
        say=say,
    )
    examples = [*data.train.examples, *data.held_out]
    kinds = [example.kind for example in examples]
    rated = data.train.format == "your own history"
    return {
        "name": recipe.name,
        "model": recipe.model,
        "form": data.train.format,
        "examples": len(examples),
        "pictures": len({p.sha256 for e in examples for p in e.pictures}),
        "corrected": kinds.count("corrected") if rated else 0,
        "good": kinds.count("good") if rated else 0,
        "problems": len(data.train.problems) + len(prepared.problems),
        "remarks": list(data.train.remarks),
        "held_out": len(data.held_out),
        **plan_run(prepared),
    }


def say_plan(plan: dict[str, Any]) -> None:
    """Prints the plan for people."""
    examples = format_count(plan["examples"], "conversation")
    rows = [
        ("data", f"{plan['form']}: {examples}, {format_count(plan['pictures'], 'picture')}"),
        ("held out", format_count(plan["held_out"], "conversation")),
        ("left out", f"{plan['problems']:,}"),
        ("tokens", f"{plan['tokens']:,} to train on, {plan['step_tokens']:,.0f} per step"),
        ("replay samples", f"{format_percent(plan['replay'])} of each step"),
        *((f"stage {stage['name']}", _stage_summary(stage)) for stage in plan["stages"]),
        ("trains", f"{plan['trainable_parameters']:,} of {plan['parameters']:,} parameters"),
        ("memory", plan["memory"]),
        ("time", f"about {format_duration(plan['seconds'])}, then the measurement"),
    ]
    say_table(rows)
    for remark in plan["remarks"]:
        say(remark)
    say(f"Nothing was changed. Without --dry-run, it trains {plan['name']} for {plan['model']}.")


def _stage_summary(stage: dict[str, Any]) -> str:
    epochs = f"{stage['epochs']:.1f} epochs"
    steps = f"{stage['method']}, {stage['steps']:,} steps of {stage['batch']} samples ({epochs})"
    return f"{steps}, learning rate {stage['learning_rate']:.1e}"
