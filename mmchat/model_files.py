"""The files of a model folder, read without torch: its configuration and the shapes of its weights.

Only safetensors are read. Their header has the type, shape and place of every tensor, so size, memory and
damage are known before anything is loaded.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.errors import ModelError, SettingsError
from mmchat.files import write_file
from mmchat.settings import paths, private_dir

FileStamps = dict[str, tuple[int, int]]
"""(size, time of change) by path."""

INDEX = "model.safetensors.index.json"
_HEADER_LIMIT = 100_000_000  # the limit of the format itself
_WHOLE_HASH_BYTES = 1_000_000_000
_SAMPLE, _SAMPLES = 1 << 20, 64
_DEFINING_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".model", ".toml", ".txt"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint, as its file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder.

    Raises ModelError if it is missing, is not a JSON object or has no model_type.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json, so it is not a model folder: "
            "name a folder that a model was saved to, or an installed model."
        ) from None
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read ({error.strerror}): check its permissions and the disk."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON ({error}): fetch the model again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{file} has no model_type, so mmchat does not know what kind of model it is: fetch it again, "
            "or choose another."
        )
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order of name.

    Raises ModelError if there are none, if a shard is missing, or if the folder has pickled weights only.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            names = sorted({str(shard) for shard in shards})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{index} cannot be read: fetch the model again.") from error
        for name in names:
            # The index comes from outside: it must not point out of its folder.
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"{index} names {name!r}, which is not a weights file of its folder: fetch "
                    "the model again."
                )
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} has no weights file {name}, which its index names: fetch the model again."
                )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"{folder} has its weights as pickle files (.bin, .pt), which can run any program and "
            "are never loaded: convert them to safetensors, or choose a checkpoint that has them."
        )
    raise ModelError(f"{folder} has no weights (model.safetensors): fetch the model again.")


def read_header(file: Path) -> list[TensorInfo]:
    """The tensors of a safetensors file.

    Raises ModelError if the file is damaged or truncated.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise ValueError("its header's length is impossible")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = [
            TensorInfo(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            for name, entry in header.items()
        ]
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        if any(side < 0 for tensor in tensors for side in tensor.shape):
            raise ValueError("a tensor of a negative size")
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read ({error.strerror}): check its permissions and the disk."
        ) from error
    # The header is JSON from outside: deeply nested, infinite (OverflowError), of any type.
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ModelError(
            f"{file} is damaged, or not a safetensors file: fetch the model again."
        ) from error
    if 8 + length + end != size:
        raise ModelError(
            f"{file} is cut short or damaged ({size:,} bytes instead of {8 + length + end:,}): "
            "fetch the model again."
        )
    return tensors


def tensors(folder: Path) -> list[TensorInfo]:
    """Every tensor of a model folder; raises ModelError as `weight_files` and `read_header` do."""
    return [tensor for file in weight_files(folder) for tensor in read_header(file)]


def file_stamps(*folders: Path) -> FileStamps:
    """(size, time of change) of every file in the folders that defines a model or adapter.

    If two results are equal, nothing was replaced in between.
    """
    found: FileStamps = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for file in folder.iterdir():
                if file.suffix in _DEFINING_SUFFIXES:
                    status = file.stat()
                    found[str(file)] = (status.st_size, status.st_mtime_ns)
    return found


def weights_hash(folder: Path) -> str:
    """A hash of a model's weights that does not depend on where the folder is.

    For models up to 1 GB, the sha256 of all files. For larger models the headers, the sizes and 64
    stretches of each file are hashed, because reading the files completely would take longer than loading;
    such a hash begins with "s". Cached by path, size and time.
    """
    files = weight_files(folder)
    stats = [(file, file.stat()) for file in files]
    key = json.dumps([[str(f.resolve()), s.st_size, s.st_mtime_ns] for f, s in stats])
    cache = paths().cache / "weights.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(cache.read_text(encoding="utf-8"))
        known = found if isinstance(found, dict) else {}
    if isinstance(known.get(key), str):
        return known[key]
    whole = sum(stat.st_size for _, stat in stats) <= _WHOLE_HASH_BYTES
    digest = hashlib.sha256()
    for file, stat in stats:
        digest.update(f"{file.name}\0{stat.st_size}\0".encode())
        for stretch in _stretches(file, stat.st_size, whole):
            digest.update(stretch)
    value = digest.hexdigest() if whole else "s" + digest.hexdigest()
    with contextlib.suppress(OSError, SettingsError):
        # Without a cache the hash is calculated again next time; nothing else is lost.
        private_dir(cache.parent)
        write_file(cache, json.dumps({**dict(list(known.items())[-99:]), key: value}))
    return value


def _stretches(file: Path, size: int, whole: bool) -> Iterator[bytes]:
    with file.open("rb") as stream:
        if whole:
            while stretch := stream.read(_SAMPLE):
                yield stretch
            return
        yield stream.read(_SAMPLE)
        for number in range(_SAMPLES):
            stream.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
            yield stream.read(_SAMPLE)
