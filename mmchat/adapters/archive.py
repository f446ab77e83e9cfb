"""Exports an adapter to a zip file and imports one from a zip file or a folder, without torch.

Imports are not trusted. Only the known files of an adapter are copied, and none that is larger than it
declares or than its kind can be. Each file is checked to be what its name says. Everything stays in a
temporary folder until it is complete, and nothing is ever overwritten.
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
import tomli_w

from mmchat.adapters.card import (
    CARD,
    LORA,
    LORA_CONFIG,
    LORA_WEIGHTS,
    PROJECTOR,
    VISION_TOWER,
    Base,
    Card,
    adapter_weights,
    find_adapter,
    free_folder,
    is_name,
    name_from_text,
    read_card,
    write_card,
)
from mmchat.adapters.compatibility import check_card, check_fits, find_base
from mmchat.adapters.lora_file import float_tensors, read_lora_file
from mmchat.adapters.source import AdapterSource, open_source
from mmchat.display.numbers import format_size
from mmchat.errors import AdapterError, ImageError, describe_error
from mmchat.files import open_synced, partial_file
from mmchat.images import read_picture
from mmchat.model.catalogue import resolve_model
from mmchat.model_files import weights_hash
from mmchat.settings import paths, private_dir

ADAPTER_FILES: dict[str, int] = {
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
"""The files of an adapter, and the maximum size of each in bytes; 0 means limited by the disk only."""

_RESERVE_BYTES = 200_000_000  # stay free on the disk
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # a fixed date, so that the same adapter gives the same bytes


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The zip file that was written."""

    file: Path
    bytes: int
    skipped: tuple[str, ...]
    """Files of the folder that are not part of an adapter."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The adapter that was imported."""

    folder: Path
    card: Card
    base: str
    """The name of its base on this machine; "" if the base is not here."""
    skipped: tuple[str, ...]
    """Files of the source that are not part of an adapter."""


def export_adapter(name: str, file: Path) -> ExportResult:
    """Writes the adapter `name` to a zip file, always with the same bytes.

    Raises AdapterError if the adapter is incomplete, or if the file exists or cannot be written.
    """
    folder = find_adapter(name)
    read_card(folder)
    adapter_weights(folder)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }
    # A symbolic link could export any file of this user.
    chosen = {k: path for k, path in files.items() if k in ADAPTER_FILES and not path.is_symlink()}
    if file.exists() or file.is_symlink():
        raise AdapterError(f"{file} already exists: choose another file.")
    try:
        with partial_file(file, private=False) as partial:
            with open_synced(partial) as stream:
                _write_zip(stream, folder.name, chosen)
            _move_without_overwriting(partial, file)
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be written ({error.strerror}): free some disk space, or choose another place."
        ) from error
    return ExportResult(file, file.stat().st_size, tuple(k for k in files if k not in chosen))


def import_adapter(source: Path, name: str = "", base: str = "") -> ImportResult:
    """Imports the adapter in a zip file or a folder, called `name` or by the name in its card.

    A stock peft LoRA has no adapter.toml; it gets one for the model `base`. Raises AdapterError if
    the adapter is unsafe or incomplete, does not fit its base, or if its name is taken; ModelError if
    there is no model `base`.
    """
    root = private_dir(paths().adapters)
    with open_source(source, ADAPTER_FILES) as opened:
        _check_disk_space(opened, root)
        scratch = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
        try:
            for file in opened.files:
                target = scratch / file
                private_dir(target.parent)
                opened.copy(file, target)
            card, base_name = _validate(scratch, opened, base)
            if not name and is_name(card.name):
                name = card.name
            name = name or name_from_text(source.stem, default="adapter")
            target = free_folder(name)
            card = msgspec.structs.replace(card, name=name)
            tables = tomllib.loads((scratch / CARD).read_text(encoding="utf-8"))
            renamed = tomli_w.dumps({**tables, "name": name})  # nothing else in the file changes
            (scratch / CARD).write_text(renamed, encoding="utf-8")
            _claim(scratch, target)
        except OSError as error:
            raise AdapterError(
                f"{root} cannot be written ({error.strerror}): free some disk space, or fix its permissions."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return ImportResult(target, card, base_name, opened.skipped)


def _validate(folder: Path, opened: AdapterSource, base: str) -> tuple[Card, str]:
    """Checks what was copied to `folder`; -> (its card, the name of its base here). Raises AdapterError."""
    with opened.named_in_errors(folder):
        _validate_files(folder)
        named = resolve_model(base) if base else None
        if not (folder / CARD).is_file():
            if f"{LORA}/{LORA_CONFIG}" not in opened.files:
                raise AdapterError(f"{opened.source} is not an adapter: choose another.")
            if named is None:
                raise AdapterError(
                    f"{opened.source} is a LoRA adapter that does not say which weights it was trained on: "
                    "name its base with --base MODEL."
                )
            adapter_weights(folder)
            name = name_from_text(opened.source.stem, default="adapter")
            write_card(folder, Card(name, Base(base, weights_hash(named)), "", ("lora",)))
        card = read_card(folder)
        adapter_weights(folder)
        here = (base, named) if named is not None else find_base(card.base)
        if here is None:
            return card, ""
        check_card(card, here[1], here[0])
        check_fits(folder, here[1], here[0])
        return card, here[0]


def _validate_files(folder: Path) -> None:
    """Raises AdapterError if a file is not what its name says."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if file.suffix == ".safetensors":
                float_tensors(file)
            elif file.suffix == ".png":
                if read_picture(file).mime != "image/png":
                    raise ValueError("it is not a PNG")
            elif file.suffix == ".toml":
                tomllib.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            else:
                file.read_text(encoding="utf-8")
        except (ValueError, RecursionError, ImageError) as error:
            raise AdapterError(
                f"{file} is not a valid {file.suffix.lstrip('.') or 'text'} file ({describe_error(error)}): get the adapter "
                "again."
            ) from error
    if (folder / LORA).is_dir():
        read_lora_file(folder / LORA)


def _check_disk_space(opened: AdapterSource, root: Path) -> None:
    needed = sum(opened.files.values())
    free = shutil.disk_usage(root).free
    if needed + _RESERVE_BYTES > free:
        raise AdapterError(
            f"{opened.source} takes {format_size(needed)}, but only {format_size(free)} are free in {root}: "
            "free some disk space, or set MMCHAT_HOME to a folder on a larger disk."
        )


def _claim(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`. Raises AdapterError if another process created `target` first."""
    try:
        target.mkdir(mode=0o700)
    except FileExistsError:
        raise AdapterError(
            f"There already is an adapter {target.name}: choose another name with --name."
        ) from None
    try:
        folder.rename(target)  # replaces the empty folder in one step
    except OSError:
        target.rmdir()
        raise


def _move_without_overwriting(partial: Path, target: Path) -> None:
    try:
        os.link(partial, target)
    except FileExistsError:
        raise AdapterError(f"{target} already exists: choose another file.") from None
    except OSError:  # a file system without links
        partial.rename(target)


def _write_zip(stream: IO[bytes], name: str, files: dict[str, Path]) -> None:
    # Not compressed: weights hardly shrink, and the output of zlib differs between versions.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for inner in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{inner}", _ZIP_DATE)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            size = files[inner].stat().st_size
            with (
                files[inner].open("rb") as source,
                archive.open(entry, "w", force_zip64=size >= 1 << 31) as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
