"""`mmchat adapters`: lists, shows, chooses, renames and removes adapters."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import click
import msgspec

from mmchat.adapters.card import (
    LORA,
    Adapter,
    Metric,
    check_adapter,
    find_adapter,
    list_adapters,
    own_adapter,
    read_card,
    remove_adapter,
    rename_adapter,
)
from mmchat.cli.adapter_files import export, import_, merge
from mmchat.cli.output import confirm, json_option, say, say_json, say_table, yes_option
from mmchat.client import EngineClient
from mmchat.display.numbers import format_size
from mmchat.errors import MmchatError, SettingsError
from mmchat.files import write_file
from mmchat.settings import (
    NO_ADAPTER,
    Settings,
    load_settings,
    paths,
    private_dir,
    read_settings_file,
)

_README_SHOWN = 20_000


@click.group()
def adapters() -> None:
    """Manage adapters: small trained additions to a model.

    \b
    Example:
      mmchat adapters list
    """


@adapters.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the adapters; with --json, one object per line.

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
        say("There is no adapter yet. To train one: mmchat train DATA --name NAME")
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
    say_table(rows, ("", "NAME", "BASE", "TRAINED", "ORIGIN"))


@adapters.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the base, metrics and files of an adapter.

    \b
    Example:
      mmchat adapters show digits
    """
    from mmchat.adapters.compatibility import find_base

    folder = find_adapter(name)
    one = next((one for one in list_adapters() if one.folder == folder), None)
    found = one or Adapter(folder.name, folder, "folder", read_card(folder))
    here = find_base(found.card.base) if found.card else None
    files = _files(folder)
    if as_json:
        here_name = here[0] if here else None
        say_json({**_object(found), "base_here": here_name, "files": files})
        return
    rows = [("adapter", found.name), ("folder", str(folder)), ("from", found.origin)]
    if found.card:
        card = found.card
        rows += [
            ("base", f"{card.base.id} ({card.base.hash[:12]})"),
            (
                "base installed",
                f"yes, as {here[0]}" if here else "no: add it with `mmchat models add`",
            ),
            ("trained", ", ".join(card.trained)),
            ("lora", _lora(folder)),
            ("projector", card.projector),
            *((key, _format_metric(value)) for key, value in card.metrics.items()),
        ]
    if found.problem:
        rows.append(("problem", found.problem))
    say_table([row for row in rows if row[1]])
    say()
    sizes = {file: format_size(count) for file, count in files.items()}
    say_table(list(sizes.items()), ("FILE", "SIZE"))
    if readme := _readme(folder):
        say(f"\n{readme}")


def _format_metric(value: float | Metric) -> str:
    """`0.93 (n = 60, 95 % from 0.84 to 0.97)`"""
    if not isinstance(value, Metric):
        return f"{value:g}"
    about = [f"n = {value.n:,}"] if value.n else []
    if value.interval is not None:
        low, high = value.interval
        about.append(f"95 % from {low:.3g} to {high:.3g}")
    return f"{value.value:.3g}" + (f" ({', '.join(about)})" if about else "")


def _lora(folder: Path) -> str:
    """`rank 16 on 35 layers, DoRA`; empty if there is no readable LoRA."""
    from mmchat.adapters.lora_file import read_lora_file

    try:
        layers = read_lora_file(folder / LORA).layers.values()
    except MmchatError:
        return ""
    ranks = sorted({layer.rank for layer in layers})
    kind = ", DoRA" if any(layer.dora for layer in layers) else ""
    return f"rank {' to '.join(map(str, ranks[:1] + ranks[1:][-1:]))} on {len(layers)} layers{kind}"


def _files(folder: Path) -> dict[str, int]:
    """The size of each file in bytes, by its name in the folder."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _readme(folder: Path) -> str:
    file = folder / "README.md"
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(_README_SHOWN + 1)
    except OSError:
        return ""
    if len(text) > _README_SHOWN:
        text = f"{text[:_README_SHOWN]} …\n(the full text: {file})"
    return text.strip()


@adapters.command()
@click.argument("name")
def use(name: str) -> None:
    """Answer with this adapter from now on, or without one (`none`).

    Saves the choice in settings.toml. If the engine has the model loaded, it switches, too.

    \b
    Examples:
      mmchat adapters use digits
      mmchat adapters use none
    """
    settings = load_settings()
    adapter = ""
    if name != NO_ADAPTER:
        folder = _check_base(name, settings.model.name)
        adapter = str(folder) if name.startswith(("/", ".", "~")) else name
    switched = asyncio.run(_switch_engine(settings, adapter))
    file = _save_choice(adapter)
    what = adapter or "no adapter"
    say(f"In use: {what} ({file}{'; the engine has switched' if switched else ''})")


@adapters.command()
@click.argument("old")
@click.argument("new")
def rename(old: str, new: str) -> None:
    """Rename one of your adapters.

    settings.toml and the engine use the new name, too.

    \b
    Example:
      mmchat adapters rename birds garden-birds
    """
    before = own_adapter(old)
    folder = rename_adapter(old, new)
    changes = _update_users(before, new)
    say(f"Renamed: {before.name} is now {new} ({folder}{changes})")


@adapters.command()
@click.argument("name")
@yes_option
def remove(name: str, yes: bool) -> None:
    """Remove one of your adapters with all its files.

    It is also removed from settings.toml.

    \b
    Example:
      mmchat adapters remove birds
    """
    folder = own_adapter(name)
    if not (yes or confirm(f"Remove {folder.name} and all its files ({folder})?")):
        return
    remove_adapter(name)
    changes = _update_users(folder, "")
    say(f"Removed: {folder.name} ({folder}{changes})")


for command in (merge, export, import_):
    adapters.add_command(command)


def _update_users(before: Path, now: str) -> str:
    """Makes settings.toml and the engine use `now` if they use the adapter in the folder `before`.

    Returns what has changed, as the end of a sentence.
    """
    load_settings()  # raises SettingsError if the file is invalid
    # The file itself, because the environment may override it.
    table = read_settings_file(paths().settings_file).get("model", {})
    names = (before.name, str(before))
    changed = []
    if table.get("adapter") in names:
        changed.append(f"{_save_choice(now)} was changed")
    # The files are renamed or removed already, so an unreachable engine does not matter.
    with contextlib.suppress(MmchatError):
        if asyncio.run(_switch_engine(load_settings(), now, names)):
            changed.append("the engine has switched")
    return "".join(f"; {one}" for one in changed)


def _save_choice(adapter: str) -> Path:
    """Writes the adapter into settings.toml, atomically; returns the file.

    Other values are kept, but comments are lost. Raises SettingsError if the file is invalid or
    cannot be written.
    """
    import tomli_w

    load_settings()  # never overwrite an invalid file
    file = paths().settings_file.resolve()  # keep a link
    tables = read_settings_file(file)
    tables.setdefault("model", {})["adapter"] = adapter
    private_dir(file.parent)
    try:
        write_file(file, tomli_w.dumps(tables), synced=True)
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be written ({error.strerror}): check its disk and permissions."
        ) from error
    return file


def _check_base(name: str, model: str) -> Path:
    """The adapter's folder. Raises AdapterError if it was not trained on the weights of `model`."""
    from mmchat.model.catalogue import resolve_model
    from mmchat.model_files import weights_hash

    return check_adapter(name, model, weights_hash(resolve_model(model)))


async def _switch_engine(settings: Settings, adapter: str, instead: tuple[str, ...] = ()) -> bool:
    """Switches the engine to `adapter`; returns whether it did.

    It switches if it has the settings' model loaded or, with `instead`, one of these adapters.
    """
    if settings.engine.url:
        return False
    client = EngineClient(settings)
    try:
        status = await client.status()
        if status is None or status.state != "ready":
            return False
        wrong = status.adapter not in instead if instead else status.model != settings.model.name
        if wrong:
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
