"""`mmchat evaluate`: measures how often a model answers correctly, through the engine."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmchat.cli.output import Progress, json_object_option, note, say, say_json, say_table
from mmchat.cli.streams import OutputError
from mmchat.display.numbers import format_count
from mmchat.settings import load_settings

if TYPE_CHECKING:
    from mmchat.evaluation.question_sets import DataPart
    from mmchat.evaluation.questions import QuestionSet
    from mmchat.evaluation.results import AnswerMetrics, Comparison, EvaluationResult
    from mmchat.evaluation.worst_answers import WrongAnswer


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", metavar="M", default="", help="The model that answers.")
@click.option(
    "--adapter",
    metavar="A",
    default="",
    help="The adapter to answer with: a name, a folder, or none.",
)
@click.option(
    "--against",
    metavar="B",
    default="",
    help="Compare with this adapter, or none, on the same questions.",
)
@click.option(
    "--blank",
    is_flag=True,
    help="Ask with grey pictures, too, to see what the model knows without looking.",
)
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="At most N questions of each type."
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    metavar="N",
    default=3,
    show_default=True,
    help="How many questions to send at a time.",
)
@click.option(
    "--part",
    type=click.Choice(["auto", "held-out", "train", "all"]),
    default="auto",
    help="The part of DATA to use; auto is the held-out part if there is one.",
)
@click.option(
    "--allow-bad", is_flag=True, help="Continue even if more than 1 % of the data cannot be used."
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Another folder for the pictures of DATA.",
)
@json_object_option
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the tables to this file too.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the worst answers with their pictures as an HTML page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write report.json, report.md, worst.html and confusion.png to this folder.",
)
def evaluate(
    data: Path,
    model: str,
    adapter: str,
    against: str,
    blank: bool,
    limit: int | None,
    parallel: int,
    part: "DataPart",
    allow_bad: bool,
    images: Path | None,
    as_json: bool,
    markdown: Path | None,
    html: Path | None,
    out: Path | None,
) -> None:
    """Ask the questions of DATA and count the correct answers.

    DATA is an evaluation folder, or data in any format that `mmchat data inspect` recognises. If the
    data has a held-out part, only that part is used; if the adapter was trained on the data, only
    what its training held out. Answers are saved as they come: the same command again asks only
    the missing questions.

    \b
    Examples:
      mmchat evaluate build/evaluation --markdown table.md
      mmchat evaluate my-photos/ --adapter birds --against none --out report/
    """
    from mmchat.evaluation import runner
    from mmchat.evaluation.question_sets import load_questions
    from mmchat.evaluation.results import compare, compute_metrics
    from mmchat.evaluation.worst_answers import find_worst, worst_page
    from mmchat.settings import NO_ADAPTER

    for file in (markdown, html):
        if file is not None:
            _require_writable(file, file.absolute().parent)
    if out is not None:
        above = (one for one in (out.absolute(), *out.absolute().parents) if one.exists())
        _require_writable(out, next(above))
    settings = load_settings()
    # The settings' adapter belongs to the settings' model.
    answering = adapter or (settings.model.adapter if not model else "")
    if against and against == (answering or NO_ADAPTER):
        raise click.UsageError(
            "--against none compares no adapter with itself: give --adapter as well."
            if against == NO_ADAPTER
            else f"--against {against} compares it with itself: give another adapter, or none."
        )
    progress = Progress()

    def ask(adapter: str, what: str = "", blank: bool = False) -> "EvaluationResult":
        def show(text: str, fraction: float | None = None) -> None:
            progress.show(f"{what}: {text}" if what else text, fraction)

        return runner.evaluate(
            questions,
            settings,
            model=model,
            adapter=adapter,
            limit=limit or 0,
            blank=blank,
            parallel=parallel,
            progress=show,
        )

    others: dict[str, EvaluationResult] = {}
    comparisons: dict[str, Comparison] = {}
    try:
        progress.show("Reading the questions")
        adapters = (answering, against)
        questions = load_questions(
            data, part, adapters=adapters, allow_bad=allow_bad, images=images
        )
        result = ask(adapter)
        if against:
            other = others["against"] = ask(against, f"against {against}")
            names = (_adapter_name(result), _adapter_name(other))
            comparisons["against"] = compare(result, other, names)
        if blank:
            other = others["blank"] = ask(adapter, "grey pictures", blank=True)
            comparisons["blank"] = compare(result, other, ("with pictures", "grey pictures"))
        progress.show("Computing the metrics")
        metrics = compute_metrics(result.answers)
        worst = find_worst(result)
    except KeyboardInterrupt:
        progress.clear()
        note("Stopped. The answers so far are kept: run the same command again to continue.")
        raise
    finally:
        progress.clear()
    _print_notes(questions, [result, *others.values()])
    text = _to_markdown(result, metrics, comparisons)
    report = _to_dict(result, metrics, comparisons, worst)
    if as_json:
        say_json(report)
    else:
        _print_report(text, worst)
    if markdown is not None:
        _write(markdown, f"{text}\n")
    if html is not None or out is not None:
        page = worst_page(worst, result, questions)
        if html is not None:
            _write(html, page)
        if out is not None:
            _write_folder(out, report | _answers_dict(result, others), text, page, metrics)


def _require_writable(path: Path, folder: Path) -> None:
    """Raises OutputError if `path`, which is written at the end of a long command, cannot be.

    folder: where it is made.
    """
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: {folder} is not a folder.")
    place = path if path.exists() else folder
    if not os.access(place, os.W_OK):
        raise OutputError(f"{path} cannot be written: check the permissions of {place}.")


def _adapter_name(result: "EvaluationResult") -> str:
    adapter = result.setup.adapter
    return (Path(adapter).name or adapter) if adapter else "no adapter"


def _print_notes(questions: "QuestionSet", results: "list[EvaluationResult]") -> None:
    if questions.skipped:
        note(
            f"Skipped, because they cannot be used: {format_count(len(questions.skipped), 'sample')} of the "
            f"data. The first: {questions.skipped[0]}"
        )
    failed = [answer for answer in results[0].answers if answer.error]
    if failed:
        note(
            f"Not answered, and counted as wrong: {format_count(len(failed), 'question')}. The first: "
            f"{failed[0].id}: {failed[0].error}"
        )
    for result in results:
        if result.reused:
            note(
                f"{result.reused:,} of {format_count(len(result.answers), 'answer')} come from an "
                "earlier run with the same weights and data. To ask again, remove "
                f"{result.answers_file}"
            )


def _to_markdown(
    result: "EvaluationResult", metrics: "AnswerMetrics", comparisons: "dict[str, Comparison]"
) -> str:
    from mmchat.evaluation.report import comparison_markdown, metrics_markdown, result_markdown

    tables = [comparison_markdown(comparison) for comparison in comparisons.values()]
    return "\n\n".join([result_markdown(result), metrics_markdown(metrics), *tables])


def _to_dict(
    result: "EvaluationResult",
    metrics: "AnswerMetrics",
    comparisons: "dict[str, Comparison]",
    worst: "list[WrongAnswer]",
) -> dict[str, Any]:
    return {
        **result.to_dict(),
        "metrics": metrics.to_dict(),
        **{name: comparison.to_dict() for name, comparison in comparisons.items()},
        "worst": [
            one.answer.to_dict() | {"rouge_l": one.rouge_l, "same_characters": one.same_characters}
            for one in worst
        ],
    }


def _answers_dict(
    result: "EvaluationResult", others: "dict[str, EvaluationResult]"
) -> dict[str, Any]:
    """All answers, including those of the comparisons."""
    results = {"answers": result, **{f"{name}_answers": one for name, one in others.items()}}
    return {name: [answer.to_dict() for answer in one.answers] for name, one in results.items()}


def _print_report(text: str, worst: "list[WrongAnswer]") -> None:
    """Prints the tables and the worst answers: formatted on a terminal, plain text otherwise."""
    from mmchat.evaluation.worst_answers import worst_rows

    title = f"The {len(worst)} worst answers:" if len(worst) > 1 else "The wrong answer:"
    header = ("type", "question", "reference", "prediction")
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
            table.add_row(*map(Text, row))  # `Text`, because a string would be read as markup
        console.print(table)


def _write_folder(
    folder: Path, report: dict[str, Any], text: str, page: str, metrics: "AnswerMetrics"
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created ({error.strerror}).") from error
    _write(folder / "report.json", json.dumps(report, indent=1) + "\n")
    _write(folder / "report.md", f"{text}\n")
    _write(folder / "worst.html", page)
    if metrics.classifications:
        from mmchat.evaluation.report import draw_confusion

        _write(folder / "confusion.png", draw_confusion(metrics.classifications))
    else:  # the one of an earlier report would be misleading
        (folder / "confusion.png").unlink(missing_ok=True)


def _write(file: Path, content: str | bytes) -> None:
    try:
        file.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror}).") from error
