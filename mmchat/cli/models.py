"""`mmchat models`: what is built in, installed, or could be fetched."""

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from mmchat.cli.output import Progress, note, say, say_json, say_table, size
from mmchat.cli.parts import load_parts, parts_table
from mmchat.errors import ModelError
from mmchat.model import catalogue
from mmchat.model.checkpoint import estimate_memory
from mmchat.settings import load_settings, named_folder

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def models() -> None:
    """Models that answer.

    \b
    Example:
      mmchat models list
    """


@models.command("list")
@_json
def list_(as_json: bool) -> None:
    """What is here, and what could be fetched; as JSON one a line.

    \b
    Example:
      mmchat models list
    """
    installed = catalogue.list_installed()
    offers = list(_offers({model.name for model in installed}))
    if as_json:
        for model in installed:
            say_json({**asdict(model), "folder": str(model.folder), "installed": True})
        for offer, verdict in offers:
            say_json({**_offer(offer, verdict), "installed": False})
        return
    chosen = load_settings().model.name
    rows = [
        (
            "*" if model.name == chosen else "",
            model.name,
            _count(model.parameters),
            size(model.bytes),
            model.problem or model.origin,
        )
        for model in installed
    ]
    say_table(rows, ("", "HERE", "PARAMETERS", "ON DISK", "WHERE FROM"))
    say()
    fetchable = [
        (
            "",
            offer.hub_id,
            offer.parameters,
            f"{offer.four_bit_gb:.1f} GB",
            "fits" if verdict.fits else "no",
            offer.licence + (" (gated)" if offer.gated else ""),
            offer.good_at if verdict.fits else f"{offer.good_at}; {verdict.reason}",
        )
        for offer, verdict in offers
    ]
    header = ("", "TO FETCH", "PARAMETERS", "IN 4-BIT", "HERE", "LICENCE", "GOOD AT")
    say_table(fetchable, header)
    say("\nFetch one: mmchat models add NAME · use one: mmchat ask --model NAME, or F3 in the app")


@models.command()
@click.argument("name", metavar="M")
@click.option("--no-load", is_flag=True, help="Do not load it to look at its parts.")
@click.option(
    "--fit", is_flag=True, help="Tell how it fits here, to talk and to train; no loading."
)
@_json
def show(name: str, no_load: bool, fit: bool, as_json: bool) -> None:
    """One model: where it is, whether it fits, and which of its parts are 4-bit.

    \b
    Examples:
      mmchat models show scenes
      mmchat models show scenes --fit
    """
    offers = {offer.hub_id: (offer, verdict) for offer, verdict in _offers(set())}
    here = {model.name: model for model in catalogue.list_installed()}
    if name in offers and name not in here:
        facts = {**_offer(*offers[name]), "installed": False}
        if as_json:
            say_json(facts)
        else:
            say_table([(key.replace("_", " "), str(value)) for key, value in facts.items()])
            say(f"\nFetch it: mmchat models add {name}")
        return
    folder = catalogue.resolve_model(name)
    if fit:
        _show_fit(name, folder, as_json)
        return
    model = next((model for model in here.values() if model.folder == folder), None)
    facts = {**asdict(model), "folder": str(folder)} if model else {"folder": str(folder)}
    verdict = catalogue.fits_machine(estimate_memory(folder, four_bit=True))
    facts |= {"fits": verdict.fits, "reason": verdict.reason}
    loaded = None if no_load else _loaded(name)
    if as_json:
        say_json(facts if loaded is None else {**facts, "loaded": loaded})
        return
    rows = [("model", name), ("folder", facts["folder"])]
    if model:
        rows += [("from", model.origin), ("type", model.model_type)]
        rows += [("parameters", f"{model.parameters:,}"), ("on disk", size(model.bytes))]
    rows.append(("fits", f"{'yes' if verdict.fits else 'no'}: {verdict.reason}"))
    if loaded:
        rows += form_rows(loaded)
    say_table(rows)
    if loaded:
        say()
        say_table(parts_table(loaded))


def _show_fit(name: str, folder: Path, as_json: bool) -> None:
    from mmchat.model.facts import read_facts
    from mmchat.model.room import rooms, this_machine

    facts, machine = read_facts(folder), this_machine()
    found = list(rooms(facts, machine))
    if as_json:
        for room in found:
            say_json(
                {
                    "use": room.use,
                    "fits": room.fits,
                    "settings": list(room.settings),
                    "bytes": room.bytes,
                    "moment": room.prediction.moment,
                    "parts": room.prediction.parts,
                    "free_bytes": machine.free,
                    "device": machine.device,
                }
            )
        return
    say(f"{name} on this machine's {'GPU' if machine.device == 'cuda' else 'CPU'}:")
    say()
    say_table([(room.use, room.sentence) for room in found])
    for what in facts.estimated:
        say(f"Estimated, not known: {what}.")


def form_rows(loaded: dict[str, Any]) -> list[tuple[str, str]]:
    """How a loaded model is held, for people."""
    return [
        (
            "form",
            f"{loaded['quantization']}, computes in {loaded['compute_dtype']}, {loaded['device']}",
        ),
        ("memory", size(loaded["memory_bytes"])),
        ("context", f"{loaded['context_length']:,} tokens"),
        ("sees", "pictures and text" if loaded["vision"] else "text only"),
    ]


def _loaded(name: str) -> dict[str, Any]:
    chosen = load_settings().model
    wanted = msgspec.structs.replace(
        chosen, name=name, adapter=chosen.adapter if name == chosen.name else ""
    )
    progress = Progress()
    progress.show(f"Loading {name} to look at its parts")
    try:
        return load_parts(wanted)
    finally:
        progress.clear()


@models.command()
@click.argument("source", metavar="FOLDER-OR-HUB-ID")
@click.option("--name", default="", help="What a folder's model is called; else like the folder.")
def add(source: str, name: str) -> None:
    """Add a model in a folder, or fetch one from the hub (OWNER/NAME[@REVISION]).

    If a download is interrupted, the same command continues it.

    \b
    Examples:
      mmchat models add HuggingFaceTB/SmolVLM-256M-Instruct
      mmchat models add ~/models/my-model --name mine
    """
    folder = named_folder(source)
    if folder is not None:
        added = catalogue.add_folder(folder, name or _name_of_run(folder))
    elif source.startswith((".", "~", os.sep)):
        raise ModelError(f"There is no folder {source}: check the path.")
    elif name:
        raise click.UsageError("--name is for a folder; a fetched model keeps its hub id.")
    else:
        if not sys.stderr.isatty():
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        from mmchat.model import hub

        plan = hub.plan_download(source)
        licences = {offer.hub_id: offer.licence for offer in catalogue.OFFERS}
        note(
            f"{plan.hub_id}: {size(plan.bytes)} in {len(plan.files)} files, to {plan.folder}. "
            f"Licence: {licences.get(plan.hub_id, 'see its page')}. "
            "Ctrl-C stops; the same command continues."
        )
        added = hub.fetch(plan)
    say(f'Added: {added.name}. Use it: mmchat ask --model {added.name} "…"')


def _name_of_run(folder: Path) -> str:
    """The name of the run that made the model in `folder`; empty if no run did."""
    folder = folder.resolve()
    made_here = folder.name == "model" and (folder.parent / "recipe.toml").is_file()
    return folder.parent.name if made_here else ""


@models.command()
@click.argument("name", metavar="M")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(name: str, yes: bool) -> None:
    """Remove a fetched model's files, or forget a folder (its files stay).

    \b
    Example:
      mmchat models remove HuggingFaceTB/SmolVLM-256M-Instruct
    """
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("There is no terminal to ask for confirmation: give --yes.")
        if not click.confirm(f"Remove {name}?", err=True):
            return
    folder = catalogue.remove_model(name)
    say(f"Removed: {name} ({folder}{' stays on the disk' if folder.exists() else ''})")


def _offers(without: set[str]) -> Iterator[tuple[catalogue.Offer, catalogue.Verdict]]:
    for offer in catalogue.OFFERS:
        if offer.hub_id not in without:
            yield offer, catalogue.fits_machine(int(offer.four_bit_gb * 1e9))


def _offer(offer: catalogue.Offer, verdict: catalogue.Verdict) -> dict[str, Any]:
    facts = asdict(offer)
    return {"name": facts.pop("hub_id"), **facts, "fits": verdict.fits, "reason": verdict.reason}


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
