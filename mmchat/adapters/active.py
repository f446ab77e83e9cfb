"""Attaches adapters to a loaded base and detaches them, with a cache of those that were read.

Attaching swaps the adapter's projector and vision tower tensors into the base's parameters and registers
its LoRA as forward hooks. Detaching restores the same memory, so the base is bit for bit what it was.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from cachetools import LRUCache
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmchat.adapters.card import (
    LORA,
    PROJECTOR,
    VISION_TOWER,
    adapter_hash,
    check_adapter,
    find_adapter,
)
from mmchat.adapters.lora import LoraDelta, read_lora, read_tensors
from mmchat.adapters.lora_file import read_shapes
from mmchat.errors import AdapterError
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.quantization import Part, part_tensors
from mmchat.model_files import FileStamps, file_stamps

CACHE_BYTES = 512 * 1024 * 1024
"""Adapters that were read stay in memory up to this total size. The least recently used go first."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterTensors:
    """An adapter's tensors, and the parameters and layers of the base that they belong to."""

    folder: Path
    stamps: FileStamps
    """The state of its files when they were read."""
    digest: str
    """`adapter_hash`"""
    tower_digest: str
    """sha256 of its vision tower file; "" if it has none."""
    swaps: list[tuple[Tensor, Tensor]]
    """(parameter or buffer of the base, the tensor that replaces it), for projector and vision tower."""
    lora: list[tuple[nn.Module, LoraDelta]]

    @property
    def nbytes(self) -> int:
        swapped = sum(tensor.nbytes for _, tensor in self.swaps)
        return swapped + sum(delta.nbytes for _, delta in self.lora)


class ActiveAdapter:
    """The adapter that is attached to a base. `name` and `digest` are "" if there is none."""

    def __init__(self, base: LoadedModel, cache_bytes: int = CACHE_BYTES) -> None:
        self.name = ""
        self.digest = ""
        self._base = base
        self._attached: AdapterTensors | None = None
        self._hooks: list[RemovableHandle] = []
        self._originals: list[tuple[Tensor, Tensor]] = []
        """(parameter or buffer of the base, its original tensor)"""
        self._cache: LRUCache[Path, AdapterTensors] = LRUCache(
            cache_bytes, getsizeof=lambda adapter: adapter.nbytes
        )

    def switch(self, name: str) -> None:
        """Attaches the adapter `name` and detaches any other; "" only detaches.

        Projector, vision tower and LoRA switch together. An adapter that was attached before comes from
        the cache if its files have not changed. Raises AdapterError if it cannot be found, read or
        trusted, or if it belongs to another base; then nothing changes.
        """
        if not name:
            self._detach()
            self.name = self.digest = ""
            return
        folder = find_adapter(name)
        adapter = self._cache.get(folder)
        if adapter is None or adapter.stamps != file_stamps(folder, folder / LORA):
            self._cache.pop(folder, None)
            adapter = read_adapter(self._base, name)
            if adapter.nbytes <= self._cache.maxsize:
                self._cache[folder] = adapter
        if adapter is not self._attached:
            self._detach()
            self._attach(adapter)
        self.name, self.digest = name, adapter.digest

    def is_current(self) -> bool:
        """Whether the attached adapter's files are unchanged since they were read; true if none is attached."""
        if self._attached is None:
            return True
        folder = self._attached.folder
        return file_stamps(folder, folder / LORA) == self._attached.stamps

    @property
    def vision_hash(self) -> str:
        """Hash of everything that a picture's features depend on: the base's weights and the adapter's tower."""
        tower = self._attached.tower_digest if self._attached is not None else ""
        weights = self._base.weights_hash
        return f"{weights}+{tower}" if tower else weights

    def _attach(self, adapter: AdapterTensors) -> None:
        # Nothing here can fail half-way: everything was checked when the adapter was read.
        for place, tensor in adapter.swaps:
            self._originals.append((place, place.data))
            place.data = tensor
        self._hooks = [layer.register_forward_hook(delta) for layer, delta in adapter.lora]
        self._attached = adapter

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for place, original in self._originals:
            place.data = original
        self._hooks, self._originals, self._attached = [], [], None


def read_adapter(
    base: LoadedModel, name: str, lora_dtype: torch.dtype | None = None
) -> AdapterTensors:
    """Reads the adapter `name` and checks it against the loaded base, which is not changed.

    The LoRA matrices are in `lora_dtype`, by default the base's compute dtype. Raises AdapterError as
    `ActiveAdapter.switch` does.
    """
    kind = getattr(base.model.config, "projector_type", "")
    folder = check_adapter(name, base.name, base.weights_hash, kind)
    stamps = file_stamps(folder, folder / LORA)
    digest = adapter_hash(folder)
    # Plain tensors even if the caller is in inference mode, because they may need gradients.
    with torch.inference_mode(False), torch.no_grad():
        swaps: list[tuple[Tensor, Tensor]] = []
        tower = folder / VISION_TOWER
        if (folder / PROJECTOR).is_file():
            swaps += _swaps(base, folder / PROJECTOR, "projector")
        if tower.is_file():
            swaps += _swaps(base, tower, "vision tower")
        lora = []
        if (folder / LORA).is_dir():
            lora = read_lora(base.model, base.name, folder / LORA, lora_dtype or base.compute_dtype)
    tower_digest = hashlib.sha256(tower.read_bytes()).hexdigest() if tower.is_file() else ""
    if file_stamps(folder, folder / LORA) != stamps:
        raise AdapterError(f"{folder} changed while it was being read: choose the adapter again.")
    return AdapterTensors(folder, stamps, digest, tower_digest, swaps, lora)


def _swaps(base: LoadedModel, file: Path, part: Part) -> list[tuple[Tensor, Tensor]]:
    """(parameter of the base, tensor of the file): all of a projector's, some of a tower's."""
    # An attached adapter may have its tensors in these parameters. Only the parameters matter here.
    places = part_tensors(base.model, part)
    if not places:
        raise AdapterError(
            f"{base.name} has no {part} that {file.parent.name} could replace: choose another adapter."
        )
    # The header is checked first, so a file for a larger model is never read into memory.
    shapes = read_shapes(file)
    fits = all(
        name in places and tuple(places[name].shape) == shape for name, shape in shapes.items()
    )
    if not fits or not shapes or (part == "projector" and shapes.keys() != places.keys()):
        raise AdapterError(
            f"{file} does not fit the {part} of {base.name}: the adapter is for another model."
        )
    return [
        # A copy even if nothing has to be converted, because the file would stay mapped otherwise.
        (places[name], tensor.to(places[name].device, places[name].dtype, copy=True))
        for name, tensor in read_tensors(file).items()
    ]
