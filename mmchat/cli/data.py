"""`mmchat data`: what data holds, before anything is learned from it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmchat.cli.output import Progress, say, say_json, say_table
from mmchat.errors import DataError, ModelError
from mmchat.model.catalogue import resolve_model
from mmchat.settings import load_settings

if TYPE_CHECKING:
    from mmchat.cli.token_count import TokenCount
    from mmchat.data.inspection import Inspection

MOST_SHOWN = 20
"""Problems and classes that are listed for people; --json has all of them."""
_BAR = 40


@click.group()
def data() -> None:
    """Look at data before it is learned from.

    \b
    Example:
      mmchat data inspect my-photos/
    """


@data.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--model", metavar="M", default="", help="Count tokens for M, not the settings' model."
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Another folder that the data may name pictures in.",
)
@click.option("--allow-bad", is_flag=True, help="End well though more than 1 % is bad.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(
    path: Path,
    model: str,
    images: Path | None,
    allow_bad: bool,
    as_json: bool,
) -> None:
    """Say what PATH holds: its form, pictures, classes, tokens, and every problem.

    Nothing is changed. The exit status is 1 where training would refuse the data.

    \b
    Examples:
      mmchat data inspect my-photos/
      mmchat data inspect llava.json --images coco/ --json
    """
    from mmchat.data.inspection import inspect as look
    from mmchat.data.reading import read_parts
    from mmchat.training.finetune_config import FinetuneConfig

    name = model or load_settings().model.name
    if model:
        resolve_model(model)  # a mistyped one is told before everything is read
    progress = Progress()
    try:
        parts = read_parts(
            path, images=images, tell=lambda samples: progress.show(f"reading: {samples:,} samples")
        )
        recipe = FinetuneConfig()
        found = look(path, parts, share=recipe.data.held_out, seed=recipe.seed, allow_bad=allow_bad)
        progress.clear()
        if not as_json:
            _tell(path, found)
        tokens, why = _tokens(name, found, progress)
    finally:
        progress.clear()
    if as_json:
        say_json(_object(path, found, tokens, why))
    else:
        _tell_tokens(tokens, why)
        _tell_problems(found)
    if found.refusal:
        raise DataError(found.refusal)


def _tokens(name: str, found: "Inspection", progress: Progress) -> tuple["TokenCount | None", str]:
    """(the lengths, or None; why there are none)"""
    if not found.examples:
        return None, "there is no sample to count"
    from mmchat.cli.token_count import count_tokens

    progress.show("counting tokens")
    try:
        resolve_model(name)  # before torch is imported for it
        return count_tokens(
            name, found.examples, lambda done: progress.show("counting tokens", done)
        ), ""
    except ModelError as error:
        return None, str(error)
    finally:
        progress.clear()


def _tell(path: Path, found: "Inspection") -> None:
    """What needs no model, for people."""
    bad = len(found.problems)
    several = found.shown - found.pictures
    pictures = [f"{found.pictures:,} different ones"]
    if several > 0:
        pictures.append(f"shown {found.shown:,} times")
    pictures += [
        f"{found.about(what):,} {what}" for what in ("missing", "broken") if found.about(what)
    ]
    rows = [
        ("data", str(path)),
        ("form", found.form),
        ("samples", f"{found.samples:,}" + (f", {bad:,} of them with a problem" if bad else "")),
        ("questions", f"{found.questions:,}"),
        ("pictures", ", ".join(pictures)),
    ]
    if found.without_picture:
        rows.append(("without one", f"{found.without_picture:,} samples"))
    if found.copies:
        rows.append(
            ("copies", f"{_count(found.copies, 'picture lies', 'pictures lie')} in several files")
        )
    if found.duplicates:
        again = sum(len(places) - 1 for places in found.duplicates)
        says = _count(again, "sample says", "samples say")
        rows.append(("duplicates", f"{says} again what another one says"))
    rows.append(("held out", _held_out(found)))
    say_table(rows)
    if found.classes:
        held = Counter(example.kind for example in found.held_out)
        table = [
            (f"{count:,}", f"{held[kind]:,}", kind)
            for kind, count in found.classes.most_common(MOST_SHOWN)
        ]
        say()
        say_table(table, ("SAMPLES", "HELD OUT", "KIND"))
        _say_more(len(found.classes) - len(table), "kind", "kinds")
    _tell_groups("the same picture:", found.copies)
    _tell_groups("the same sample:", found.duplicates)


def _held_out(found: "Inspection") -> str:
    count = len(found.held_out)
    if found.own_split:
        return f"{count:,} samples, by the data itself"
    if not count:
        return "nothing: there are too few different pictures"
    return f"{count:,} of {len(found.examples):,} samples would be kept for measuring, by their pictures"


def _tell_groups(title: str, groups: Sequence[Sequence[str]]) -> None:
    """The first of what lies in several places."""
    if not groups:
        return
    say(f"\n{title}")
    for group in groups[:3]:
        more = f" and {len(group) - 3:,} more" if len(group) > 3 else ""
        say(f"  {' = '.join(group[:3])}{more}")
    _say_more(len(groups) - 3, "more of the kind", "more of the kind")


def _tell_tokens(tokens: "TokenCount | None", why: str) -> None:
    say()
    if tokens is None or not tokens.lengths:
        first = tokens.problems[0][1] if tokens and tokens.problems else ""
        say(f"Tokens were not counted: {why or first}")
        return
    counted = len(tokens.lengths)
    whole, longest = sum(tokens.lengths), max(tokens.lengths)
    median, most_have = tokens.quantile(0.5), tokens.quantile(0.95)
    part = f" ({counted:,} samples looked at)" if counted < tokens.of else ""
    rows = [
        (
            "tokens",
            f"{whole:,} for {tokens.model}, {tokens.of_pictures / whole:.0%} of them pictures{part}",
        ),
        (
            "a sample",
            f"median {median:,}, 95 % have at most {most_have:,}, the longest {longest:,}",
        ),
        ("cut", _cut(tokens)),
    ]
    if tokens.problems:
        rows.append(("unreadable", f"{len(tokens.problems):,}, the first: {tokens.problems[0][1]}"))
    say_table(rows)
    say()
    bins = tokens.histogram()
    most = max(count for _, _, count in bins)
    left = [f"{start:,}–{end:,}" for start, end, _ in bins]
    wide = max(map(len, left))
    for label, (start, _, count) in zip(left, bins, strict=True):
        over = "  too long" if start > tokens.limit else ""
        say(f"  {label:>{wide}}  {_bar(count / most)} {count:,}{over}")


def _cut(tokens: "TokenCount") -> str:
    room = f"training takes {tokens.limit:,} of the {tokens.context:,} that the model can"
    if not tokens.cut and not tokens.too_long:
        return f"nothing: {room}"
    parts = []
    if tokens.cut:
        parts.append(
            f"{_count(tokens.cut, 'sample loses its', 'samples lose their')} last exchanges"
        )
    if tokens.too_long:
        parts.append(f"{_count(tokens.too_long, 'is', 'are')} too long for any answer")
    return f"{' and '.join(parts)}: {room}"


def _bar(share: float) -> str:
    """A bar of up to `_BAR` characters, in eighths."""
    whole, part = divmod(round(share * _BAR * 8), 8)
    bar = "█" * whole + (" ▏▎▍▌▋▊▉"[part] if part else "")
    return bar or ("▏" if share > 0 else "")


def _tell_problems(found: "Inspection") -> None:
    if not found.problems:
        return
    say(f"\n{_count(found.problems, 'problem', 'problems')}")
    for problem in found.problems[:MOST_SHOWN]:
        say(f"  {problem.place}: {problem.why}")
    _say_more(len(found.problems) - MOST_SHOWN, "more (--json has all)", "more (--json has all)")


def _say_more(count: int, one: str, many: str) -> None:
    if count > 0:
        say(f"  and {_count(count, one, many)}")


def _count(things: int | Sequence[object], one: str, many: str) -> str:
    count = things if isinstance(things, int) else len(things)
    return f"{count:,} {one if count == 1 else many}"


def _object(
    path: Path, found: "Inspection", tokens: "TokenCount | None", why: str
) -> dict[str, Any]:
    return {
        "path": str(path),
        "form": found.form,
        "samples": found.samples,
        "bad": found.bad,
        "examples": len(found.examples),
        "questions": found.questions,
        "pictures": found.pictures,
        "pictures_shown": found.shown,
        "pictures_missing": found.about("missing"),
        "pictures_broken": found.about("broken"),
        "without_picture": found.without_picture,
        "classes": dict(found.classes.most_common()),
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
        "problems": [
            {"place": one.place, "why": one.why, "about": one.about} for one in found.problems
        ],
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
