"""`mmchat evaluate`: how often a model answers right, asked through the engine."""

from pathlib import Path

import click

from mmchat.cli.output import Progress, say, say_json
from mmchat.settings import load_settings


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", metavar="M", help="The model that answers.")
@click.option("--adapter", metavar="NAME", help="The adapter it answers with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the table into this file too.",
)
def evaluate(
    data: Path, model: str | None, adapter: str | None, as_json: bool, markdown: Path | None
) -> None:
    """Ask every question of DATA and count the right answers, by question type.

    \b
    Example:
      mmchat evaluate build/evaluation --markdown table.md
    """
    from mmchat.cli.ask import model_overrides
    from mmchat.evaluation.run import evaluate as run

    progress = Progress()
    settings = load_settings(model_overrides(model, adapter))
    try:
        report = run(data, settings, progress=progress.show)
    finally:
        progress.clear()
    if markdown is not None:
        markdown.write_text(report.markdown(), encoding="utf-8")
    if as_json:
        say_json(report.to_json())
    else:
        say(report.text())
