"""The adapter that a loaded base answers with, and the ones that were read before it.

Attaching puts the adapter's projector and tower tensors in the base's place and hooks its LoRA onto the
base's layers; detaching puts the very same memory back, so that the base is itself bit for bit.
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
"""Adapters that were read stay in memory up to this size together, the last used longest."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterTensors:
    """An adapter's tensors beside the places of the base that they belong to."""

    folder: Path
    stamps: FileStamps
    """Of its files when they were read."""
    digest: str
    """`adapter_hash`"""
    tower_digest: str
    """sha256 of its tensors of the vision tower; "" if it has none."""
    swaps: list[tuple[Tensor, Tensor]]
    """(a parameter or buffer of the base, what takes its place), of projector and tower."""
    lora: list[tuple[nn.Module, LoraDelta]]

    @property
    def nbytes(self) -> int:
        swapped = sum(tensor.nbytes for _, tensor in self.swaps)
        return swapped + sum(delta.nbytes for _, delta in self.lora)


class ActiveAdapter:
    """Which adapter is attached to a base. `name` and `digest` are "" if none is."""

    def __init__(self, base: LoadedModel, cache_bytes: int = CACHE_BYTES) -> None:
        self.name = ""
        self.digest = ""
        self._base = base
        self._attached: AdapterTensors | None = None
        self._hooks: list[RemovableHandle] = []
        self._own: list[tuple[Tensor, Tensor]] = []
        """(a parameter or buffer of the base, its own numbers)"""
        self._cache: LRUCache[Path, AdapterTensors] = LRUCache(
            cache_bytes, getsizeof=lambda adapter: adapter.nbytes
        )

    def switch(self, name: str) -> None:
        """Attaches the adapter `name` in place of any other; "" detaches.

        Projector, tower and LoRA switch together. One that was attached before comes from memory, as
        long as its files are the same. Raises AdapterError if it cannot be found, read or trusted, or
        belongs to another base: then nothing changes.
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
        """Whether the adapter's files on the disk are still those that were read; true if none is attached."""
        if self._attached is None:
            return True
        folder = self._attached.folder
        return file_stamps(folder, folder / LORA) == self._attached.stamps

    @property
    def vision_hash(self) -> str:
        """Of all that a picture's features depend on: the base's weights and the adapter's tower."""
        tower = self._attached.tower_digest if self._attached is not None else ""
        weights = self._base.weights_hash
        return f"{weights}+{tower}" if tower else weights

    def _attach(self, adapter: AdapterTensors) -> None:
        # Nothing here can fail half-way: all was checked when the adapter was read.
        for place, tensor in adapter.swaps:
            self._own.append((place, place.data))
            place.data = tensor
        self._hooks = [layer.register_forward_hook(delta) for layer, delta in adapter.lora]
        self._attached = adapter

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for place, own in self._own:
            place.data = own
        self._hooks, self._own, self._attached = [], [], None


def read_adapter(
    base: LoadedModel, name: str, lora_dtype: torch.dtype | None = None
) -> AdapterTensors:
    """The adapter `name`, checked against the loaded base and ready to be attached; the base is unchanged.

    LoRA is in `lora_dtype`, by default what the base computes in. Raises AdapterError as
    `ActiveAdapter.switch` does.
    """
    kind = getattr(base.model.config, "projector_type", "")
    folder = check_adapter(name, base.name, base.weights_hash, kind)
    stamps = file_stamps(folder, folder / LORA)
    digest = adapter_hash(folder)
    # Plain tensors, also if the caller is in inference mode: a gradient may be wanted of them.
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
        raise AdapterError(f"{folder} was changed while it was read: choose it again.")
    return AdapterTensors(folder, stamps, digest, tower_digest, swaps, lora)


def _swaps(base: LoadedModel, file: Path, part: Part) -> list[tuple[Tensor, Tensor]]:
    """(place in the base, tensor of the file): of a projector all of them, of the tower some."""
    # An attached adapter has its tensors in these places; only the places matter here.
    places = part_tensors(base.model, part)
    if not places:
        raise AdapterError(
            f"{base.name} has no {part} that an adapter could replace: choose another adapter."
        )
    # By the header first: a file for a larger model is never read into memory.
    shapes = read_shapes(file)
    fits = all(
        name in places and tuple(places[name].shape) == shape for name, shape in shapes.items()
    )
    if not fits or not shapes or (part == "projector" and shapes.keys() != places.keys()):
        raise AdapterError(
            f"{file} does not fit the {part} of {base.name}: the adapter is for another model."
        )
    return [
        # A copy even if nothing had to be converted: the file stays mapped otherwise.
        (places[name], tensor.to(places[name].device, places[name].dtype, copy=True))
        for name, tensor in read_tensors(file).items()
    ]
