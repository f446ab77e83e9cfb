"""Fetching a model: the one place of mmchat's models that reaches a network.

plan = plan_download("HuggingFaceTB/SmolVLM-256M-Instruct")   # asks, checks the disk
fetch(plan)                                                   # resumes where it stopped
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmchat.display.numbers import format_size
from mmchat.errors import ModelError
from mmchat.model.catalogue import MARKER, Installed, list_installed, target_folder
from mmchat.settings import paths, private_dir

# Weights as safetensors only; configuration and tokenizer files beside them. Never code or pickle.
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken")
_SPARE = 200_000_000  # bytes that stay free on the disk


@dataclass(frozen=True, slots=True)
class Download:
    """What fetching a model would bring: its files, their size, and where they go."""

    hub_id: str
    revision: str
    files: tuple[str, ...]
    bytes: int
    folder: Path


def plan_download(source: str) -> Download:
    """What `HUB-ID[@REVISION]` would bring; the disk has room for it.

    Raises ModelError where it is not a hub id, there is no network, the
    repository is gated or unknown, has no safetensors, or does not fit the disk.
    """
    hub_id, _, revision = source.partition("@")
    owner, _, name = hub_id.partition("/")
    if not owner or not name or "/" in name or ".." in hub_id or "--" in owner:
        raise ModelError(
            f"{source} is neither a folder nor a hub id of the form OWNER/NAME[@REVISION]: check "
            "how it is written."
        )
    from huggingface_hub import HfApi

    with _told(hub_id, revision):
        info = HfApi().model_info(hub_id, revision=revision or None, files_metadata=True)
    found = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
    files = {name: size for name, size in found.items() if _wanted(name)}
    if not any(name.endswith(".safetensors") for name in files):
        raise ModelError(
            f"{hub_id} has no safetensors weights, and pickled ones are never loaded: choose another."
        )
    if "config.json" not in files:
        raise ModelError(
            f"{hub_id} has no config.json, so it is no model that mmchat can load: choose another."
        )
    folder = target_folder(hub_id)
    here = sum(
        min(path.stat().st_size, files[name]) for name in files if (path := folder / name).is_file()
    )
    size = sum(files.values())
    free = shutil.disk_usage(private_dir(paths().models)).free
    if size - here + _SPARE > free:
        raise ModelError(
            f"{hub_id} takes {format_size(size)} and {format_size(free)} are free in "
            f"{folder.parent}: make room, or set MMCHAT_HOME to a larger disk."
        )
    return Download(hub_id, str(info.sha or revision or "main"), tuple(sorted(files)), size, folder)


def fetch(plan: Download) -> Installed:
    """Brings the files of `plan`, with huggingface_hub's own progress; a broken-off fetch resumes.

    Raises ModelError as `plan_download` does, and where what came is damaged.
    """
    from huggingface_hub import snapshot_download

    private_dir(plan.folder)
    with _told(plan.hub_id, plan.revision):
        snapshot_download(
            plan.hub_id,
            revision=plan.revision,
            local_dir=plan.folder,
            allow_patterns=list(plan.files),
        )
    try:
        mark = {"id": plan.hub_id, "revision": plan.revision}
        (plan.folder / MARKER).write_text(json.dumps(mark), encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"{plan.folder} cannot be written ({error.strerror}): look at its permissions and disk."
        ) from error
    model = next(model for model in list_installed() if model.folder == plan.folder)
    if model.problem:
        (plan.folder / MARKER).unlink()
        raise ModelError(model.problem)
    return model


def _client_error() -> type[Exception]:
    """The root of what huggingface_hub's HTTP client raises; which client it is differs by version."""
    from huggingface_hub.errors import HfHubHTTPError

    roots = (base for base in HfHubHTTPError.__mro__[1:] if base.__name__ == "HTTPError")
    found: type[Exception] = next(roots, ConnectionError)
    return found


def _wanted(name: str) -> bool:
    """Whether a file of a repository is fetched; folders below the top hold other formats."""
    return "/" not in name and any(Path(name).match(pattern) for pattern in _WANTED)


@contextmanager
def _told(hub_id: str, revision: str) -> Iterator[None]:
    """Turns what the hub's client raises into one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is gated: accept its terms on its page, then sign in with `hf auth login` "
            "or set HF_TOKEN."
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise ModelError(
            f"{hub_id} asks for a token: sign in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{hub_id} has no revision {revision}: mend what stands after @."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {hub_id} that you may see: check the name, or sign in with "
            "`hf auth login` if it is private."
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"{hub_id} is not a valid hub id (OWNER/NAME): check how it is written."
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", "an error")
        raise ModelError(f"The hub answered {status} for {hub_id}: try again later.") from error
    except (
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        _client_error(),
        ConnectionError,
    ) as error:
        raise ModelError(
            f"{hub_id} cannot be fetched, for there is no way to the hub: connect to the network "
            "(and unset HF_HUB_OFFLINE), then run the same command, which goes on where it stopped."
        ) from error
    except OSError as error:
        raise ModelError(
            f"The files of {hub_id} cannot be written ({error.strerror or error}): check the disk."
        ) from error
