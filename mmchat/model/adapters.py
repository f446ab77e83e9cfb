"""Adapters: folders that change what a base model knows, and nothing else.

    NAME/adapter.toml            what it is: name, base, projector, figures
    NAME/projector.safetensors   the projector's tensors, if it was trained
    NAME/lora/                   a stock peft adapter, if there is one

An adapter names its base by the hash of its weights and is refused on any
other. Weights are safetensors only. Listing and reading need no torch.
"""

import contextlib
import hashlib
import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mmchat.errors import AdapterError, ModelError
from mmchat.model.checkpoint import read_header
from mmchat.settings import builtin_adapters, paths

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

CARD, PROJECTOR, LORA = "adapter.toml", "projector.safetensors", "lora"
_LORA_WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PEFT_NAME = "mmchat"


class Base(msgspec.Struct, frozen=True):
    """The model that an adapter was trained on."""

    id: str
    hash: str
    """`weights_hash` of its folder."""


class Card(msgspec.Struct, frozen=True):
    """adapter.toml. Further tables in it are left alone."""

    name: str
    base: Base
    projector: str = ""
    """The kind of projector, as `projector_type` of the base's configuration."""
    trained: tuple[str, ...] = ()
    """What was trained: "projector", "lora"."""
    figures: dict[str, float] = {}
    """Measured figures by name, such as the share of right answers."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on this machine. `card` is None where `problem` says why it cannot be used."""

    name: str
    folder: Path
    origin: str
    """ "built in" or "yours"."""
    card: Card | None
    problem: str = ""


def list_adapters() -> list[Adapter]:
    """Every adapter that ships with mmchat and every one of the person's, by name."""
    found: dict[str, Adapter] = {}
    for root, origin in ((builtin_adapters(), "built in"), (paths().adapters, "yours")):
        with contextlib.suppress(OSError):
            for folder in sorted(root.iterdir()):
                if (folder / CARD).is_file():
                    found.setdefault(folder.name, _describe(folder.name, folder, origin))
    return sorted(found.values(), key=lambda adapter: adapter.name.lower())


def find_adapter(name: str) -> Path:
    """The folder of the adapter `name`: built in, the person's, or a path.

    A path begins with `/`, `.` or `~`. Raises AdapterError where there is none.
    """
    if name.startswith(("/", ".", "~")) or Path(name).is_absolute():
        folder = Path(name).expanduser()
    else:
        if not _NAME.fullmatch(name):
            raise AdapterError(
                f"{name!r} is no adapter's name: see `mmchat adapters list`, or give a folder as "
                "./FOLDER."
            )
        places = [builtin_adapters() / name, paths().adapters / name]
        folder = next((place for place in places if (place / CARD).is_file()), places[-1])
    if not (folder / CARD).is_file():
        raise AdapterError(
            f"There is no adapter {name} ({folder} holds no {CARD}): see `mmchat adapters list`."
        )
    return folder.absolute()


def read_card(folder: Path) -> Card:
    """The checked adapter.toml of a folder; raises AdapterError."""
    file = folder / CARD
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Card)
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no {CARD}: it is no adapter.") from None
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise AdapterError(f"{file} cannot be used: {error}.") from error


def write_card(folder: Path, card: Card) -> None:
    """Writes adapter.toml."""
    import tomli_w

    (folder / CARD).write_text(tomli_w.dumps(msgspec.to_builtins(card)), encoding="utf-8")


def adapter_hash(folder: Path) -> str:
    """sha256 over an adapter's weights and what tells how they are applied."""
    digest = hashlib.sha256()
    for file in (*_weights(folder), folder / LORA / "adapter_config.json"):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while stretch := stream.read(1 << 20):
                    digest.update(stretch)
    return digest.hexdigest()


def remove_adapter(name: str) -> Path:
    """Removes one of the person's own adapters with all its files; -> its folder.

    Raises AdapterError where it is built in, given as a path, or not there.
    """
    folder = find_adapter(name)
    if folder.parent != paths().adapters.absolute():
        raise AdapterError(f"{folder} is not in {paths().adapters}, and is left alone.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be removed: {error.strerror}.") from error
    return folder


def _describe(name: str, folder: Path, origin: str) -> Adapter:
    try:
        card = read_card(folder)
        _weights(folder)
    except AdapterError as error:
        return Adapter(name, folder, origin, None, str(error))
    return Adapter(name, folder, origin, card)


def _weights(folder: Path) -> list[Path]:
    """The weights of an adapter, each a whole safetensors file; raises AdapterError."""
    found = [f for f in (folder / PROJECTOR, folder / LORA / _LORA_WEIGHTS) if f.is_file()]
    if (folder / LORA).is_dir() and folder / LORA / _LORA_WEIGHTS not in found:
        raise AdapterError(
            f"{folder / LORA} holds no {_LORA_WEIGHTS}, and other forms (.bin, .pt) can run any "
            "program and are never loaded: save it as safetensors."
        )
    if not found:
        raise AdapterError(f"{folder} holds no weights ({PROJECTOR} or {LORA}/{_LORA_WEIGHTS}).")
    for file in found:
        try:
            read_header(file)
        except ModelError as error:
            raise AdapterError(str(error)) from error
    return found


def check_base(card: Card, loaded: "LoadedModel") -> None:
    """Raises AdapterError unless the adapter was trained on the very weights that are loaded."""
    if card.base.hash != loaded.weights_hash:
        raise AdapterError(
            f"{card.name} was trained for {card.base.id} ({card.base.hash[:12]}), not for "
            f"{loaded.name} ({loaded.weights_hash[:12]}): start with --model {card.base.id}, or "
            "choose another adapter."
        )
    kind = getattr(loaded.model.config, "projector_type", "")
    if card.projector and kind and card.projector != kind:
        raise AdapterError(
            f"{card.name} has a projector of the kind {card.projector}, and {loaded.name} one of "
            f"the kind {kind}: choose another adapter."
        )


def apply_adapter(loaded: "LoadedModel", name: str) -> None:
    """Puts the adapter `name` onto the loaded base, in place of any other; "" takes it off.

    Raises AdapterError where it cannot be found, read, trusted, or belongs to
    another base. What was there before then stays, unless the files turn out
    not to fit while they are put on: then the base stands alone.
    """
    if not name:
        _take_off(loaded)
        return
    folder = find_adapter(name)
    card = read_card(folder)
    _weights(folder)
    check_base(card, loaded)
    digest = adapter_hash(folder)
    _take_off(loaded)
    try:
        if (folder / PROJECTOR).is_file():
            _put_on_projector(loaded, folder / PROJECTOR)
        if (folder / LORA).is_dir():
            _put_on_lora(loaded, folder / LORA)
    except BaseException:
        _take_off(loaded)
        raise
    loaded.adapter, loaded.adapter_hash = name, digest


def _projector(loaded: "LoadedModel") -> Any:
    from mmchat.model.quantization import part_of, text_blocks

    blocks, _ = text_blocks(loaded.model)
    for path, module in loaded.model.named_modules():
        if path and part_of(path, blocks) == "projector":
            return module
    raise AdapterError(f"{loaded.name} has no projector that an adapter could replace.")


def _put_on_projector(loaded: "LoadedModel", file: Path) -> None:
    import torch
    from safetensors.torch import load_file

    projector = _projector(loaded)
    loaded.base_projector = {key: t.detach().clone() for key, t in projector.state_dict().items()}
    state = load_file(file)
    wanted = {key: tuple(t.shape) for key, t in loaded.base_projector.items()}
    if {key: tuple(t.shape) for key, t in state.items()} != wanted:
        raise AdapterError(
            f"{file} does not fit the projector of {loaded.name}: the adapter is for another model."
        )
    with torch.no_grad():
        projector.load_state_dict(state)


def _put_on_lora(loaded: "LoadedModel", folder: Path) -> None:
    from mmchat.model.quantization import import_bitsandbytes, text_blocks

    with contextlib.suppress(ImportError, OSError, RuntimeError):
        import_bitsandbytes()  # before peft does, which would let it fetch code
    import torch
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        # peft reads the foreign file in many ways: whatever fails is told.
        raise AdapterError(f"{folder / 'adapter_config.json'} cannot be used: {error}.") from error
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"{folder} is no LoRA adapter, the one kind that mmchat runs.")
    if config.modules_to_save:
        raise AdapterError(
            f"{folder} holds whole modules beside LoRA (modules_to_save), which would replace parts "
            "of the base: save it without, the projector as projector.safetensors."
        )
    config.inference_mode = True
    # Other ways to begin (PiSSA, LoftQ) would change the base's weights; ours are read from the file.
    config.init_lora_weights = True
    try:
        inject_adapter_in_model(config, loaded.model, _PEFT_NAME)
        blocks, _ = text_blocks(loaded.model)
        layers = {n: m for n, m in loaded.model.named_modules() if isinstance(m, BaseTunerLayer)}
        outside = next((path for path in layers if not path.startswith(blocks + ".")), None)
        if outside is not None or not layers:
            raise AdapterError(
                f"{folder} reaches outside the text model's blocks ({outside or 'it targets nothing'})"
                ": train LoRA on the language model's layers only."
            )
        state = {
            key.removeprefix("base_model.model."): tensor
            for key, tensor in load_file(folder / _LORA_WEIGHTS).items()
        }
        # Tensor by tensor, and never through state_dict(): on a CPU bitsandbytes repacks all 4-bit
        # weights for that, with a loss.
        places = {
            key.replace(f".{_PEFT_NAME}.", ".").removesuffix(f".{_PEFT_NAME}"): parameter
            for key, parameter in loaded.model.named_parameters()
            if f".{_PEFT_NAME}" in key
        }
        if set(state) != set(places):
            raise AdapterError(
                f"{folder / _LORA_WEIGHTS} does not hold what its adapter_config.json says: "
                "save the adapter again."
            )
        with torch.no_grad():
            for key, parameter in places.items():
                if parameter.shape != state[key].shape:
                    raise ValueError(f"{key} is {tuple(state[key].shape)} in size")
                parameter.copy_(state[key])
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{folder} does not fit {loaded.name} ({reason}).") from error
    for module in layers.values():
        module.requires_grad_(False)
        module.eval()


def _take_off(loaded: "LoadedModel") -> None:
    """The base's own projector and layers again, exactly."""
    if loaded.base_projector is not None:
        _projector(loaded).load_state_dict(loaded.base_projector)
        loaded.base_projector = None
    if getattr(loaded.model, "peft_config", None) is not None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, module in list(loaded.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, child = path.rpartition(".")
                setattr(loaded.model.get_submodule(parent), child, module.get_base_layer())
        del loaded.model.peft_config
    loaded.adapter = loaded.adapter_hash = ""
