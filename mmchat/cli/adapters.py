"""`mmchat adapters`: what changes a base model, listed, shown and chosen."""

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from mmchat.cli.output import say, say_json, say_table, size
from mmchat.client import EngineClient
from mmchat.model.adapters import Adapter, check_adapter, find_adapter, list_adapters, read_card
from mmchat.settings import Settings, load_settings

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
NONE = "none"


@click.group()
def adapters() -> None:
    """Small trainings on top of a model.

    \b
    Example:
      mmchat adapters list
    """


@adapters.command("list")
@_json
def list_(as_json: bool) -> None:
    """The adapters on this machine; as JSON one a line.

    \b
    Example:
      mmchat adapters list
    """
    found = list_adapters()
    if as_json:
        for one in found:
            say_json(_object(one))
        return
    if not found:
        say("There is no adapter yet: the model answers with its own projector.")
        return
    chosen = load_settings().model.adapter
    rows = [
        (
            "*" if chosen in (one.name, str(one.folder)) else "",
            one.name,
            one.card.base.id if one.card else "",
            ", ".join(one.card.trained) if one.card else "",
            one.problem or one.origin,
        )
        for one in found
    ]
    say_table(rows, ("", "NAME", "BASE", "TRAINED", "WHERE FROM"))


@adapters.command()
@click.argument("name")
@_json
def show(name: str, as_json: bool) -> None:
    """One adapter: its base, what was trained, its measured figures.

    \b
    Example:
      mmchat adapters show digits
    """
    folder = find_adapter(name)
    one = next((one for one in list_adapters() if one.folder == folder), None)
    found = one or Adapter(folder.name, folder, "folder", read_card(folder))
    if as_json:
        say_json(_object(found))
        return
    rows = [("adapter", found.name), ("folder", str(folder)), ("on disk", size(_bytes(folder)))]
    if found.card:
        card = found.card
        rows += [
            ("base", f"{card.base.id} ({card.base.hash[:12]})"),
            ("trained", ", ".join(card.trained)),
            ("projector", card.projector),
            *((key, f"{value:g}") for key, value in card.figures.items()),
        ]
    if found.problem:
        rows.append(("problem", found.problem))
    say_table(rows)


@adapters.command()
@click.argument("name")
def use(name: str) -> None:
    """Answer with this adapter from now on; `none` is the model's own projector.

    It is written into settings.toml, and told to the engine where it holds the model.

    \b
    Examples:
      mmchat adapters use digits
      mmchat adapters use none
    """
    settings = load_settings()
    wanted = ""
    if name != NONE:
        folder = _fitting(name, settings.model.name)
        wanted = str(folder) if name.startswith(("/", ".", "~")) else name
    told = asyncio.run(_tell_engine(settings, wanted))
    from mmchat.cli.settings_file import set_value

    file = set_value("model", "adapter", wanted)
    what = wanted or "the model's own projector"
    say(f"In use: {what} ({file}{'; the engine has switched' if told else ''})")


def _fitting(name: str, model: str) -> Path:
    """The adapter's folder. Raises AdapterError unless it was trained on the weights of `model`."""
    from mmchat.model.catalogue import resolve_model
    from mmchat.model.checkpoint import weights_hash

    return check_adapter(name, model, weights_hash(resolve_model(model)))


async def _tell_engine(settings: Settings, adapter: str) -> bool:
    """Whether an engine runs that holds the settings' model, and has switched."""
    if settings.engine.url:
        return False
    client = EngineClient(settings)
    try:
        status = await client.status()
        if status is None or status.state != "ready" or status.model != settings.model.name:
            return False
        await client.use_adapter(adapter)
        return True
    finally:
        await client.aclose()


def _object(one: Adapter) -> dict[str, Any]:
    card = msgspec.to_builtins(one.card) if one.card else {}
    return {
        **card,
        "name": one.name,
        "folder": str(one.folder),
        "origin": one.origin,
        "problem": one.problem,
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
