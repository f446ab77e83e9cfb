"""`mmchat models`: lists, shows, adds and removes models."""

import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from mmchat.cli.inspect_model import load_parts, parts_table
from mmchat.cli.output import (
    Progress,
    confirm,
    json_option,
    note,
    say,
    say_json,
    say_table,
    yes_option,
)
from mmchat.display.numbers import format_parameters, format_size
from mmchat.errors import ModelError
from mmchat.memory.machine import Machine, WeightFormat, this_machine, weight_format_of
from mmchat.memory.memory_fit import MemoryFit, all_fits, chat_fit
from mmchat.memory.model_dims import ModelDims, read_dims
from mmchat.model import catalogue
from mmchat.settings import load_settings, named_folder

_YES_NO = {True: "yes", False: "no", None: "?"}
_FORM_WORDS: dict[WeightFormat, str] = {
    "4bit": "in 4-bit",
    "bf16": "in bfloat16",
    "fp32": "in float32",
}


@click.group()
def models() -> None:
    """List, show, add and remove models.

    \b
    Example:
      mmchat models list
    """


@models.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the installed models and those to fetch.

    With --json, it prints one object per line.

    MEMORY is what a conversation about a picture needs, with the setting model.quantization.

    \b
    Example:
      mmchat models list
    """
    settings = load_settings().model
    machine, form = this_machine(settings), weight_format_of(settings.quantization)
    installed = [
        (m, fit_facts(_installed_fit(m.folder, machine, form))) for m in catalogue.list_installed()
    ]
    offers = _offers({model.name for model, _ in installed}, machine, form)
    if as_json:
        for model, fit in installed:
            say_json({**asdict(model), "folder": str(model.folder), "installed": True, **fit})
        for offer, fit in offers:
            say_json({**_offer(offer, fit), "installed": False})
        return
    rows = [
        (
            "*" if model.name == settings.name else "",
            model.name,
            format_parameters(model.parameters),
            format_size(model.bytes),
            _memory(fit),
            _YES_NO[fit["fits"]],
            model.problem or model.origin,
        )
        for model, fit in installed
    ]
    header = ("", "INSTALLED", "PARAMETERS", "ON DISK", "MEMORY", "FITS", "ORIGIN")
    say_table(rows, header)
    say()
    fetchable = [
        (
            "",
            offer.hub_id,
            offer.parameters,
            _memory(fit),
            _YES_NO[fit["fits"]],
            offer.licence + (" (gated)" if offer.gated else ""),
            offer.good_at if fit["fits"] else f"{offer.good_at}; {fit['reason']}",
        )
        for offer, fit in offers
    ]
    say_table(fetchable, ("", "AVAILABLE", "PARAMETERS", "MEMORY", "FITS", "LICENCE", "GOOD AT"))
    say(
        f"\nMEMORY: {_FORM_WORDS[form]}, for a conversation about a picture; "
        f"{format_size(machine.free)} are free here"
    )
    say(
        "To fetch one: mmchat models add NAME. To use one: mmchat ask --model NAME, or F3 in the app."
    )


@models.command()
@click.argument("name", metavar="M")
@click.option("--no-load", is_flag=True, help="Do not load it to inspect its parts.")
@click.option(
    "--fit",
    is_flag=True,
    help="Show whether it fits, for chat and for training; nothing is loaded.",
)
@json_option
def show(name: str, no_load: bool, fit: bool, as_json: bool) -> None:
    """Show a model: whether it fits, which parts are 4-bit.

    \b
    Examples:
      mmchat models show scenes
      mmchat models show scenes --fit
    """
    settings = load_settings().model
    machine, form = this_machine(settings), weight_format_of(settings.quantization)
    offers = {offer.hub_id: (offer, fits) for offer, fits in _offers(set(), machine, form)}
    here = {model.name: model for model in catalogue.list_installed()}
    offered = name in offers and name not in here
    if fit:
        dims = (
            catalogue.offered_dims()[name] if offered else read_dims(catalogue.resolve_model(name))
        )
        _show_fits(name, dims, machine, as_json)
        return
    if offered:
        facts = {**_offer(*offers[name]), "installed": False}
        if as_json:
            say_json(facts)
        else:
            say_table([(key.replace("_", " "), str(value)) for key, value in facts.items()])
            say(f"\nTo fetch it: mmchat models add {name}")
        return
    folder = catalogue.resolve_model(name)
    model = next((model for model in here.values() if model.folder == folder), None)
    facts = {**asdict(model), "folder": str(folder)} if model else {"folder": str(folder)}
    facts |= fit_facts(_installed_fit(folder, machine, form))
    loaded = None if no_load else _loaded(name)
    if as_json:
        say_json(facts if loaded is None else {**facts, "loaded": loaded})
        return
    rows = [("model", name), ("folder", facts["folder"])]
    if model:
        rows += [("from", model.origin), ("type", model.model_type)]
        rows += [("parameters", f"{model.parameters:,}"), ("on disk", format_size(model.bytes))]
    rows.append(("fits", f"{_YES_NO[facts['fits']]}: {facts['reason']}"))
    if loaded:
        rows += form_rows(loaded)
    say_table(rows)
    if loaded:
        say()
        say_table(parts_table(loaded))


def _show_fits(name: str, dims: ModelDims, machine: Machine, as_json: bool) -> None:
    fits = list(all_fits(dims, machine))
    if as_json:
        for fit in fits:
            say_json(
                {
                    "use": fit.use,
                    "fits": fit.fits,
                    "settings": list(fit.settings),
                    "needed_bytes": fit.needed_bytes,
                    "phase": fit.estimate.phase,
                    "parts": fit.estimate.parts,
                    "context": fit.context,
                    "context_bytes": fit.context_bytes,
                    "free_bytes": machine.free,
                    "device": machine.device,
                }
            )
        return
    say(f"{name} on this machine's {'GPU' if machine.device == 'cuda' else 'CPU'}:")
    say()
    say_table([(fit.use, fit.sentence) for fit in fits])
    for what in dims.estimated:
        say(f"Estimated, because it is unknown: {what}.")


def fit_facts(fit: MemoryFit | None) -> dict[str, Any]:
    """Whether a model fits, for JSON."""
    if fit is None:
        return {
            "fits": None,
            "reason": "the memory that it needs cannot be estimated",
            "needed_bytes": None,
        }
    return {"fits": fit.fits, "reason": fit.reason, "needed_bytes": fit.needed_bytes}


def form_rows(loaded: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows about a loaded model."""
    return [
        (
            "loaded as",
            f"{loaded['quantization']}, computes in {loaded['compute_dtype']}, {loaded['device']}",
        ),
        ("memory", format_size(loaded["memory_bytes"])),
        ("context", f"{loaded['context_length']:,} tokens"),
        ("sees", "pictures and text" if loaded["vision"] else "text only"),
    ]


def _loaded(name: str) -> dict[str, Any]:
    chosen = load_settings().model
    settings = msgspec.structs.replace(
        chosen, name=name, adapter=chosen.adapter if name == chosen.name else ""
    )
    progress = Progress()
    progress.show(f"Loading {name} to inspect its parts")
    try:
        return load_parts(settings)
    finally:
        progress.clear()


@models.command()
@click.argument("source", metavar="FOLDER-OR-HUB-ID")
@click.option(
    "--name", default="", help="The name of a folder's model; by default, the folder's name."
)
def add(source: str, name: str) -> None:
    """Add the model in a folder, or fetch one from the hub.

    A model of the hub is written as OWNER/NAME or OWNER/NAME@REVISION.

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
        raise click.UsageError("--name is only for folders: a fetched model keeps its hub id.")
    else:
        if not sys.stderr.isatty():
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        from mmchat.model import hub

        plan = hub.plan_download(source)
        licences = {offer.hub_id: offer.licence for offer in catalogue.OFFERS}
        note(
            f"{plan.hub_id}: {format_size(plan.bytes)} in {len(plan.files)} files, to {plan.folder}. "
            f"Licence: {licences.get(plan.hub_id, 'see its page')}. "
            "Ctrl-C stops; the same command resumes."
        )
        added = hub.fetch(plan)
    say(f'Added: {added.name}. To use it: mmchat ask --model {added.name} "…"')


def _name_of_run(folder: Path) -> str:
    """The name of the training run that wrote the model in `folder`; empty if none did."""
    folder = folder.resolve()
    is_output = folder.name == "model" and (folder.parent / "recipe.toml").is_file()
    return folder.parent.name if is_output else ""


@models.command()
@click.argument("name", metavar="M")
@yes_option
def remove(name: str, yes: bool) -> None:
    """Remove a fetched model, or forget a folder (its files are kept).

    \b
    Example:
      mmchat models remove HuggingFaceTB/SmolVLM-256M-Instruct
    """
    if not (yes or confirm(f"Remove {name}?")):
        return
    folder = catalogue.remove_model(name)
    say(f"Removed: {name} ({folder}{' is kept' if folder.exists() else ''})")


def _installed_fit(folder: Path, machine: Machine, form: WeightFormat) -> MemoryFit | None:
    """None if the model is damaged or its parts are unknown."""
    with contextlib.suppress(ModelError):
        return chat_fit(read_dims(folder), machine, form)
    return None


def _offers(
    without: set[str], machine: Machine, form: WeightFormat
) -> list[tuple[catalogue.Offer, dict[str, Any]]]:
    """The models of the catalogue, and whether they fit."""
    dims = catalogue.offered_dims()
    return [
        (offer, fit_facts(chat_fit(dims[offer.hub_id], machine, form)))
        for offer in catalogue.OFFERS
        if offer.hub_id not in without
    ]


def _offer(offer: catalogue.Offer, fit: dict[str, Any]) -> dict[str, Any]:
    facts = asdict(offer)
    return {"name": facts.pop("hub_id"), **facts, **fit}


def _memory(fit: dict[str, Any]) -> str:
    return format_size(fit["needed_bytes"]) if fit["needed_bytes"] else ""
