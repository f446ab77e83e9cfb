"""`mmchat evaluate`: how often a model answers right, asked through the engine."""

from pathlib import Path

import click

from mmchat.cli.output import OutputError, Progress, note, say, say_json
from mmchat.settings import load_settings


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", metavar="M", default="", help="The model that answers.")
@click.option("--adapter", metavar="NAME", default="", help="The adapter it answers with.")
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="At most so many questions of each type."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the table into this file too.",
)
def evaluate(
    data: Path,
    model: str,
    adapter: str,
    limit: int | None,
    as_json: bool,
    markdown: Path | None,
) -> None:
    """Ask every question of DATA and count the right answers, by question type.

    Answers are kept as they come: the same command, given again, asks only what is missing.

    \b
    Example:
      mmchat evaluate build/evaluation --markdown table.md
    """
    from mmchat.evaluation.run import evaluate as run

    progress = Progress()
    try:
        report = run(
            data,
            load_settings(),
            model=model,
            adapter=adapter,
            limit=limit or 0,
            progress=progress.show,
        )
    except KeyboardInterrupt:
        progress.clear()
        note("Stopped; the answers so far are kept, and the same command goes on.")
        raise
    finally:
        progress.clear()
    if report.reused:
        note(
            f"{report.reused} answers are of an earlier run by the same weights on the same data: "
            f"remove {report.answers_file} to ask again."
        )
    if as_json:
        say_json(report.to_dict())
    else:
        say(report.to_markdown())
    if markdown is not None:
        try:
            markdown.write_text(report.to_markdown() + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{markdown} cannot be written ({error.strerror}).") from error
