"""`mmchat data`: inspects data before training."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmchat.cli.output import Progress, json_object_option, say, say_json, say_table
from mmchat.display.numbers import format_count, format_percent
from mmchat.errors import DataError, ModelError
from mmchat.model.catalogue import resolve_model
from mmchat.sanitize import clean
from mmchat.settings import load_settings

if TYPE_CHECKING:
    from mmchat.cli.token_count import TokenCount
    from mmchat.data.inspection import Inspection
    from mmchat.data.types import Problem

MAX_LISTED = 20
"""The most problems and classes that the text lists; --json has all of them."""
_BAR_WIDTH = 40


@click.group()
def data() -> None:
    """Inspect data before training on it.

    \b
    Example:
      mmchat data inspect my-photos/
    """


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="M",
    default="",
    help="Count tokens for M instead of the model in the settings.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Another folder for the pictures of the data.",
)
@click.option("--allow-bad", is_flag=True, help="Exit with status 0 even if more than 1 % is bad.")
@json_object_option
def inspect(
    path: Path,
    model: str,
    images: Path | None,
    allow_bad: bool,
    as_json: bool,
) -> None:
    """Show the format, content and problems of the data in PATH.

    The content is its pictures, classes and tokens. Nothing is changed. The exit status is 1 if training would refuse the data.

    \b
    Examples:
      mmchat data inspect my-photos/
      mmchat data inspect llava.json --images coco/ --json
    """
    from mmchat.data.inspection import inspect as inspect_sources
    from mmchat.data.reader import read_sources
    from mmchat.training.finetune_config import FinetuneConfig

    name = model or load_settings().model.name
    if model:
        resolve_model(model)  # report a mistyped name before reading the data
    progress = Progress()
    try:
        sources = read_sources(
            path,
            images=images,
            progress=lambda samples: progress.show(f"reading: {samples:,} samples"),
        )
        recipe = FinetuneConfig()
        found = inspect_sources(
            path, sources, share=recipe.data.held_out, seed=recipe.seed, allow_bad=allow_bad
        )
        progress.clear()
        if not as_json:
            _show_counts(path, found)
        tokens, why = _tokens(name, found, progress)
    finally:
        progress.clear()
    problems = [*found.problems, *_unreadable(tokens)]
    if as_json:
        say_json(_object(path, found, problems, tokens, why))
    else:
        _show_tokens(tokens, why)
        _show_problems(problems)
    if refusal := found.refusal or _model_refusal(tokens, allow_bad):
        raise DataError(refusal)


def _unreadable(tokens: "TokenCount | None") -> list["Problem"]:
    """The samples that the model cannot read, as problems."""
    from mmchat.data.types import Problem

    return [Problem(place, why, "broken") for place, why in tokens.problems] if tokens else []


def _model_refusal(tokens: "TokenCount | None", allow_bad: bool) -> str:
    """Why training would refuse samples that the model cannot read; "" if it would not."""
    from mmchat.data.reader import MAX_BAD_SHARE

    if tokens is None or allow_bad:
        return ""
    bad, counted = len(tokens.problems), len(tokens.lengths) + len(tokens.problems)
    if bad <= MAX_BAD_SHARE * counted:
        return ""
    return (
        f"{bad:,} of {counted:,} samples cannot be read by {tokens.model}: correct them, or skip "
        "them with --allow-bad."
    )


def _tokens(name: str, found: "Inspection", progress: Progress) -> tuple["TokenCount | None", str]:
    """Counts tokens; returns (None, reason) if that is impossible."""
    if not found.examples:
        return None, "there is no sample to count"
    from mmchat.cli.token_count import count_tokens

    progress.show("counting tokens")
    try:
        resolve_model(name)  # before torch is imported
        return count_tokens(
            name, found.examples, lambda done: progress.show("counting tokens", done)
        ), ""
    except ModelError as error:
        return None, str(error)
    finally:
        progress.clear()


def _show_counts(path: Path, found: "Inspection") -> None:
    """Prints what needs no model."""
    bad = len(found.problems)
    pictures = [f"{found.pictures:,} different"]
    if found.picture_uses > found.pictures:
        pictures.append(f"shown {found.picture_uses:,} times")
    pictures += [
        f"{found.count_pictures(what):,} {what}"
        for what in ("missing", "broken")
        if found.count_pictures(what)
    ]
    rows = [
        ("data", str(path)),
        ("format", found.format),
        ("samples", f"{found.samples:,}" + (f", {bad:,} of them with a problem" if bad else "")),
        ("questions", f"{found.questions:,}"),
        ("pictures", ", ".join(pictures)),
    ]
    if found.without_picture:
        rows.append(("text only", format_count(found.without_picture, "sample")))
    if found.copies:
        rows.append(
            (
                "copies",
                f"{format_count(len(found.copies), 'picture is', 'pictures are')} in several files",
            )
        )
    if found.duplicates:
        again = sum(len(places) - 1 for places in found.duplicates)
        rows.append(
            ("duplicates", f"{format_count(again, 'sample repeats', 'samples repeat')} another one")
        )
    rows.append(("held out", _held_out(found)))
    say_table(rows)
    _show_classes(found)
    for remark in found.remarks:
        say(f"\n{clean(remark, keep_newlines=False)}")
    _show_groups("the same picture:", found.copies)
    _show_groups("the same sample:", found.duplicates)


def _show_classes(found: "Inspection") -> None:
    if not found.classes:
        return
    held = Counter(example.kind for example in found.held_out)
    bad = found.bad_classes
    kinds = [kind for kind, _ in found.classes.most_common()]
    kinds += [kind for kind, _ in bad.most_common() if kind not in found.classes]
    table = [
        (f"{found.classes[kind]:,}", f"{held[kind]:,}", *([f"{bad[kind]:,}"] if bad else []), kind)
        for kind in kinds[:MAX_LISTED]
    ]
    say()
    say_table(table, ("SAMPLES", "HELD OUT", *(["BAD"] if bad else []), "KIND"))
    _say_more(len(kinds) - len(table), "kind", "kinds")


def _held_out(found: "Inspection") -> str:
    count = len(found.held_out)
    if found.own_split:
        return f"{format_count(count, 'sample')}, the split in the data"
    if not count:
        return "nothing, because there are too few different pictures"
    return f"{count:,} of {len(found.examples):,} samples would be held out, by their pictures"


def _show_groups(title: str, groups: Sequence[Sequence[str]]) -> None:
    """Prints the first groups of equal files or samples."""
    if not groups:
        return
    say(f"\n{title}")
    for group in groups[:3]:
        more = f" and {len(group) - 3:,} more" if len(group) > 3 else ""
        names = " = ".join(clean(name, keep_newlines=False) for name in group[:3])
        say(f"  {names}{more}")
    _say_more(len(groups) - 3, "more group", "more groups")


def _show_tokens(tokens: "TokenCount | None", why: str) -> None:
    say()
    if tokens is None or not tokens.lengths:
        first = tokens.problems[0][1] if tokens and tokens.problems else ""
        say(f"Tokens were not counted: {why or first}")
        return
    counted = len(tokens.lengths)
    total, longest = sum(tokens.lengths), max(tokens.lengths)
    median, most_have = tokens.quantile(0.5), tokens.quantile(0.95)
    part = f" ({counted:,} samples counted)" if counted < tokens.of else ""
    rows = [
        (
            "tokens",
            f"{total:,} for {tokens.model}, {format_percent(tokens.of_pictures / total)} of them pictures{part}",
        ),
        (
            "a sample",
            f"median {median:,}, 95 % have at most {most_have:,}, the longest {longest:,}",
        ),
        ("cut", _cut(tokens)),
    ]
    if tokens.problems:
        rows.append(("unreadable", format_count(len(tokens.problems), "sample")))
    say_table(rows)
    say()
    bins = tokens.histogram()
    most = max(count for _, _, count in bins)
    labels = [f"{start:,}–{end:,}" for start, end, _ in bins]
    width = max(map(len, labels))
    for label, (start, _, count) in zip(labels, bins, strict=True):
        over = "  too long" if start > tokens.limit else ""
        say(f"  {label:>{width}}  {_bar(count / most)} {count:,}{over}")


def _cut(tokens: "TokenCount") -> str:
    limits = f"training uses {tokens.limit:,} of the model's {tokens.context:,} tokens"
    if not tokens.cut and not tokens.too_long:
        return f"nothing: {limits}"
    parts = []
    if tokens.cut:
        parts.append(
            f"{format_count(tokens.cut, 'sample loses its', 'samples lose their')} last exchanges"
        )
    if tokens.too_long:
        parts.append(f"{format_count(tokens.too_long, 'is', 'are')} too long for any answer")
    return f"{' and '.join(parts)}: {limits}"


def _bar(share: float) -> str:
    """A bar of up to `_BAR_WIDTH` characters, in steps of an eighth."""
    full, part = divmod(round(share * _BAR_WIDTH * 8), 8)
    bar = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return bar or ("▏" if share > 0 else "")


def _show_problems(problems: Sequence["Problem"]) -> None:
    if not problems:
        return
    say(f"\n{format_count(len(problems), 'problem')}")
    for problem in problems[:MAX_LISTED]:
        say(f"  {clean(f'{problem.place}: {problem.why}', keep_newlines=False)}")
    _say_more(len(problems) - MAX_LISTED, "more (--json has all)", "more (--json has all)")


def _say_more(count: int, one: str, many: str) -> None:
    if count > 0:
        say(f"  and {format_count(count, one, many)}")


def _object(
    path: Path,
    found: "Inspection",
    problems: Sequence["Problem"],
    tokens: "TokenCount | None",
    why: str,
) -> dict[str, Any]:
    return {
        "path": str(path),
        "format": found.format,
        "samples": found.samples,
        "bad": found.bad,
        "examples": len(found.examples),
        "questions": found.questions,
        "pictures": found.pictures,
        "pictures_shown": found.picture_uses,
        "pictures_missing": found.count_pictures("missing"),
        "pictures_broken": found.count_pictures("broken"),
        "without_picture": found.without_picture,
        "classes": dict(found.classes.most_common()),
        "bad_classes": dict(found.bad_classes.most_common()),
        "remarks": found.remarks,
        "copies": found.copies,
        "duplicates": found.duplicates,
        "train": len(found.train),
        "held_out": len(found.held_out),
        "held_out_classes": dict(
            Counter(example.kind for example in found.held_out if example.kind).most_common()
        ),
        "own_split": found.own_split,
        "tokens": _tokens_object(tokens) if tokens else None,
        "tokens_problem": why,
        "problems": [{"place": one.place, "why": one.why, "about": one.about} for one in problems],
    }


def _tokens_object(tokens: "TokenCount") -> dict[str, Any]:
    found = {
        "model": tokens.model,
        "context": tokens.context,
        "limit": tokens.limit,
        "counted": len(tokens.lengths),
        "total": sum(tokens.lengths),
        "of_pictures": tokens.of_pictures,
        "cut": tokens.cut,
        "too_long": tokens.too_long,
        "problems": [{"place": place, "why": why} for place, why in tokens.problems],
    }
    if tokens.lengths:
        found |= {
            "shortest": min(tokens.lengths),
            "median": tokens.quantile(0.5),
            "p95": tokens.quantile(0.95),
            "longest": max(tokens.lengths),
            "histogram": [
                {"from": start, "to": end, "samples": count}
                for start, end, count in tokens.histogram()
            ],
        }
    return found
