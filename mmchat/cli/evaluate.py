"""`mmchat evaluate`: how often a model answers right, asked through the engine."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmchat.cli.output import OutputError, Progress, note, say, say_json, say_table
from mmchat.settings import load_settings

if TYPE_CHECKING:
    from mmchat.evaluation.comparing import Comparison
    from mmchat.evaluation.figures import Figures
    from mmchat.evaluation.questions import Questions
    from mmchat.evaluation.reading import Part
    from mmchat.evaluation.report import Report
    from mmchat.evaluation.worst import Wrong


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", metavar="M", default="", help="The model that answers.")
@click.option(
    "--adapter",
    metavar="A",
    default="",
    help="The adapter it answers with, a name or a folder; none is the bare model.",
)
@click.option(
    "--against", metavar="B", default="", help="Ask another adapter, or none, the same questions."
)
@click.option(
    "--blank", is_flag=True, help="Ask about grey pictures too: what is known without looking?"
)
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="At most so many questions of each type."
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="N",
    default=3,
    show_default=True,
    help="Questions under way at once.",
)
@click.option(
    "--part",
    type=click.Choice(["auto", "held-out", "train", "all"]),
    default="auto",
    help="Which part of DATA is asked; auto is the held-out one, where there is one.",
)
@click.option("--allow-bad", is_flag=True, help="Go on though more than 1 % of the data is bad.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder that DATA may name pictures in, beside its own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the tables into this file too.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the worst answers with their pictures as a page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write report.json, report.md, worst.html and confusion.png there.",
)
def evaluate(
    data: Path,
    model: str,
    adapter: str,
    against: str,
    blank: bool,
    limit: int | None,
    parallel: int,
    part: "Part",
    allow_bad: bool,
    images: Path | None,
    as_json: bool,
    markdown: Path | None,
    html: Path | None,
    out: Path | None,
) -> None:
    """Ask every question of DATA and count the right answers, by question type.

    DATA is an evaluation folder, or data in any form that `mmchat data inspect` recognises. Of
    data that has a held-out part only that one is asked; of data that the adapter was trained on,
    what its training held out. Answers are kept as they come: the same command, given again, asks
    only what is missing.

    \b
    Examples:
      mmchat evaluate build/evaluation --markdown table.md
      mmchat evaluate my-photos/ --adapter birds --against none --out report/
    """
    from mmchat.evaluation.comparing import compare
    from mmchat.evaluation.figures import find_figures
    from mmchat.evaluation.reading import read
    from mmchat.evaluation.run import NONE
    from mmchat.evaluation.run import evaluate as run
    from mmchat.evaluation.worst import find_worst, worst_page

    settings = load_settings()
    # The settings' adapter belongs to the settings' model.
    answering = adapter or (settings.model.adapter if not model else "")
    if against and against == (answering or NONE):
        raise click.UsageError("--against is the adapter that answers: name another, or none.")
    progress = Progress()

    def ask(adapter: str, what: str = "", blank: bool = False) -> "Report":
        def show(text: str, fraction: float | None = None) -> None:
            progress.show(f"{what}: {text}" if what else text, fraction)

        return run(
            asked,
            settings,
            model=model,
            adapter=adapter,
            limit=limit or 0,
            blank=blank,
            parallel=parallel,
            progress=show,
        )

    others: dict[str, Report] = {}
    compared: dict[str, Comparison] = {}
    try:
        progress.show("Reading the questions")
        asked = read(data, part, adapters=(answering, against), allow_bad=allow_bad, images=images)
        report = ask(adapter)
        if against:
            other = others["against"] = ask(against, f"against {against}")
            compared["against"] = compare(report, other, (_name(report), _name(other)))
        if blank:
            other = others["blank"] = ask(adapter, "grey pictures", blank=True)
            compared["blank"] = compare(report, other, ("with pictures", "grey pictures"))
        progress.show("Counting")
        figures = find_figures(report)
    except KeyboardInterrupt:
        progress.clear()
        note("Stopped; the answers so far are kept, and the same command goes on.")
        raise
    finally:
        progress.clear()
    _notes(asked, [report, *others.values()])
    worst = find_worst(report)
    text = _markdown(report, figures, compared)
    made = _made(report, figures, compared, worst)
    if as_json:
        say_json(made)
    else:
        _show(text, worst)
    if markdown is not None:
        _write(markdown, f"{text}\n")
    if html is not None or out is not None:
        page = worst_page(worst, report, asked)
        if html is not None:
            _write(html, page)
        if out is not None:
            _write_all(out, made | _outcomes(report, others), text, page, figures)


def _name(report: "Report") -> str:
    adapter = report.subject.adapter
    return (Path(adapter).name or adapter) if adapter else "no adapter"


def _notes(asked: "Questions", reports: "list[Report]") -> None:
    if asked.left_out:
        note(
            f"{len(asked.left_out):,} samples of the data cannot be used and are left out, the "
            f"first: {asked.left_out[0]}"
        )
    unanswered = [one for one in reports[0].outcomes if one.unanswered]
    if unanswered:
        note(
            f"{len(unanswered):,} questions could not be answered and count as wrong, the first: "
            f"{unanswered[0].id}: {unanswered[0].unanswered}"
        )
    for report in reports:
        if report.reused:
            note(
                f"{report.reused} answers are of an earlier run by the same weights on the same "
                f"data: remove {report.answers_file} to ask again."
            )


def _markdown(report: "Report", figures: "Figures", compared: "dict[str, Comparison]") -> str:
    from mmchat.evaluation.figures import comparison_markdown

    tables = [comparison_markdown(comparison) for comparison in compared.values()]
    return "\n\n".join([report.to_markdown(), figures.to_markdown(), *tables])


def _made(
    report: "Report", figures: "Figures", compared: "dict[str, Comparison]", worst: "list[Wrong]"
) -> dict[str, Any]:
    return {
        **report.to_dict(),
        "figures": figures.to_dict(),
        **{name: comparison.to_dict() for name, comparison in compared.items()},
        "worst": [
            one.outcome.to_dict() | {"rouge_l": one.words, "same_characters": one.characters}
            for one in worst
        ],
    }


def _outcomes(report: "Report", others: "dict[str, Report]") -> dict[str, Any]:
    """Every answer, of the comparisons too."""
    found = {"outcomes": report, **{f"{name}_outcomes": other for name, other in others.items()}}
    return {name: [one.to_dict() for one in made.outcomes] for name, made in found.items()}


def _show(text: str, worst: "list[Wrong]") -> None:
    """The tables and the worst answers: drawn on a terminal, as they are elsewhere."""
    from mmchat.evaluation.worst import worst_rows

    title = f"The {len(worst)} worst answers:" if len(worst) > 1 else "The wrong answer:"
    header = ("type", "question", "wanted", "given")
    if not sys.stdout.isatty():
        say(text)
        if worst:
            say(f"\n{title}")
            say_table(worst_rows(worst), header=header)
        return
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Markdown(text, hyperlinks=False))
    if worst:
        table = Table(*header, title=title, title_justify="left", show_lines=True)
        for row in worst_rows(worst):
            table.add_row(*map(Text, row))  # as text: what is foreign is no markup
        console.print(table)


def _write_all(
    folder: Path, made: dict[str, Any], text: str, page: str, figures: "Figures"
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}).") from error
    _write(folder / "report.json", json.dumps(made, indent=1) + "\n")
    _write(folder / "report.md", f"{text}\n")
    _write(folder / "worst.html", page)
    if figures.classes:
        from mmchat.evaluation.confusion import draw_confusion

        _write(folder / "confusion.png", draw_confusion(figures.classes))
    else:  # one of an earlier report would be taken for this one's
        (folder / "confusion.png").unlink(missing_ok=True)


def _write(file: Path, what: str | bytes) -> None:
    try:
        file.write_bytes(what.encode(errors="replace") if isinstance(what, str) else what)
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror}).") from error
