"""`mmchat train`: trains an adapter on data."""

import sys
from pathlib import Path

import click
from msgspec import to_builtins

from mmchat.cli.output import note, say, say_json


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
@click.option("--no-measure", is_flag=True, help="Do not measure before and after.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(
    data: Path | None,
    name: str,
    model: str,
    from_history: bool,
    ratings: tuple[str, ...],
    since: str,
    conversations: tuple[int, ...],
    tags: tuple[str, ...],
    recipe: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    restart: bool,
    dry_run: bool,
    allow_bad: bool,
    images: Path | None,
    no_measure: bool,
    as_json: bool,
) -> None:
    """Train an adapter on DATA: pictures with texts, folders of pictures, or conversations.

    `mmchat data inspect DATA` shows what is recognised. Some of the pictures are held out, and
    the right answers about them are counted before and after. Ctrl-C saves; --resume continues.

    \b
    Examples:
      mmchat train my-photos/ --name birds
      mmchat train --from-history --name mine --dry-run
    """
    for key in overrides:
        if "=" not in key:
            raise click.UsageError(f"--set takes KEY=VALUE, not {key!r}.")
    if data is not None and from_history:
        raise click.UsageError("Give DATA or --from-history, not both.")
    if (ratings or since or conversations or tags) and not from_history:
        raise click.UsageError("--rating, --since, --conversation and --tag need --from-history.")
    if resume and restart:
        raise click.UsageError("Give --resume or --restart, not both.")
    if data is None and not from_history and not resume:
        raise click.UsageError("Give DATA or --from-history.")
    if resume and recipe is not None:
        raise click.UsageError(
            "A run continues with its own recipe: leave --recipe out, and change a key with --set."
        )
    if resume and (ratings or since or conversations or tags):
        raise click.UsageError(
            "A run continues with its own data: leave --rating, --since, --conversation and --tag "
            "out."
        )
    from mmchat.cli.training_job import Job, Wish
    from mmchat.cli.training_panel import watch

    wish = Wish(
        data=data,
        name=name,
        model=model,
        recipe=recipe,
        overrides=overrides,
        ratings=ratings,
        since=since,
        conversations=conversations,
        tags=tags,
        from_history=from_history,
        resume=resume,
        restart=restart,
        allow_bad=allow_bad,
        images=images,
        measure=not no_measure,
    )
    if dry_run:
        from mmchat.cli.training_plan import plan_of, say_plan

        plan = plan_of(wish, note)
        say_json(plan) if as_json else say_plan(plan)
        return
    with watch(as_json) as watcher:
        status = Job(wish, watcher).run()
    if status.state == "paused":
        note(status.said)
        sys.exit(130)
    if as_json:
        say_json(to_builtins(status))
    else:
        say(status.said)
