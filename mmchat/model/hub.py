"""Fetching a model from the Hugging Face hub. Nothing else about models uses the network.

plan = plan_download("HuggingFaceTB/SmolVLM-256M-Instruct")   # asks the hub, checks the disk
fetch(plan)                                                   # resumes where it stopped
"""

import json
import shutil
import ssl
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
    """What fetching a model would download: its files, their size, and their folder."""

    hub_id: str
    revision: str
    files: tuple[str, ...]
    bytes: int
    folder: Path


def plan_download(source: str) -> Download:
    """What fetching `HUB-ID[@REVISION]` would download; the disk has enough space for it.

    Raises ModelError if it is not a hub id, if there is no network, or if the repository is gated or
    unknown, has no safetensors, or does not fit on the disk.
    """
    hub_id, _, revision = source.partition("@")
    owner, _, name = hub_id.partition("/")
    if not owner or not name or "/" in name or ".." in hub_id or "--" in owner:
        raise ModelError(
            f"{source} is neither a folder nor a hub id of the form OWNER/NAME[@REVISION]: check "
            "how it is written."
        )
    from huggingface_hub import HfApi

    with _hub_errors(hub_id, revision):
        info = HfApi().model_info(hub_id, revision=revision or None, files_metadata=True)
    found = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
    files = {name: size for name, size in found.items() if _wanted(name)}
    if not any(name.endswith(".safetensors") for name in files):
        raise ModelError(
            f"{hub_id} has no safetensors weights, and pickled ones are never loaded: choose another."
        )
    if "config.json" not in files:
        raise ModelError(f"{hub_id} has no config.json, so mmchat cannot load it: choose another.")
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
    """Downloads the files of `plan`, with huggingface_hub's own progress; resumes an interrupted download.

    Raises ModelError as `plan_download` does, and if what was downloaded is damaged.
    """
    from huggingface_hub import snapshot_download

    private_dir(plan.folder)
    with _hub_errors(plan.hub_id, plan.revision):
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
            f"{plan.folder} cannot be written ({error.strerror}): check its permissions and the disk."
        ) from error
    model = next(model for model in list_installed() if model.folder == plan.folder)
    if model.problem:
        (plan.folder / MARKER).unlink()
        raise ModelError(model.problem)
    return model


def _client_error() -> type[Exception]:
    """The base class of the errors of huggingface_hub's HTTP client, which differs by version."""
    from huggingface_hub.errors import HfHubHTTPError

    roots = (base for base in HfHubHTTPError.__mro__[1:] if base.__name__ == "HTTPError")
    found: type[Exception] = next(roots, ConnectionError)
    return found


def _wanted(name: str) -> bool:
    """Whether a file of a repository is fetched; folders below the top hold other formats."""
    return "/" not in name and any(Path(name).match(pattern) for pattern in _WANTED)


@contextmanager
def _hub_errors(hub_id: str, revision: str) -> Iterator[None]:
    """Turns what the hub's client raises into ModelError."""
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
        raise ModelError(f"{hub_id} has no revision {revision}: check the part after @.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {hub_id} that you have access to: check the name, or sign in with "
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
            f"{hub_id} cannot be fetched, because the hub cannot be reached: connect to the network "
            "(and unset HF_HUB_OFFLINE), then run the same command, which continues where it stopped."
        ) from error
    except OSError as error:
        if error.filename is None and isinstance(
            error, ssl.SSLError | FileNotFoundError | IsADirectoryError | PermissionError
        ):
            raise ModelError(
                "The certificates in SSL_CERT_FILE or SSL_CERT_DIR cannot be loaded "
                f"({error.strerror or error}): correct or unset these variables."
            ) from error
        raise ModelError(
            f"The files of {hub_id} cannot be written ({error.strerror or error}): check the disk."
        ) from error
    except (ImportError, ValueError) as error:  # an invalid proxy or address
        raise ModelError(
            f"{hub_id} cannot be fetched with the network settings in the environment ({error}): "
            "correct or unset HF_ENDPOINT, HTTP_PROXY, HTTPS_PROXY and ALL_PROXY."
        ) from error
