"""Adapters: folders that change what a base model knows, and nothing else.

    NAME/adapter.toml               what it is: name, base, projector, figures
    NAME/projector.safetensors      the projector's tensors, if it was trained
    NAME/vision_tower.safetensors   tensors of the vision encoder, if some were trained
    NAME/lora/                      a stock peft adapter, if there is one

An adapter names its base by the hash of its weights and is refused on any
other. Weights are safetensors only. Nothing here needs torch; `applying` puts an adapter on.
"""

import contextlib
import hashlib
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from mmchat.errors import AdapterError, ModelError
from mmchat.files import open_synced, partial_file, write_file
from mmchat.model.checkpoint import read_header
from mmchat.settings import NO_ADAPTER, builtin_adapters, named_folder, paths

CARD, PROJECTOR, LORA = "adapter.toml", "projector.safetensors", "lora"
VISION_TOWER = "vision_tower.safetensors"
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_CARD_LIMIT = 1 << 20
LONGEST_NAME = 100
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


class Base(msgspec.Struct, frozen=True):
    """The model that an adapter was trained on."""

    id: str
    hash: str
    """`weights_hash` of its folder."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A measured share or mean, of how many, and how sure."""

    value: float
    n: int = 0
    """Of how many it was measured; 0 where that is not known."""
    interval: tuple[float, float] | None = None
    """95 %, lowest and highest."""


class Card(msgspec.Struct, frozen=True):
    """adapter.toml. Further tables in it are left alone."""

    name: str
    base: Base
    projector: str = ""
    """The kind of projector, as `projector_type` of the base's configuration."""
    trained: tuple[str, ...] = ()
    """What was trained: "projector", "lora", "vision_tower"."""
    figures: Mapping[str, float | Figure] = {}
    """Measured figures by name, such as the share of right answers."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on this machine. `card` is None where `problem` says why it cannot be used."""

    name: str
    folder: Path
    origin: str
    """ "built in" or "yours"."""
    card: Card | None
    problem: str = ""


def list_adapters() -> list[Adapter]:
    """Every adapter that ships with mmchat and every one of the person's, by name."""
    found: dict[str, Adapter] = {}
    for root, origin in ((builtin_adapters(), "built in"), (paths().adapters, "yours")):
        with contextlib.suppress(OSError):
            for folder in sorted(root.iterdir()):
                # One with a dot is being written or removed.
                if not folder.name.startswith(".") and _has_card(folder):
                    found.setdefault(folder.name, _describe(folder.name, folder, origin))
    return sorted(found.values(), key=lambda adapter: adapter.name.lower())


def is_name(name: str) -> bool:
    """Whether an adapter of this person's can be called so."""
    return _NAME.fullmatch(name) is not None and name != NO_ADAPTER


def name_from_text(text: str, default: str) -> str:
    """A name for an adapter made from any text, such as a file's name; `default` if nothing is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:80]
    return name if is_name(name) else default


def find_adapter(name: str) -> Path:
    """The folder of the adapter `name`: built in, the person's, or a path.

    A path begins with `/`, `.` or `~`. Raises AdapterError where there is none.
    """
    if name.startswith(("/", ".", "~")) or Path(name).is_absolute():
        folder = named_folder(name) or Path(name)
    else:
        if not is_name(name):
            raise AdapterError(
                f"{name!r} is no adapter's name: see `mmchat adapters list`, or give a folder as "
                "./FOLDER."
            )
        places = [builtin_adapters() / name, paths().adapters / name]
        folder = next((place for place in places if _has_card(place)), places[-1])
    if not _has_card(folder):
        raise AdapterError(
            f"There is no adapter {name} ({folder} holds no {CARD}): see `mmchat adapters list`."
        )
    return folder.absolute()


def read_card(folder: Path) -> Card:
    """The checked adapter.toml of a folder; raises AdapterError."""
    file = folder / CARD
    try:
        if file.stat().st_size > _CARD_LIMIT:
            raise ValueError("it is larger than 1 MB")
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Card)
    except FileNotFoundError:
        raise AdapterError(
            f"{folder} holds no {CARD}, so it is no adapter: name another folder, or make it again."
        ) from None
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be read ({error.strerror}): look at its permissions and its disk."
        ) from error
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise AdapterError(
            f"{file} cannot be used ({error}): mend that line, or make the adapter again."
        ) from error


def check_adapter(name: str, model: str, weights_hash: str, projector: str = "") -> Path:
    """The folder of the adapter `name`, found fit for a base before any of it is touched.

    `model`, `weights_hash` and `projector` (its kind, "" for none of ours) are the base's.
    Raises AdapterError where it cannot be found or read, or was trained on other weights.
    """
    folder = find_adapter(name)
    card = read_card(folder)
    adapter_weights(folder)
    if card.base.hash != weights_hash:
        raise AdapterError(
            f"{card.name} was trained for {card.base.id} ({card.base.hash[:12]}), not for "
            f"{model} ({weights_hash[:12]}): start with --model {card.base.id}, or "
            "choose another adapter."
        )
    if card.projector and projector and card.projector != projector:
        raise AdapterError(
            f"{card.name} has a projector of the kind {card.projector}, and {model} one of "
            f"the kind {projector}: choose another adapter."
        )
    return folder


def write_card(folder: Path, card: Card) -> None:
    """Writes adapter.toml, the whole new file or none of it. Raises OSError where it cannot."""
    write_file(folder / CARD, tomli_w.dumps(msgspec.to_builtins(card)), synced=True)


def adapter_hash(folder: Path) -> str:
    """sha256 over an adapter's weights and what tells how they are applied."""
    digest = hashlib.sha256()
    for file in (*adapter_weights(folder), folder / LORA / LORA_CONFIG):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while stretch := stream.read(1 << 20):
                    digest.update(stretch)
    return digest.hexdigest()


def rename_adapter(old: str, new: str) -> Path:
    """Gives one of the person's own adapters another name; -> its folder.

    The folder's new name is one step that happens or does not; the card follows. Raises AdapterError
    where `old` is not one's own, `new` is no name or is taken, or the files cannot be changed: then
    all is as before.
    """
    folder = own_adapter(old)
    target = free_folder(new)
    try:
        whole = tomllib.loads((folder / CARD).read_text(encoding="utf-8"))
        with partial_file(folder / CARD) as partial:
            with open_synced(partial) as stream:
                tomli_w.dump({**whole, "name": new}, stream)
            folder.rename(target)
            (target / partial.name).replace(target / CARD)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(
            f"{folder} cannot be renamed ({reason}): mend its {CARD} or its permissions."
        ) from error
    return target


def free_folder(name: str) -> Path:
    """Where a new adapter `name` of this person's would lie. Raises AdapterError where it cannot."""
    if not is_name(name):
        raise AdapterError(
            f"{name!r} is no name for an adapter: take letters, digits, . _ and -, beginning with a "
            f"letter or a digit, and not {NO_ADAPTER}."
        )
    folder = paths().adapters / name
    if folder.exists() or folder.is_symlink() or _has_card(builtin_adapters() / name):
        raise AdapterError(f"There is an adapter {name} already: choose another name.")
    return folder


def own_adapter(name: str) -> Path:
    """The folder of one of the person's own adapters.

    Raises AdapterError where it is built in, given as a path, or not there.
    """
    folder = find_adapter(name)
    if folder.parent != paths().adapters.absolute():
        raise AdapterError(
            f"{folder} is not in {paths().adapters}, and is left alone: remove or rename the folder "
            "yourself if it is yours."
        )
    return folder


def remove_adapter(name: str) -> Path:
    """Removes one of the person's own adapters with all its files; -> its folder.

    Raises AdapterError where it is built in, given as a path, or not there.
    """
    folder = own_adapter(name)
    try:
        if folder.is_symlink():
            folder.unlink()  # what it leads to stays where it is
        else:
            shutil.rmtree(folder)
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be removed whole ({error.strerror}): look at its permissions, then "
            "remove it again."
        ) from error
    return folder


def _has_card(folder: Path) -> bool:
    try:
        return (folder / CARD).is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _describe(name: str, folder: Path, origin: str) -> Adapter:
    try:
        card = read_card(folder)
        adapter_weights(folder)
    except AdapterError as error:
        return Adapter(name, folder, origin, None, str(error))
    return Adapter(name, folder, origin, card)


def adapter_weights(folder: Path) -> list[Path]:
    """The weights of an adapter, each a whole safetensors file; raises AdapterError."""
    places = (folder / PROJECTOR, folder / VISION_TOWER, folder / LORA / LORA_WEIGHTS)
    found = [file for file in places if file.is_file()]
    if (folder / LORA).is_dir() and folder / LORA / LORA_WEIGHTS not in found:
        raise AdapterError(
            f"{folder / LORA} holds no {LORA_WEIGHTS}, and other forms (.bin, .pt) can run any "
            "program and are never loaded: save it as safetensors."
        )
    if not found:
        raise AdapterError(
            f"{folder} holds no weights ({PROJECTOR}, {VISION_TOWER} or {LORA}/{LORA_WEIGHTS}): make "
            "the adapter again."
        )
    for file in found:
        try:
            read_header(file)
        except ModelError as error:
            raise AdapterError(str(error)) from error
    return found
