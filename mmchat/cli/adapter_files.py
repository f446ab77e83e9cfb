"""`mmchat adapters merge | export | import`."""

from dataclasses import asdict
from pathlib import Path

import click

from mmchat.cli.output import Progress, json_option, note, say, say_json, say_table
from mmchat.display.numbers import format_percent, format_size


@click.command()
@click.argument("name")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The new folder of the model."
)
@click.option("--name", "model_name", default="", help="The model's name; the folder's by default.")
@json_option
def merge(name: str, out: Path, model_name: str, as_json: bool) -> None:
    """Merge an adapter into its base as a new model.

    This is for programs that cannot load adapters.

    LoRA is merged into the base's original weights, never into 4-bit ones. The new model is added
    to `mmchat models list`. The command prints how much its logits differ from those of the base
    with the adapter, both loaded in the same way.

    \b
    Example:
      mmchat adapters merge digits --out ~/models/scenes-digits
    """
    from mmchat.adapters.card import find_adapter, read_card
    from mmchat.adapters.compatibility import require_base

    require_base(read_card(find_adapter(name)))  # before torch is loaded, which takes a while
    from mmchat.adapters.merge import merge_adapter

    progress = Progress()
    try:
        merged = merge_adapter(
            name, out.expanduser(), model_name, lambda what, share: progress.show(what, share)
        )
    finally:
        progress.clear()
    model = merged.model
    if as_json:
        found = {"model": model.name, "folder": str(model.folder), "bytes": model.bytes}
        found |= {"adapter": merged.card.name, "base": merged.base, "dtype": merged.dtype}
        say_json({**found, "differences": [asdict(one) for one in merged.differences]})
        return
    say(
        f"Merged: {merged.card.name} into {merged.base}, {format_size(model.bytes)} in {merged.dtype} "
        f"({model.folder})"
    )
    rows = [
        (
            one.form,
            one.dtype,
            f"{one.largest:.4f}" if not one.problem else "-",
            f"{one.mean:.5f}" if not one.problem else "-",
            format_percent(one.same_token, 1) if not one.problem else one.problem,
        )
        for one in merged.differences
    ]
    say("\nThe logits of the merged model, compared with those of the base with the adapter:")
    say_table(rows, ("LOADED", "COMPUTES IN", "LARGEST |Δ|", "MEAN |Δ|", "SAME NEXT TOKEN"))
    say(f'\nTo use it: mmchat ask --model {model.name} "…"')


@click.command()
@click.argument("name")
@click.argument("file", metavar="FILE.zip", type=click.Path(path_type=Path))
@json_option
def export(name: str, file: Path, as_json: bool) -> None:
    """Write an adapter to a zip file.

    The file has only the adapter's own files, and always the same bytes.

    \b
    Example:
      mmchat adapters export digits digits.zip
    """
    from mmchat.adapters.archive import export_adapter

    done = export_adapter(name, file.expanduser())
    _note_left_out(done.skipped)
    if as_json:
        say_json({**asdict(done), "file": str(done.file)})
    else:
        say(f"Exported: {name} ({done.file}, {format_size(done.bytes)})")


@click.command("import")
@click.argument("source", metavar="FILE.zip|FOLDER", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Its name here; by default the name in its card.")
@click.option("--base", default="", metavar="MODEL", help="The base of a stock peft LoRA.")
@json_option
def import_(source: Path, name: str, base: str, as_json: bool) -> None:
    """Import an adapter from a zip file or a folder. Its content is checked, never executed.

    A LoRA folder that peft wrote does not say which weights it was trained on: it needs
    --base MODEL.

    \b
    Examples:
      mmchat adapters import birds.zip
      mmchat adapters import ~/downloads/lora --base scenes --name birds
    """
    from mmchat.adapters.archive import import_adapter

    done = import_adapter(source.expanduser(), name, base)
    _note_left_out(done.skipped)
    if not done.base:
        card = done.card
        note(
            f"Its base is not on this machine: {card.base.id} with the weights "
            f"{card.base.hash[:12]}."
        )
    if as_json:
        say_json({"name": done.card.name, "folder": str(done.folder), "base": done.base or None})
    else:
        say(
            f"Imported: {done.card.name} ({done.folder}). "
            f"To use it: mmchat adapters use {done.card.name}"
        )


def _note_left_out(names: tuple[str, ...]) -> None:
    if names:
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        note(f"Left out, because it is not part of an adapter: {listed}")
