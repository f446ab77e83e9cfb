"""Putting an adapter onto a loaded base, and taking it off exactly."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmchat.errors import AdapterError
from mmchat.model.adapters import (
    LORA,
    LORA_WEIGHTS,
    PROJECTOR,
    adapter_hash,
    check_adapter,
)
from mmchat.model.checkpoint import file_stamps
from mmchat.model.quantization import import_bitsandbytes, part_of, text_blocks

if TYPE_CHECKING:
    from mmchat.model.loading import LoadedModel

_PEFT_NAME = "mmchat"
# What LoRA can do beyond adding to a layer, and what taking it off could not undo.
_STRUCTURE = ("layer_replication", "target_parameters", "trainable_token_indices")


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
            _put_on_lora(loaded, folder / LORA)
    except BaseException:
        _take_off(loaded)
        raise
    loaded.adapter, loaded.adapter_hash, loaded.adapter_files = name, digest, stamps


def _projector(loaded: "LoadedModel") -> Any:
    blocks, _ = text_blocks(loaded.model)
    for path, module in loaded.model.named_modules():
        if path and part_of(path, blocks) == "projector":
            return module
    raise AdapterError(f"{loaded.name} has no projector that an adapter could replace.")


def _put_on_projector(loaded: "LoadedModel", file: Path) -> None:
    projector = _projector(loaded)
    loaded.base_projector = {key: t.detach().clone() for key, t in projector.state_dict().items()}
    state = _read(file)
    wanted = {key: tuple(t.shape) for key, t in loaded.base_projector.items()}
    if {key: tuple(t.shape) for key, t in state.items()} != wanted:
        raise AdapterError(
            f"{file} does not fit the projector of {loaded.name}: the adapter is for another model."
        )
    with torch.no_grad():
        projector.load_state_dict(state)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} cannot be read ({error}): make the adapter again.") from error
    return state


def _put_on_lora(loaded: "LoadedModel", folder: Path) -> None:
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        import_bitsandbytes()  # before peft does, which would let it fetch code
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

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
    changed = [name for name in _STRUCTURE if getattr(config, name, None)]
    if changed:
        raise AdapterError(
            f"{folder} would change more than the layers it targets ({', '.join(changed)}): train "
            "LoRA on linear layers only."
        )
    config.inference_mode = True
    config.megatron_config = None  # with it, the foreign file would name a module to import
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
            for key, tensor in _read(folder / LORA_WEIGHTS).items()
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
                f"{folder / LORA_WEIGHTS} does not hold what its adapter_config.json says: "
                "save the adapter again."
            )
        with torch.no_grad():
            for key, parameter in places.items():
                if parameter.shape != state[key].shape:
                    raise ValueError(f"{key} is {tuple(state[key].shape)} in size")
                parameter.copy_(state[key])
    except AdapterError:
        raise
    except Exception as error:
        # As above: peft follows the foreign configuration into the model and fails in its own ways.
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
    loaded.adapter_files = {}
