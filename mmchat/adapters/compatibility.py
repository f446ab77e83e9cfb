"""Finds the base of an adapter and checks that the two fit, by safetensors headers, without torch.

This is the early check, when an adapter is imported. `active.read_adapter` checks again on the loaded
model's own layers.
"""

import contextlib
import re
from pathlib import Path

from mmchat.adapters.card import LORA, PROJECTOR, VISION_TOWER, Base, Card
from mmchat.adapters.lora_file import read_lora_file, read_shapes
from mmchat.errors import AdapterError, ModelError
from mmchat.model.catalogue import list_installed, resolve_model
from mmchat.model_files import read_config, tensors, weights_hash

Shape = tuple[int, ...]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)")
_NOT_TEXT = re.compile(r"vision|visual|vit\.|tower|connector|projector|merger|resampler|image")


def find_base(base: Base) -> tuple[str, Path] | None:
    """(name, folder) of the model on this machine with the base's weights; None if there is none."""
    places: list[tuple[str, Path]] = []
    with contextlib.suppress(ModelError):
        places.append((base.id, resolve_model(base.id)))
    with contextlib.suppress(ModelError):
        places += [(model.name, model.folder) for model in list_installed() if not model.problem]
    for name, folder in places:
        with contextlib.suppress(ModelError, OSError):
            if weights_hash(folder) == base.hash:
                return name, folder
    return None


def require_base(card: Card) -> tuple[str, Path]:
    """(name, folder) of the base of an adapter; raises AdapterError if it is not on this machine."""
    base = find_base(card.base)
    if base is not None:
        return base
    other = ""
    with contextlib.suppress(ModelError, OSError):
        here = weights_hash(resolve_model(card.base.id))
        other = f"; the {card.base.id} on this machine has other weights ({here[:12]})"
    raise AdapterError(
        f"The base of {card.name} is not on this machine ({card.base.id}, weights "
        f"{card.base.hash[:12]}{other}): add it with `mmchat models add`."
    )


def check_fits(adapter: Path, base: Path, name: str) -> None:
    """Raises AdapterError if the headers show that `adapter` does not fit the model `name`.

    The checkpoints of some families name or fuse their tensors differently from the loaded model.
    What cannot be recognised passes.
    """
    try:
        shapes = {tensor.name: tensor.shape for tensor in tensors(base)}
    except ModelError as error:
        raise AdapterError(str(error)) from error
    for file, part in ((PROJECTOR, "multi_modal_projector"), (VISION_TOWER, "vision_tower")):
        if (adapter / file).is_file():
            inside = f"{part}."
            of_part = {k.partition(inside)[2]: s for k, s in shapes.items() if inside in k}
            _check_part(adapter / file, of_part, name, complete=file == PROJECTOR)
    if (adapter / LORA).is_dir():
        _check_lora(adapter / LORA, shapes, name)


def check_card(card: Card, base: Path, name: str) -> None:
    """Raises AdapterError if the card names another base than the model `name` in the folder `base`."""
    here = weights_hash(base)
    if card.base.hash != here:
        raise AdapterError(
            f"{card.name} was trained for {card.base.id} ({card.base.hash[:12]}), not for {name} "
            f"({here[:12]}): choose the model that it was trained for."
        )
    with contextlib.suppress(ModelError):
        kind = read_config(base).get("projector_type", "")
        if card.projector and kind and card.projector != kind:
            raise AdapterError(
                f"{card.name} has a projector of type {card.projector}, but {name} has one of type "
                f"{kind}: choose the model that it was trained for."
            )


def _check_part(file: Path, base: dict[str, Shape], name: str, *, complete: bool) -> None:
    shapes = read_shapes(file)
    known = shapes.keys() & base.keys()
    if not known:
        return
    if any(shapes[key] != base[key] for key in known) or known != shapes.keys():
        raise mismatch(file.name, name, "its tensors have other names or shapes")
    if complete and known != base.keys():
        raise mismatch(file.name, name, f"{len(base.keys() - known)} tensors are missing")


def _check_lora(folder: Path, shapes: dict[str, Shape], name: str) -> None:
    layers = {
        (int(match[1]), match[2].removesuffix(".weight")): shape
        for key, shape in shapes.items()
        if (match := _LAYER.search(key)) and len(shape) == 2 and not _NOT_TEXT.search(key)
    }
    layer_names = {layer_name for _, layer_name in layers}
    recognised = False
    for path, layer in read_lora_file(folder).layers.items():
        match = _LAYER.search(path)
        if match is None or match[2] not in layer_names:
            continue
        recognised = True
        shape = layers.get((int(match[1]), match[2]))
        if shape is None:
            raise mismatch(folder.name, name, f"the model has no layer {path[:200]}")
        # The GPT-2 family stores its matrices transposed.
        if (layer.outputs, layer.inputs) not in (shape, shape[::-1]):
            raise mismatch(
                folder.name,
                name,
                f"{path[:200]} maps {layer.inputs} to {layer.outputs} features, but the model's is "
                f"{shape[0]} × {shape[1]}",
            )
    if layers and not recognised:
        raise mismatch(folder.name, name, "the model has none of its layers")


def mismatch(file: Path | str, name: str, why: str) -> AdapterError:
    """The error for a file that does not fit the model `name`."""
    return AdapterError(f"{file} does not fit {name} ({why}): the adapter is for another model.")
