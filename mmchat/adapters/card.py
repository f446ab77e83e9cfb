"""Adapter folders and their cards: list, find, check, rename and remove, without torch.

    NAME/adapter.toml               the card: name, base, projector, metrics
    NAME/projector.safetensors      the projector's tensors, if it was trained
    NAME/vision_tower.safetensors   tensors of the vision encoder, if some were trained
    NAME/lora/                      a stock peft adapter, if LoRA was trained

An adapter names its base by the hash of the base's weights and is refused on any other.
Weights are safetensors only.
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
from mmchat.field_errors import explain
from mmchat.files import open_synced, partial_file, write_file
from mmchat.model_files import read_header
from mmchat.settings import NO_ADAPTER, builtin_adapters, named_folder, paths

CARD, PROJECTOR, LORA = "adapter.toml", "projector.safetensors", "lora"
VISION_TOWER = "vision_tower.safetensors"
LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CARD_BYTES = 1 << 20
MAX_NAME_LENGTH = 100
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}")


class Base(msgspec.Struct, frozen=True):
    """The model that an adapter was trained on."""

    id: str
    hash: str
    """`weights_hash` of its folder."""


class Metric(msgspec.Struct, frozen=True, omit_defaults=True):
    """A measured share or mean, with its sample size and confidence interval."""

    value: float
    n: int = 0
    """The number of samples; 0 if it is not known."""
    interval: tuple[float, float] | None = None
    """95 %: lower and upper bound."""


class Card(msgspec.Struct, frozen=True):
    """The content of adapter.toml. Other tables in the file are ignored and kept."""

    name: str
    base: Base
    projector: str = ""
    """`projector_type` of the base's configuration; "" if no projector was trained."""
    trained: tuple[str, ...] = ()
    """What was trained: "projector", "lora", "vision_tower"."""
    metrics: Mapping[str, float | Metric] = {}
    """By name, such as the share of correct answers."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on this machine. If it cannot be used, `card` is None and `problem` says why."""

    name: str
    folder: Path
    origin: str
    """ "built in" or "yours"."""
    card: Card | None
    problem: str = ""


def list_adapters() -> list[Adapter]:
    """All adapters, those that come with mmchat and the user's own, sorted by name."""
    adapters: dict[str, Adapter] = {}
    for root, origin in ((builtin_adapters(), "built in"), (paths().adapters, "yours")):
        with contextlib.suppress(OSError):
            for folder in sorted(root.iterdir()):
                # A folder whose name begins with a dot is being written or removed.
                if not folder.name.startswith(".") and _has_card(folder):
                    adapters.setdefault(folder.name, _describe(folder.name, folder, origin))
    return sorted(adapters.values(), key=lambda adapter: adapter.name.lower())


def is_name(name: str) -> bool:
    """Whether `name` is a valid name for an adapter."""
    return _NAME.fullmatch(name) is not None and name != NO_ADAPTER


def name_from_text(text: str, default: str) -> str:
    """A name for an adapter made from any text, such as a file's name; `default` if nothing is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:80]
    return name if is_name(name) else default


def find_adapter(name: str) -> Path:
    """The folder of the adapter `name`, which is built in, the user's own, or a path.

    A path begins with `/`, `.` or `~`. Raises AdapterError if there is no such adapter.
    """
    if name.startswith(("/", ".", "~")) or Path(name).is_absolute():
        folder = named_folder(name) or Path(name)
    else:
        if not is_name(name):
            raise AdapterError(
                f"{name!r} is not a valid adapter name: see `mmchat adapters list`, or give a folder "
                "as ./FOLDER."
            )
        places = [builtin_adapters() / name, paths().adapters / name]
        folder = next((place for place in places if _has_card(place)), places[-1])
    if not _has_card(folder):
        raise AdapterError(
            f"There is no adapter {name} ({folder} has no {CARD}): see `mmchat adapters list`."
        )
    return folder.absolute()


def read_card(folder: Path) -> Card:
    """Reads and validates the adapter.toml of a folder; raises AdapterError."""
    file = folder / CARD
    try:
        if file.stat().st_size > _MAX_CARD_BYTES:
            raise ValueError("it is larger than 1 MB")
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Card)
    except FileNotFoundError:
        raise AdapterError(
            f"{folder} is not an adapter, because it has no {CARD}: choose another folder."
        ) from None
    except OSError as error:
        raise AdapterError(
            f"{file} cannot be read ({error.strerror}): check its permissions and its disk."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = explain(error) if isinstance(error, msgspec.ValidationError) else error
        raise AdapterError(
            f"{file} cannot be used ({reason}): correct that line, or get the adapter again."
        ) from error


def check_adapter(name: str, model: str, weights_hash: str, projector: str = "") -> Path:
    """Checks that the adapter `name` belongs to a base; -> the adapter's folder.

    `model`, `weights_hash` and `projector` (`projector_type`; "" if it has none) describe the base.
    Raises AdapterError if the adapter cannot be found or read, or was trained on other weights.
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
            f"{card.name} has a projector of type {card.projector}, but {model} has one of type "
            f"{projector}: choose another adapter."
        )
    return folder


def write_card(folder: Path, card: Card) -> None:
    """Writes adapter.toml atomically; raises OSError."""
    write_file(folder / CARD, tomli_w.dumps(msgspec.to_builtins(card)), synced=True)


def adapter_hash(folder: Path) -> str:
    """sha256 of an adapter's weights and of the configuration that says how they are applied."""
    digest = hashlib.sha256()
    for file in (*adapter_weights(folder), folder / LORA / LORA_CONFIG):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def rename_adapter(old: str, new: str) -> Path:
    """Renames one of the user's own adapters; -> its new folder.

    The folder is renamed in one step, then the card. Raises AdapterError if `old` is not the user's
    own, `new` is not a valid name or is taken, or the files cannot be changed; then nothing changes.
    """
    folder = own_adapter(old)
    target = free_folder(new)
    try:
        tables = tomllib.loads((folder / CARD).read_text(encoding="utf-8"))
        with partial_file(folder / CARD) as partial:
            with open_synced(partial) as stream:
                tomli_w.dump({**tables, "name": new}, stream)
            folder.rename(target)
            (target / partial.name).replace(target / CARD)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(
            f"{folder} cannot be renamed ({reason}): correct its {CARD} or its permissions."
        ) from error
    return target


def free_folder(name: str) -> Path:
    """The folder for a new adapter `name`; raises AdapterError if the name is not valid or is taken."""
    if not is_name(name):
        raise AdapterError(
            f"{name!r} is not a valid adapter name: use letters, digits, . _ and -, begin with a letter "
            f"or a digit, and do not use {NO_ADAPTER}."
        )
    folder = paths().adapters / name
    if folder.exists() or folder.is_symlink() or _has_card(builtin_adapters() / name):
        raise AdapterError(f"There already is an adapter {name}: choose another name.")
    return folder


def own_adapter(name: str) -> Path:
    """The folder of one of the user's own adapters.

    Raises AdapterError if it is built in, given as a path, or does not exist.
    """
    folder = find_adapter(name)
    if folder.parent == builtin_adapters():
        raise AdapterError(f"{name} is part of mmchat and cannot be renamed or removed.")
    if folder.parent != paths().adapters.absolute():
        raise AdapterError(
            f"{folder} is not in {paths().adapters}, so mmchat does not change it: rename or remove "
            "that folder yourself."
        )
    return folder


def remove_adapter(name: str) -> Path:
    """Removes one of the user's own adapters with all its files; -> its folder.

    Raises AdapterError as `own_adapter` does, or if a file cannot be removed.
    """
    folder = own_adapter(name)
    try:
        if folder.is_symlink():
            folder.unlink()  # the folder that it points to stays
        else:
            shutil.rmtree(folder)
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be removed completely ({error.strerror}): check its permissions, then "
            "remove it again."
        ) from error
    return folder


def _has_card(folder: Path) -> bool:
    try:
        return (folder / CARD).is_file()
    except OSError:  # for example a name that is too long, or no permission
        return False


def _describe(name: str, folder: Path, origin: str) -> Adapter:
    try:
        card = read_card(folder)
        adapter_weights(folder)
    except AdapterError as error:
        return Adapter(name, folder, origin, None, str(error))
    return Adapter(name, folder, origin, card)


def adapter_weights(folder: Path) -> list[Path]:
    """The weight files of an adapter, checked to be complete safetensors; raises AdapterError."""
    places = (folder / PROJECTOR, folder / VISION_TOWER, folder / LORA / LORA_WEIGHTS)
    files = [file for file in places if file.is_file()]
    if (folder / LORA).is_dir() and folder / LORA / LORA_WEIGHTS not in files:
        raise AdapterError(
            f"{folder / LORA} has no {LORA_WEIGHTS}; pickle files (.bin, .pt) could run any code and are "
            "never loaded: save the adapter as safetensors."
        )
    if not files:
        raise AdapterError(
            f"{folder} has no weights ({PROJECTOR}, {VISION_TOWER} or {LORA}/{LORA_WEIGHTS}): get the "
            "adapter again."
        )
    for file in files:
        try:
            read_header(file)
        except ModelError as error:
            raise AdapterError(str(error)) from error
    return files
