"""Putting an adapter onto a loaded base, and taking it off exactly."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmchat.errors import AdapterError
from mmchat.model.adapters import (
    LORA,
    PROJECTOR,
    VISION_TOWER,
    adapter_hash,
    check_adapter,
    find_adapter,
)
from mmchat.model.checkpoint import file_stamps
from mmchat.model.lora import read_lora, read_tensors
from mmchat.model.lora_file import read_shapes
from mmchat.model.quantization import Part, part_tensors
from mmchat.model.ready import ReadyAdapter, Worn

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel


def apply_adapter(loaded: "LoadedModel", name: str) -> None:
    """Puts the adapter `name` onto the loaded base, in place of any other; "" takes it off.

    Projector, tower and LoRA switch together. One that was on before is put on again from memory,
    as long as its files are the same. Raises AdapterError where it cannot be found, read, trusted,
    or belongs to another base: what was there before stays.
    """
    if not name:
        _wear(loaded, None)
        loaded.adapter = loaded.adapter_hash = ""
        loaded.adapter_files = {}
        return
    folder = find_adapter(name)
    stamps = file_stamps(folder, folder / LORA)
    adapter = loaded.ready.get(folder, stamps)
    if adapter is None:
        adapter = read_adapter(loaded, name)
        loaded.ready.put(adapter)
    _wear(loaded, adapter)
    loaded.adapter, loaded.adapter_hash = name, adapter.digest
    loaded.adapter_files = adapter.stamps


def read_adapter(
    loaded: "LoadedModel", name: str, lora_dtype: torch.dtype | None = None
) -> ReadyAdapter:
    """The adapter `name`, found fit for the loaded base and ready to be put on; none of the base changes.

    LoRA is in `lora_dtype`, by default what the base computes in. Raises AdapterError as
    `apply_adapter` does.
    """
    kind = getattr(loaded.model.config, "projector_type", "")
    folder = check_adapter(name, loaded.name, loaded.weights_hash, kind)
    stamps = file_stamps(folder, folder / LORA)
    digest = adapter_hash(folder)
    # Plain tensors, also where the caller is in inference mode: a gradient may be wanted of them.
    with torch.inference_mode(False), torch.no_grad():
        swaps: list[tuple[Tensor, Tensor]] = []
        tower = folder / VISION_TOWER
        if (folder / PROJECTOR).is_file():
            swaps += _swaps(loaded, folder / PROJECTOR, "projector")
        if tower.is_file():
            swaps += _swaps(loaded, tower, "vision tower")
        lora = []
        if (folder / LORA).is_dir():
            dtype = lora_dtype or loaded.compute_dtype
            lora = read_lora(loaded.model, loaded.name, folder / LORA, dtype)
    tower_digest = hashlib.sha256(tower.read_bytes()).hexdigest() if tower.is_file() else ""
    if file_stamps(folder, folder / LORA) != stamps:
        raise AdapterError(f"{folder} was changed while it was read: choose it again.")
    return ReadyAdapter(folder, stamps, digest, tower_digest, swaps, lora)


def _wear(loaded: "LoadedModel", adapter: ReadyAdapter | None) -> None:
    if loaded.worn is not None:
        if loaded.worn.adapter is adapter:
            return
        loaded.worn.take_off()
    loaded.worn = None if adapter is None else Worn.put_on(adapter)


def _swaps(loaded: "LoadedModel", file: Path, part: Part) -> list[tuple[Tensor, Tensor]]:
    """(place in the base, tensor of the file): of a projector all of them, of the tower some."""
    # An adapter that is attached has its tensors in these places; only the places matter here.
    places = part_tensors(loaded.model, part)
    if not places:
        raise AdapterError(
            f"{loaded.name} has no {part} that an adapter could replace: choose another adapter."
        )
    # By the header first: a file for a larger model is never read into memory.
    shapes = read_shapes(file)
    fits = all(
        name in places and tuple(places[name].shape) == shape for name, shape in shapes.items()
    )
    if not fits or not shapes or (part == "projector" and shapes.keys() != places.keys()):
        raise AdapterError(
            f"{file} does not fit the {part} of {loaded.name}: the adapter is for another model."
        )
    return [
        # A copy where nothing had to be converted: the file stays mapped otherwise.
        (places[name], tensor.to(places[name].device, places[name].dtype, copy=True))
        for name, tensor in read_tensors(file).items()
    ]
