"""Adapters that go out as one file and come in from anywhere. Nothing here needs torch.

What comes in is not trusted: only the files that an adapter is made of are taken, none of them larger
than it says or than such a file can be, each is checked to be what its name says, and all of it lies
in a folder of its own until it is whole. Nothing that is there already is ever overwritten.
"""

import json
import os
import shutil
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from mmchat.adapters.card import (
    CARD,
    LORA,
    LORA_CONFIG,
    LORA_WEIGHTS,
    PROJECTOR,
    VISION_TOWER,
    Card,
    adapter_weights,
    find_adapter,
    free_folder,
    is_name,
    name_from_text,
    read_card,
    write_card,
)
from mmchat.adapters.compatibility import check_card, check_fits, find_base, named_base
from mmchat.adapters.lora_file import float_tensors, read_lora_file
from mmchat.adapters.unpack import Found, open_source
from mmchat.display.numbers import format_size
from mmchat.errors import AdapterError, ImageError
from mmchat.files import open_synced, partial_file
from mmchat.settings import paths, private_dir

KNOWN: dict[str, int] = {
    CARD: 1 << 20,
    PROJECTOR: 0,
    VISION_TOWER: 0,
    f"{LORA}/{LORA_CONFIG}": 1 << 20,
    f"{LORA}/{LORA_WEIGHTS}": 0,
    f"{LORA}/README.md": 4 << 20,
    "README.md": 4 << 20,
    "recipe.toml": 1 << 20,
    "evaluation.json": 16 << 20,
    "loss.png": 16 << 20,
    "confusion.png": 16 << 20,
}
"""What an adapter's folder may hold, and the most bytes of each; 0 is as many as there is room for."""

_SPARE = 200_000_000  # bytes that stay free on the disk
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file knows: the same adapter, the same bytes


@dataclass(frozen=True, slots=True)
class Exported:
    """A zip file that was written."""

    file: Path
    bytes: int
    left_out: tuple[str, ...]
    """Files of the folder that are none of an adapter's."""


@dataclass(frozen=True, slots=True)
class Imported:
    """An adapter that came in. `base` is the name of its base on this machine, "" where it is not here."""

    folder: Path
    card: Card
    base: str
    left_out: tuple[str, ...]


def export_adapter(name: str, file: Path) -> Exported:
    """Writes the adapter `name` as a zip file, the same bytes each time.

    Raises AdapterError where the adapter is not whole, the file is there already or cannot be written.
    """
    folder = find_adapter(name)
    read_card(folder)
    adapter_weights(folder)
    here = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }
    # A link would carry away what it leads to.
    taken = {name: path for name, path in here.items() if name in KNOWN and not path.is_symlink()}
    if file.exists() or file.is_symlink():
        raise AdapterError(f"{file} is there already: name another file.")
    try:
        with partial_file(file, private=False) as partial:
            with open_synced(partial) as stream:
                _write_zip(stream, folder.name, taken)
            _put(partial, file)
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be written ({error.strerror}): make room, or name another place."
        ) from error
    return Exported(file, file.stat().st_size, tuple(name for name in here if name not in taken))


def import_adapter(source: Path, name: str = "", base: str = "") -> Imported:
    """Makes the adapter in a zip file or a folder one of the person's own.

    A stock peft LoRA, which has no adapter.toml, gets one for the model `base`. Without a `name` it
    keeps its own. Raises AdapterError where it is unsafe, not whole, does not fit its base or its
    name is taken, ModelError where there is no model `base`.
    """
    root = private_dir(paths().adapters)
    with open_source(source, KNOWN) as found:
        _check_room(found, root)
        scratch = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
        try:
            for file in found.files:
                target = scratch / file
                private_dir(target.parent)
                found.copy(file, target)
            card, base_name = _checked(scratch, found, base)
            wanted = name or (
                card.name if is_name(card.name) else name_from_text(source.stem, default="adapter")
            )
            target = free_folder(wanted)
            card = msgspec.structs.replace(card, name=wanted)
            _rename_card(scratch, card)
            _claim(scratch, target)
        except OSError as error:
            raise AdapterError(
                f"{root} cannot be written ({error.strerror}): make room, or mend its permissions."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Imported(target, card, base_name, found.left_out)


def _checked(folder: Path, found: Found, base: str) -> tuple[Card, str]:
    """(the card, the name of its base here) of what was copied; raises AdapterError."""
    with found.told_of(folder):
        _check_files(folder)
        named = named_base(base) if base else None
        if not (folder / CARD).is_file():
            if f"{LORA}/{LORA_CONFIG}" not in found.files:
                raise AdapterError(f"{found.source} holds nothing of an adapter: name another.")
            if named is None:
                raise AdapterError(
                    f"{found.source} is a LoRA adapter that says of no weights that it was trained on "
                    "them: name its base with --base MODEL."
                )
            adapter_weights(folder)
            write_card(
                folder,
                Card(name_from_text(found.source.stem, default="adapter"), named[0], "", ("lora",)),
            )
        card = read_card(folder)
        adapter_weights(folder)
        if named is not None:
            check_card(card, named[1], named[0].id)
            here: tuple[str, Path] | None = (named[0].id, named[1])
        else:
            here = find_base(card.base)
        if here is None:
            return card, ""
        check_card(card, here[1], here[0])
        check_fits(folder, here[1], here[0])
        return card, here[0]


def _check_files(folder: Path) -> None:
    """Each file is what its name says; raises AdapterError."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if file.suffix == ".safetensors":
                float_tensors(file)
            elif file.suffix == ".png":
                from mmchat.images import read_picture

                if read_picture(file).mime != "image/png":
                    raise ValueError("it is no PNG")
            elif file.suffix == ".toml":
                tomllib.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            else:
                file.read_text(encoding="utf-8")
        except (ValueError, RecursionError, ImageError) as error:
            reason = " ".join(str(error).split())[:200]
            raise AdapterError(
                f"{file} is not what its name says ({reason}): get the adapter again."
            ) from error
    if (folder / LORA).is_dir():
        read_lora_file(folder / LORA)


def _check_room(found: Found, root: Path) -> None:
    needed = sum(found.files.values())
    free = shutil.disk_usage(root).free
    if needed + _SPARE > free:
        raise AdapterError(
            f"{found.source} takes {format_size(needed)} and {format_size(free)} are free in {root}: "
            "make room, or set MMCHAT_HOME to a larger disk."
        )


def _rename_card(folder: Path, card: Card) -> None:
    """The name in adapter.toml; whatever else it says stays."""
    import tomli_w

    whole = tomllib.loads((folder / CARD).read_text(encoding="utf-8"))
    (folder / CARD).write_text(tomli_w.dumps({**whole, "name": card.name}), encoding="utf-8")


def _claim(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`, which must not be there: whoever comes second is told."""
    try:
        target.mkdir(mode=0o700)
    except FileExistsError:
        raise AdapterError(
            f"There is an adapter {target.name} already: choose another with --name."
        ) from None
    try:
        folder.rename(target)  # onto an empty folder, in one step
    except OSError:
        target.rmdir()
        raise


def _put(partial: Path, target: Path) -> None:
    """`partial` under its final name, never over another file."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise AdapterError(f"{target} is there already: name another file.") from None
    except OSError:  # a file system without links
        partial.rename(target)


def _write_zip(stream: IO[bytes], name: str, files: dict[str, Path]) -> None:
    # Stored: weights hardly get smaller, and what zlib makes differs from version to version.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for inner in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{inner}", _DATE)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            size = files[inner].stat().st_size
            with (
                files[inner].open("rb") as source,
                archive.open(entry, "w", force_zip64=size >= 1 << 31) as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
