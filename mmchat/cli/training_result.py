"""The result of a run: the adapter in the person's folder, its card, and a sentence."""

import os
from pathlib import Path

import msgspec

from mmchat.adapters.card import MAX_NAME_LENGTH, Metric, read_card, rename_adapter, write_card
from mmchat.errors import AdapterError
from mmchat.settings import paths, private_dir
from mmchat.training.run_folder import Row, RunFolder, writing


def keep(made: Path, name: str, rows: list[Row]) -> Path | None:
    """Moves the finished adapter to the person's adapters.

    Returns the new place of an adapter that had its name before; None if there was none.
    """
    with writing(paths().adapters):
        metrics: dict[str, float | Metric] = {}
        for row in rows:
            key = row.what.replace(" ", "_").replace("-", "_")
            metrics[f"{key}_without"] = Metric(row.before, row.n, row.before_interval)
            metrics[f"{key}_with"] = Metric(row.after, row.n, row.after_interval)
        card = read_card(made)
        write_card(made, msgspec.structs.replace(card, name=name, metrics=metrics))
        (made / "README.md").write_text(card_text(name, card.base.id, rows), encoding="utf-8")
        home = private_dir(paths().adapters)
        target, before = home / name, None
        if os.path.lexists(target):
            before = _moved_aside(target)
        made.rename(target)
    return before


def _moved_aside(target: Path) -> Path:
    """Renames what is there to the first free name of NAME-before, NAME-before-2 and so on."""
    ends = ("-before" if number == 1 else f"-before-{number}" for number in range(1, 1_000_000))
    places = (target.with_name(target.name[: MAX_NAME_LENGTH - len(end)] + end) for end in ends)
    before = next(place for place in places if not os.path.lexists(place))
    try:
        if not target.is_symlink():  # the target of a link stays as it is
            return rename_adapter(target.name, before.name)
    except AdapterError:
        pass  # not an adapter, or a broken one
    return target.rename(before)


def card_text(name: str, base: str, rows: list[Row]) -> str:
    """The text of the adapter's card (README.md)."""
    lines = [f"# {name}", "", f"An adapter for `{base}`, made by `mmchat train` (recipe.toml)."]
    if rows:
        lines += ["", "| right answers | n | without it | with it |", "|---|---:|---:|---:|"]
        lines += [
            f"| {row.what} | {row.n} | {_share(row.before, row.before_interval)} | "
            f"{_share(row.after, row.after_interval)} |"
            for row in rows
        ]
        lines += ["", "Exact match with Wilson's 95 % intervals, answered by the 4-bit engine."]
    return "\n".join(lines) + "\n"


def _share(share: float, interval: tuple[float, float]) -> str:
    return f"{share:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def finished_words(name: str, rows: list[Row], before: Path | None, unmeasured: str = "") -> str:
    """The sentences at the end of a run; `unmeasured` is the reason why there are no figures."""
    figures = "; ".join(
        f"{row.what} {row.before:.1%} → {row.after:.1%} (n = {row.n})" for row in rows
    )
    kept = f" The previous adapter of that name is kept as {before.name}." if before else ""
    why = f" It could not be measured: {unmeasured}" if unmeasured else ""
    return (
        f"{name} is ready{': ' + figures if figures else ''}. Use it: mmchat adapters use {name}, or "
        f"/adapter {name} in the chat.{kept}{why}"
    )


def resuming(name: str) -> tuple[str, ...]:
    """The arguments of `mmchat` that resume the run."""
    return ("train", "--resume", "--name", name)


def how_to_go_on(run: RunFolder, kept: int, *, saved: bool) -> str:
    """A sentence for a run that was paused.

    kept: the number of steps in its newest checkpoint, 0 if there is none. saved: whether the run
    has done no more steps than these.
    """
    if not run.can_go_on():
        return "It had not started to train: start it again."
    if saved:
        said = f"Saved after {_steps(kept)}." if kept else "It had not started to train."
    elif kept:
        said = f"The newest checkpoint is at step {kept:,}; the steps after it are lost."
    else:
        said = "There was no checkpoint yet, so all steps are lost."
    return f"{said} Resume: mmchat {' '.join(resuming(run.folder.name))}"


def _steps(count: int) -> str:
    return f"{count:,} step{'s' if count != 1 else ''}"
