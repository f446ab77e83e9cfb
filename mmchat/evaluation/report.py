"""Writes reports: Markdown tables, and the confusion matrices as a picture."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from mmchat.display.numbers import format_percent
from mmchat.display.text import one_line
from mmchat.evaluation.classification import (
    SOMETHING_ELSE,
    Classification,
    YesNoMetrics,
    YesNoScores,
)
from mmchat.evaluation.results import (
    MARGIN,
    AnswerMetrics,
    Comparison,
    EvaluationResult,
    EvaluationSetup,
    TypeMetrics,
)
from mmchat.evaluation.statistics import RESAMPLES, Estimate, Proportion
from mmchat.evaluation.text_metrics import ROUGE_TYPES, TextMetrics
from mmchat.sanitize import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SETUP_FACTS = ("part", "seed", "pairs", "control")  # of `EvaluationSetup.about`


def result_markdown(result: EvaluationResult) -> str:
    """The table by question type, in the form that model cards use."""
    header = [
        "question type",
        "n",
        "exact match",
        "95 % interval",
        "most frequent answer",
        "declined",
    ]
    overall = result.exact_match
    rows = [_type_row(one) for one in result.types]
    rows.append(["mean over types", "", percent(result.mean_exact_match), "", "", ""])
    rows.append(["all questions", str(overall.n), *share_and_interval(overall), "", ""])
    if not result.knows_refusals:
        header, rows = header[:-1], [row[:-1] for row in rows]
    lines = [*_table(header, rows), ""]
    if any(one.above_most_frequent for one in result.types):
        lines.append(f"\\* exact match is above it by more than {100 * MARGIN:.0f} points.")
    for one in result.types:
        scores = []
        if one.objects_correct is not None:
            scores.append(f"every object right {_with_n(one.objects_correct)}")
        if one.caption_scores is not None:
            scores.append(f"BLEU {one.caption_scores.bleu:.1f}")
            scores.append(f"ROUGE-L {one.caption_scores.rouge_l:.3f}")
        if scores:
            lines.append(f"{_cell(one.name)}: {', '.join(scores)}.")
    if result.correctly_declined.n:
        lines.append(f"Correctly declined: {_with_n(result.correctly_declined)}.")
    if result.knows_refusals and result.wrongly_declined.n:
        lines.append(f"Wrongly declined: {_with_n(result.wrongly_declined)}.")
    lines += ["", _setup_line(result.setup)]
    return clean("\n".join(lines))


def _type_row(one: TypeMetrics) -> list[str]:
    most_frequent = percent(one.most_frequent) + (" *" if one.above_most_frequent else "")
    declined = percent(one.declined.value)
    exact_match = share_and_interval(one.exact_match)
    return [_cell(one.name), str(one.exact_match.n), *exact_match, most_frequent, declined]


def _setup_line(setup: EvaluationSetup) -> str:
    # A card is published, so folders of this machine are shortened to their names.
    model = f"model {_name(setup.model)}"
    if setup.weights_hash:
        model += f" (weights {setup.weights_hash[:12]})"
    facts = [model]
    if setup.adapter:
        hash_ = f" ({setup.adapter_hash[:12]})" if setup.adapter_hash else ""
        facts.append(f"adapter {_name(setup.adapter)}{hash_}")
    facts += [fact for fact in (setup.quantization, setup.device) if fact]
    about = [f"{name} {setup.about[name]}" for name in _SETUP_FACTS if name in setup.about]
    data = f"data {setup.data_sha256[:12]}" + (f" ({', '.join(about)})" if about else "")
    return _cell(
        f"By `mmchat evaluate`: {', '.join(facts)}; greedy; {data}; intervals are 95 % (Wilson)."
    )


def metrics_markdown(metrics: AnswerMetrics) -> str:
    """The metrics across all types that apply to the questions."""
    lines = [
        f"Character for character: {_with_n(metrics.verbatim)}.",
        f"Same words (without case, punctuation and articles): {_with_n(metrics.same_words)}.",
    ]
    if len(metrics.classifications) == 1:
        lines += ["", *_classification_lines(metrics.classifications[0])]
    elif metrics.classifications:
        lines += ["", *_classifications_table(metrics.classifications)]
    if metrics.yes_no is not None:
        lines += ["", *_yes_no_lines(metrics.yes_no)]
    if metrics.texts is not None:
        lines += ["", *_text_lines(metrics.texts)]
    lines += [
        "",
        f"Intervals are 95 %: Wilson's for shares, else a bootstrap of {RESAMPLES:,} resamples.",
    ]
    return clean("\n".join(lines))


def _classifications_table(classifications: Sequence[Classification]) -> list[str]:
    header = [
        "as classes",
        "classes",
        "n",
        "accuracy",
        "95 % interval",
        "macro F1",
        "95 % interval",
    ]
    rows = [
        [
            _cell(one.type),
            str(len(one.labels)),
            str(one.accuracy.n),
            *share_and_interval(one.accuracy),
            f"{one.macro.f1.value:.3f}",
            _interval(one.macro.f1),
        ]
        for one in classifications
    ]
    return _table(header, rows)


def _classification_lines(classification: Classification) -> list[str]:
    header = ["class", "n", "precision", "recall", "F1", "95 % interval"]
    rows = [
        [
            _cell(one.label),
            str(one.recall.n),
            f"{one.precision.value:.3f}",
            f"{one.recall.value:.3f}",
            f"{one.f1.value:.3f}",
            _interval(one.f1),
        ]
        for one in classification.classes
    ]
    for name, average in (("macro", classification.macro), ("micro", classification.micro)):
        values = [f"{e.value:.3f}" for e in (average.precision, average.recall, average.f1)]
        rows.append([name, "", *values, _interval(average.f1)])
    accuracy = classification.accuracy
    other = Proportion(int(classification.matrix[:, -1].sum()), accuracy.n)
    return [
        *_table(header, rows),
        "",
        f"Accuracy over {len(classification.labels)} classes: {_with_n(accuracy)}.",
        f"Answered something else: {_with_n(other)}.",
    ]


def _yes_no_lines(metrics: YesNoMetrics) -> list[str]:
    header = ["yes or no", "accuracy", "precision", "recall", "F1", "95 % interval", "yes ratio"]
    rows = [
        _yes_no_row("by POPE's parser", metrics.pope),
        _yes_no_row("by a strict parser", metrics.strict),
    ]
    return [
        *_table(header, rows),
        "",
        f"{metrics.n:,} questions; the answer to {metrics.reference_yes:,} of them is yes.",
        f"The strict parser could not read: {_with_n(metrics.unparsed)}.",
    ]


def _yes_no_row(name: str, one: YesNoScores) -> list[str]:
    shares = [percent(p.value) for p in (one.accuracy, one.precision, one.recall)]
    return [name, *shares, f"{one.f1.value:.3f}", _interval(one.f1), percent(one.yes_ratio.value)]


def _text_lines(metrics: TextMetrics) -> list[str]:
    low, high = metrics.bleu.interval
    rows = [["BLEU", f"{metrics.bleu.value:.1f}", f"{low:.1f}–{high:.1f}"]]
    for kind in ROUGE_TYPES:
        one = metrics.rouge[kind]
        rows.append([f"ROUGE-{kind.removeprefix('rouge')}", f"{one.value:.3f}", _interval(one)])
    return [
        *_table([f"texts (n = {metrics.n:,})", "", "95 % interval"], rows),
        "",
        f"BLEU by sacrebleu: {metrics.bleu_signature}.",
    ]


def comparison_markdown(comparison: Comparison) -> str:
    """The table of two evaluations: first, second, difference with its interval, p."""
    rows = []
    for row in comparison.rows:
        low, high = row.difference.interval
        if row.is_share:
            first, second = percent(row.first), percent(row.second)
            digits, scale = 1, 100
        else:
            digits, scale = 1 if row.name == "BLEU" else 3, 1
            first, second = f"{row.first:.{digits}f}", f"{row.second:.{digits}f}"
        middle, start, end = (
            f"{scale * value:+.{digits}f}" for value in (row.difference.value, low, high)
        )
        p = "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"
        difference = f"{middle} ({start} to {end})"
        rows.append([_cell(row.name), str(row.n), first, second, difference, p])
    header = ["", "n", _cell(comparison.first), _cell(comparison.second), "difference", "p"]
    note = (
        "Differences of shares are in points, with 95 % intervals by Newcombe's method 10 and p by "
        f"McNemar's exact test; the others use the paired bootstrap ({RESAMPLES:,} resamples)."
    )
    if len(comparison.rows) > 2:
        note += " No p is corrected for the number of rows."
    return clean("\n".join([*_table(header, rows), "", note]))


def percent(share: float) -> str:
    return format_percent(share, 1)


def share_and_interval(proportion: Proportion) -> tuple[str, str]:
    """`90.3 %` and `81.3–95.2 %`"""
    low, high = proportion.interval
    return percent(proportion.value), f"{100 * low:.1f}–{100 * high:.1f} %"


def _with_n(proportion: Proportion) -> str:
    share, interval = share_and_interval(proportion)
    return f"{share} ({interval}; n = {proportion.n})"


def _interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{low:.3f}–{high:.3f}"


def _name(model: str) -> str:
    return Path(model).name if Path(model).is_absolute() else model


def _cell(text: str) -> str:
    """Untrusted text on one line, escaped for a Markdown table."""
    return clean(text, keep_newlines=False).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with padded columns, right-aligned except for the first."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)])} |"

    rule = f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (w + 1) + ':' for w in widths[1:])}|"
    return [line(header), rule, *map(line, rows)]


MAX_PANELS: Final = 12
_MAX_NUMBERED: Final = 25  # classes up to which every cell shows its number
_LABEL_LENGTH: Final = 22  # characters


def draw_confusion(classifications: Sequence[Classification]) -> bytes:
    """A PNG file with one panel per confusion matrix, at most `MAX_PANELS`. There must be at least one.

    Rows are references, columns are predictions. A cell's colour is its share of the row, and its
    number is the count. The last column, if needed, is for predictions that are not a class.
    """
    from matplotlib.figure import Figure

    shown = classifications[:MAX_PANELS]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    side = 2.6 + 0.34 * max(len(one.labels) for one in shown)
    figure = Figure(figsize=(columns * (side + 0.6), rows * side), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, one in zip(panels, shown, strict=False):
        _draw_panel(panel, one)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes, which the user cannot change.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _draw_panel(panel: "Axes", classification: Classification) -> None:
    labels = [one_line(label, _LABEL_LENGTH) for label in classification.labels]
    matrix, column_labels = classification.matrix, [*labels, SOMETHING_ELSE]
    if not matrix[:, -1].any():
        matrix, column_labels = matrix[:, :-1], labels
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # Labels are untrusted text, and a dollar sign would begin a formula.
    panel.set_xticks(
        range(len(column_labels)), column_labels, rotation=60, ha="right", parse_math=False
    )
    panel.set_yticks(range(len(labels)), labels, parse_math=False)
    panel.tick_params(labelsize=8)
    panel.set_xlabel("prediction")
    panel.set_ylabel("reference")
    type_ = f"{one_line(classification.type, _LABEL_LENGTH)}: " if classification.type else ""
    accuracy = classification.accuracy
    title = f"{type_}right {percent(accuracy.value)} of {accuracy.n:,}"
    panel.set_title(title, fontsize=9, parse_math=False)
    if len(labels) > _MAX_NUMBERED:
        return
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "black"
            panel.text(column, row, str(count), ha="center", va="center", size=7, color=colour)
