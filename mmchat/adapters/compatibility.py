"""Which base an adapter belongs to, and whether it fits it, by headers alone. Nothing here needs torch.

What can be said without loading a model is said when an adapter comes in; the last word is
`applying`'s, which has the model's own layers.
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
    """(name, folder) of the model on this machine that has the base's weights, whatever its name."""
    places: list[tuple[str, Path]] = []
    with contextlib.suppress(ModelError):
        places.append((base.id, resolve_model(base.id)))
    with contextlib.suppress(ModelError):
        places += [(one.name, one.folder) for one in list_installed() if not one.problem]
    for name, folder in places:
        with contextlib.suppress(ModelError, OSError):
            if weights_hash(folder) == base.hash:
                return name, folder
    return None


def require_base(card: Card) -> tuple[str, Path]:
    """The same for an adapter's card; raises AdapterError where it is not here."""
    found = find_base(card.base)
    if found is not None:
        return found
    other = ""
    with contextlib.suppress(ModelError, OSError):
        here = weights_hash(resolve_model(card.base.id))
        other = f"; the {card.base.id} that is here has other weights ({here[:12]})"
    raise AdapterError(
        f"The base of {card.name} is not on this machine ({card.base.id}, weights "
        f"{card.base.hash[:12]}{other}): `mmchat models add` brings it."
    )


def named_base(name: str) -> tuple[Base, Path]:
    """The model `name` as an adapter's base, and its folder. Raises ModelError."""
    folder = resolve_model(name)
    return Base(name, weights_hash(folder)), folder


def check_fits(adapter: Path, base: Path, name: str) -> None:
    """Raises AdapterError where the headers alone show that `adapter` is none for the model `name`.

    Checkpoints of some families name or join their tensors differently from the loaded model;
    what cannot be recognised passes here.
    """
    try:
        whole = {tensor.name: tensor.shape for tensor in tensors(base)}
    except ModelError as error:
        raise AdapterError(str(error)) from error
    for file, part in ((PROJECTOR, "multi_modal_projector"), (VISION_TOWER, "vision_tower")):
        if (adapter / file).is_file():
            _check_part(adapter / file, _inside(whole, part), name, part == "multi_modal_projector")
    if (adapter / LORA).is_dir():
        _check_lora(adapter / LORA, whole, name)


def check_card(card: Card, base: Path, name: str) -> None:
    """Raises AdapterError where the card belongs to another model than `name` in the folder `base`."""
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
                f"{card.name} has a projector of the kind {card.projector}, and {name} one of the "
                f"kind {kind}: choose the model that it was trained for."
            )


def _inside(whole: dict[str, Shape], part: str) -> dict[str, Shape]:
    """The tensors of a part by their names inside of it."""
    found: dict[str, Shape] = {}
    for name, shape in whole.items():
        _, there, inner = name.partition(f"{part}.")
        if there:
            found[inner] = shape
    return found


def _check_part(file: Path, places: dict[str, Shape], name: str, whole: bool) -> None:
    shapes = read_shapes(file)
    known = shapes.keys() & places.keys()
    if not known:
        return
    if any(shapes[key] != places[key] for key in known) or known != shapes.keys():
        raise _unfit(file, name, "its tensors have other names or sizes")
    if whole and known != places.keys():
        raise _unfit(file, name, f"{len(places.keys() - known)} of the tensors are missing")


def _check_lora(folder: Path, whole: dict[str, Shape], name: str) -> None:
    layers = {
        (int(match[1]), match[2].removesuffix(".weight")): shape
        for key, shape in whole.items()
        if (match := _LAYER.search(key)) and len(shape) == 2 and not _NOT_TEXT.search(key)
    }
    kinds = {kind for _, kind in layers}
    recognised = False
    for path, layer in read_lora_file(folder).layers.items():
        match = _LAYER.search(path)
        if match is None or match[2] not in kinds:
            continue
        recognised = True
        shape = layers.get((int(match[1]), match[2]))
        if shape is None:
            raise _unfit(folder, name, f"there is no layer {path[:200]} in it")
        # GPT-2's family keeps its matrices the other way round.
        if (layer.outputs, layer.inputs) not in (shape, shape[::-1]):
            raise _unfit(
                folder,
                name,
                f"{path[:200]} goes from {layer.inputs} to {layer.outputs} features, and there it is "
                f"{shape[0]} × {shape[1]}",
            )
    if layers and not recognised:
        raise _unfit(folder, name, "none of its layers is in it")


def _unfit(file: Path, name: str, why: str) -> AdapterError:
    return AdapterError(
        f"{file.name} does not fit {name} ({why}): the adapter is for another model."
    )
