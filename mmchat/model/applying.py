"""Putting an adapter onto a loaded base, and taking it off exactly."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmchat.errors import AdapterError
from mmchat.model.adapters import LORA, PROJECTOR, adapter_hash, check_adapter
from mmchat.model.checkpoint import file_stamps
from mmchat.model.lora import put_on_lora, read_shapes, read_tensors, take_off_lora
from mmchat.model.quantization import part_of, text_blocks

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel


def apply_adapter(loaded: "LoadedModel", name: str) -> None:
    """Puts the adapter `name` onto the loaded base, in place of any other; "" takes it off.

    Raises AdapterError where it cannot be found, read, trusted, or belongs to
    another base. What was there before then stays, unless the files turn out
    not to fit while they are put on: then the base stands alone.
    """
    if not name:
        _take_off(loaded)
        return
    kind = getattr(loaded.model.config, "projector_type", "")
    folder = check_adapter(name, loaded.name, loaded.weights_hash, kind)
    stamps = file_stamps(folder, folder / LORA)
    digest = adapter_hash(folder)
    _take_off(loaded)
    try:
        if (folder / PROJECTOR).is_file():
            _put_on_projector(loaded, folder / PROJECTOR)
        if (folder / LORA).is_dir():
            put_on_lora(loaded.model, loaded.name, folder / LORA)
    except BaseException:
        _take_off(loaded)
        raise
    loaded.adapter, loaded.adapter_hash, loaded.adapter_files = name, digest, stamps


def _projector(loaded: "LoadedModel") -> Any:
    blocks, _ = text_blocks(loaded.model)
    for path, module in loaded.model.named_modules():
        if path and part_of(path, blocks) == "projector":
            return module
    raise AdapterError(
        f"{loaded.name} has no projector that an adapter could replace: choose another adapter."
    )


def _put_on_projector(loaded: "LoadedModel", file: Path) -> None:
    projector = _projector(loaded)
    loaded.base_projector = {key: t.detach().clone() for key, t in projector.state_dict().items()}
    # By the header first: a file for a larger model is never read into memory.
    if read_shapes(file) != {key: tuple(t.shape) for key, t in loaded.base_projector.items()}:
        raise AdapterError(
            f"{file} does not fit the projector of {loaded.name}: the adapter is for another model."
        )
    with torch.no_grad():
        projector.load_state_dict(read_tensors(file))


def _take_off(loaded: "LoadedModel") -> None:
    """The base's own projector and layers again, exactly."""
    if loaded.base_projector is not None:
        _projector(loaded).load_state_dict(loaded.base_projector)
        loaded.base_projector = None
    take_off_lora(loaded.model)
    loaded.adapter = loaded.adapter_hash = ""
    loaded.adapter_files = {}
