"""All further figures of a report, each with its interval, where they apply."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmchat.evaluation.classes import Classes, find_classes
from mmchat.evaluation.comparing import Comparison
from mmchat.evaluation.metrics import Share
from mmchat.evaluation.report import Report, cell, figures, percent, table
from mmchat.evaluation.statistics import RESAMPLES, Estimate
from mmchat.evaluation.texts import KINDS, Texts, find_texts
from mmchat.evaluation.yes_no import Scoring, YesNo, find_yes_no
from mmchat.sanitize import clean


@dataclass(frozen=True, slots=True)
class Figures:
    """What does not apply to the questions is None, or empty."""

    verbatim: Share
    """As `Outcome` has it."""
    normalised: Share
    """Answers of the same words."""
    classes: tuple[Classes, ...]
    yes_no: YesNo | None
    texts: Texts | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "verbatim_match": _share(self.verbatim),
            "normalised_match": _share(self.normalised),
            "classes": [one.to_dict() for one in self.classes],
            "yes_no": self.yes_no.to_dict() if self.yes_no else None,
            "texts": self.texts.to_dict() if self.texts else None,
        }

    def to_markdown(self) -> str:
        said = [
            f"Character for character: {_whole(self.verbatim)}.",
            f"Same words (case, punctuation, articles aside): {_whole(self.normalised)}.",
        ]
        if self.classes:
            said += ["", *_of_classes(self.classes)]
        if self.yes_no is not None:
            said += ["", *_of_yes_no(self.yes_no)]
        if self.texts is not None:
            said += ["", *_of_texts(self.texts)]
        made = f"Intervals are 95 %: Wilson of shares, else bootstrap ({RESAMPLES:,} resamples)."
        return clean("\n".join([*said, "", made]))


def find_figures(report: Report) -> Figures:
    """The figures of a report's answers."""
    outcomes = report.outcomes
    return Figures(
        Share(sum(one.verbatim for one in outcomes), len(outcomes)),
        Share(sum(one.same_words for one in outcomes), len(outcomes)),
        find_classes(outcomes),
        find_yes_no(outcomes),
        find_texts(outcomes),
    )


def comparison_markdown(comparison: Comparison) -> str:
    """The table of two: first, second, difference with its interval, p."""
    rows = []
    for row in comparison.rows:
        low, high = row.difference.interval
        if row.is_share:
            one, other = percent(row.first), percent(row.second)
            difference = (
                f"{100 * row.difference.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            )
        else:
            digits = 1 if row.name == "BLEU" else 3
            one, other = f"{row.first:.{digits}f}", f"{row.second:.{digits}f}"
            middle = f"{row.difference.value:+.{digits}f}"
            difference = f"{middle} ({low:+.{digits}f} to {high:+.{digits}f})"
        rows.append([cell(row.name), str(row.n), one, other, difference, _p(row.p)])
    header = ["", "n", cell(comparison.first), cell(comparison.second), "difference", "p"]
    notes = (
        "Differences of shares are in points, their intervals (95 %) by Newcombe's method 10, p by "
        f"McNemar's exact test; others by the paired bootstrap ({RESAMPLES:,} resamples)."
    )
    if len(comparison.rows) > 2:
        notes += " No p is corrected for the number of rows."
    return clean("\n".join([*table(header, rows), "", notes]))


def _of_classes(classes: Sequence[Classes]) -> list[str]:
    if len(classes) == 1:
        return _of_one(classes[0])
    header = [
        "as classes",
        "classes",
        "n",
        "accuracy",
        "95 % interval",
        "macro F1",
        "95 % interval",
    ]
    rows = []
    for one in classes:
        macro = one.macro.f1
        figures_ = [*figures(one.accuracy), f"{macro.value:.3f}", _interval(macro)]
        rows.append([cell(one.name), str(len(one.labels)), str(one.accuracy.n), *figures_])
    return table(header, rows)


def _of_one(one: Classes) -> list[str]:
    header = ["class", "n", "precision", "recall", "F1", "95 % interval"]
    rows = [
        [
            cell(of_class.label),
            str(of_class.recall.n),
            f"{of_class.precision.share:.3f}",
            f"{of_class.recall.share:.3f}",
            f"{of_class.f1.value:.3f}",
            _interval(of_class.f1),
        ]
        for of_class in one.by_class
    ]
    for name, average in (("macro", one.macro), ("micro", one.micro)):
        values = [f"{e.value:.3f}" for e in (average.precision, average.recall, average.f1)]
        rows.append([name, "", *values, _interval(average.f1)])
    said = f"Accuracy over {len(one.labels)} classes: {_whole(one.accuracy)}."
    other = Share(int(one.matrix[:, -1].sum()), one.accuracy.n)
    return [*table(header, rows), "", said, f"Something else was answered: {_whole(other)}."]


def _of_yes_no(found: YesNo) -> list[str]:
    header = ["yes or no", "accuracy", "precision", "recall", "F1", "95 % interval", "yes ratio"]
    rows = [_scoring("by POPE's parser", found.pope), _scoring("strictly", found.strict)]
    return [
        *table(header, rows),
        "",
        f"{found.n:,} questions, {found.wanted_yes:,} of them to be answered yes.",
        f"Not parsed strictly: {_whole(found.unparsed)}.",
    ]


def _scoring(name: str, one: Scoring) -> list[str]:
    shares = [percent(s.share) for s in (one.accuracy, one.precision, one.recall)]
    return [name, *shares, f"{one.f1.value:.3f}", _interval(one.f1), percent(one.yes_ratio.share)]


def _of_texts(found: Texts) -> list[str]:
    low, high = found.bleu.interval
    rows = [["BLEU", f"{found.bleu.value:.1f}", f"{low:.1f}–{high:.1f}"]]
    for kind in KINDS:
        one = found.rouge[kind]
        rows.append([f"ROUGE-{kind.removeprefix('rouge')}", f"{one.value:.3f}", _interval(one)])
    return [
        *table([f"texts (n = {found.n:,})", "", "95 % interval"], rows),
        "",
        f"BLEU by sacrebleu: {found.bleu_signature}.",
    ]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval(one: Estimate) -> str:
    low, high = one.interval
    return f"{low:.3f}–{high:.3f}"


def _share(one: Share) -> dict[str, Any]:
    return {"n": one.n, "value": one.share, "interval": list(one.interval)}


def _whole(one: Share) -> str:
    share, interval = figures(one)
    return f"{share} ({interval}; n = {one.n})"
