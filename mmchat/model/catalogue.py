"""The models that a person can choose: built in, installed, and a short list of good ones to fetch.

Nothing here needs torch, so the command line lists models at once.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mmchat.errors import ModelError, ModelNotFoundError
from mmchat.files import write_file
from mmchat.memory.model_dims import ModelDims
from mmchat.model_files import read_config, tensors
from mmchat.settings import builtin_adapters, named_folder, paths, private_dir

MARKER = ".mmchat.json"
"""Written into the folder of a fetched model when all its files are there."""
_FOLDERS = "folders.json"
_OFFERED_DIMS = Path(__file__).with_name("offered_models.json")
"""Written by `python -m tests.memory.published`."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A published checkpoint that runs in transformers' own classes; its download is about `download_gb` GB."""

    hub_id: str
    good_at: str
    parameters: str
    licence: str
    download_gb: float
    gated: bool = False


OFFERS: tuple[Offer, ...] = (
    Offer(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "short captions and simple questions on small machines",
        "0.26B",
        "Apache-2.0",
        0.5,
    ),
    Offer(
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "captions, simple documents; still small",
        "0.5B",
        "Apache-2.0",
        1.0,
    ),
    Offer(
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "several pictures in one question, at a small size",
        "0.9B",
        "Apache-2.0",
        1.8,
    ),
    Offer(
        "HuggingFaceTB/SmolVLM-Instruct",
        "photographs, charts and documents on a laptop",
        "2.2B",
        "Apache-2.0",
        4.5,
    ),
    Offer(
        "Qwen/Qwen2-VL-2B-Instruct",
        "reading text in pictures, many languages",
        "2.2B",
        "Apache-2.0",
        4.4,
    ),
    Offer(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "documents, tables, places of things in a picture",
        "3.8B",
        "Qwen research licence (not commercial)",
        7.5,
    ),
    Offer(
        "google/gemma-3-4b-it",
        "talking about photographs, over 100 languages",
        "4.3B",
        "Gemma terms",
        8.6,
        gated=True,
    ),
    Offer(
        "llava-hf/llava-1.5-7b-hf",
        "describing photographs; the best known of its kind",
        "7.1B",
        "Llama 2 licence",
        14.1,
    ),
    Offer(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "the most able here: documents, charts, long pages",
        "8.3B",
        "Apache-2.0",
        16.6,
    ),
)


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this machine. `bytes` is the size of its weights on disk."""

    name: str
    folder: Path
    origin: str
    """ "built in", "fetched" or "folder"."""
    model_type: str
    parameters: int
    bytes: int
    problem: str = ""
    """Why it cannot be loaded; empty if it can."""


def offered_dims() -> dict[str, ModelDims]:
    """The sizes of every model of `OFFERS`, by hub id; nothing is fetched."""
    return msgspec.json.decode(_OFFERED_DIMS.read_bytes(), type=dict[str, ModelDims])


def list_installed() -> list[Installed]:
    """The built-in models, the fetched ones and the folders that were added, by name."""
    found = [_describe(folder.name, folder, "built in") for folder in _builtin()]
    found += [_describe(_hub_id(folder.name), folder, "fetched") for folder in _fetched()]
    found += [_describe(name, Path(path), "folder") for name, path in _registered().items()]
    return sorted(found, key=lambda model: (model.origin != "built in", model.name.lower()))


def resolve_model(name: str) -> Path:
    """The folder of the model `name`: built in, installed (by its full name or its last part), or a folder.

    A folder is given as a path, because a bare name would mean another folder in the engine, whose
    working directory differs. Raises ModelError if there is no such model, or if the name is ambiguous.
    """
    if not name.strip():
        raise ModelError("The name of the model is empty: choose one of `mmchat models list`.")
    if name.startswith((".", "~", os.sep)) or Path(name).is_absolute():
        return _folder(name)
    known = {folder.name: folder for folder in _builtin()}
    known |= {name: Path(path) for name, path in _registered().items()}
    fetched = {_hub_id(folder.name): folder for folder in _fetched()}
    if folder := known.get(name) or fetched.get(name):
        return _folder(str(folder))
    short = [hub_id for hub_id in fetched if hub_id.split("/")[-1].lower() == name.lower()]
    if len(short) == 1:
        return _folder(str(fetched[short[0]]))
    if short:
        raise ModelNotFoundError(
            f"{name} could be {' or '.join(sorted(short))}: use the full name."
        )
    if os.sep in name and (folder := named_folder(name)):
        return folder
    if name.count("/") == 1:
        raise ModelNotFoundError(
            f"The model {name} is not installed: `mmchat models add {name}` fetches it, and "
            "`mmchat models list` shows what is here."
        )
    raise ModelNotFoundError(
        f"There is no model {name}: `mmchat models list` shows what is here, `mmchat models add` "
        "fetches another, and a folder is given as ./FOLDER."
    )


def _folder(name: str) -> Path:
    folder = named_folder(name)
    if folder is None:
        raise ModelNotFoundError(
            f"There is no folder {name}: check the path, or choose one of `mmchat models list`."
        )
    return folder


def add_folder(folder: Path, name: str = "") -> Installed:
    """Registers the model in `folder` as `name`, by default the folder's name; nothing is copied.

    Raises ModelError if the folder has no model that could be loaded, or if the name is taken.
    """
    folder = _folder(str(folder)).resolve()
    read_config(folder)
    tensors(folder)
    name = name or folder.name
    require_free(name, folder)
    _write_registered({**_registered(), name: str(folder)})
    return _describe(name, folder, "folder")


def require_free(name: str, folder: Path) -> None:
    """Raises ModelError if a folder cannot be registered as `name`: it is not a valid name, or is taken."""
    if not name.strip() or name.startswith((".", "~")) or "/" in name or os.sep in name:
        raise ModelError(
            f"{name!r} is not a valid name for a model: choose one that is not a path."
        )
    registered = _registered()
    taken = {built.name for built in _builtin()} | set(registered)
    if name in taken and registered.get(name) != str(folder):
        raise ModelError(
            f"There is a model {name} already: choose another name with --name, or remove that one."
        )


def remove_model(name: str) -> Path:
    """Removes a fetched model's files, or unregisters an added folder (its files stay). Returns the folder.

    Raises ModelError if there is no such model, or if it is built in.
    """
    registered = _registered()
    if name in registered:
        folder = Path(registered[name])
        _write_registered({key: path for key, path in registered.items() if key != name})
        return folder
    if any(folder.name == name for folder in _builtin()):
        raise ModelError(f"{name} is part of mmchat and cannot be removed.")
    fetched = {_hub_id(folder.name): folder for folder in _fetched(partial=True)}
    names = [key for key in fetched if name in (key, key.split("/")[-1])]
    if len(names) != 1:
        raise ModelError(f"There is no model {name} to remove: see `mmchat models list`.")
    try:
        shutil.rmtree(fetched[names[0]])
    except OSError as error:
        raise ModelError(
            f"{fetched[names[0]]} cannot be removed ({error.strerror}): check its permissions."
        ) from error
    return fetched[names[0]]


def target_folder(hub_id: str) -> Path:
    """The folder of a fetched model."""
    return paths().models / hub_id.replace("/", "--")


def _hub_id(folder_name: str) -> str:
    return folder_name.replace("--", "/", 1)


def _builtin() -> list[Path]:
    with contextlib.suppress(OSError):
        return [
            folder
            for folder in sorted(builtin_adapters().iterdir())
            if (folder / "config.json").is_file()
        ]
    return []


def _fetched(partial: bool = False) -> list[Path]:
    with contextlib.suppress(OSError):
        return [
            folder
            for folder in sorted(paths().models.iterdir())
            if folder.is_dir() and "--" in folder.name and (partial or (folder / MARKER).is_file())
        ]
    return []


def _registered() -> dict[str, str]:
    file = paths().models / _FOLDERS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}): correct or remove it.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} is not a table of names and folders: correct or remove it.")
    return {str(name): str(path) for name, path in found.items()}


def _write_registered(folders: dict[str, str]) -> None:
    file = private_dir(paths().models) / _FOLDERS
    try:
        write_file(file, json.dumps(folders, indent=1))
    except OSError as error:
        raise ModelError(f"{file} cannot be written ({error.strerror}).") from error


def _describe(name: str, folder: Path, origin: str) -> Installed:
    try:
        model_type = str(read_config(folder)["model_type"])
        found = tensors(folder)
    except ModelError as error:
        return Installed(name, folder, origin, "", 0, 0, str(error))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Installed(name, folder, origin, model_type, sum(t.elements for t in found), size)
