"""LoRA on the linear layers of a loaded text model, from files that are not trusted.

Which layers change, and by how many ranks, is read from the header of the weights, so that the size
of that file bounds the memory. adapter_config.json says how strongly, and only that: what it holds
of patterns is never run as regular expressions, for one of them can take for ever.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mmchat.errors import AdapterError, ModelError
from mmchat.model.adapters import LORA_WEIGHTS
from mmchat.model.checkpoint import read_header
from mmchat.model.quantization import import_bitsandbytes, text_blocks

_PEFT_NAME = "mmchat"
# What LoRA can do beyond adding to a layer, and what taking it off could not undo.
_STRUCTURE = ("layer_replication", "target_parameters", "trainable_token_indices")
_PLAIN = re.compile(r"[\w.]+")


def put_on_lora(model: Any, name: str, folder: Path) -> None:
    """Puts the stock peft adapter in `folder` onto `model`, which is called `name`.

    Raises AdapterError where it cannot be read or does not fit; `take_off_lora`
    then removes what is on already.
    """
    with contextlib.suppress(ImportError, OSError, RuntimeError):
        import_bitsandbytes()  # before peft does, which would let it fetch code
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = _read_config(folder)
    try:
        ranks = _ranks(model, name, folder / LORA_WEIGHTS)
        _confine(config, ranks, folder)
        inject_adapter_in_model(config, model, _PEFT_NAME)
        _fill(model, folder / LORA_WEIGHTS)
    except AdapterError:
        raise
    except Exception as error:
        # peft follows the foreign configuration into the model and fails in its own ways.
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(
            f"{folder} does not fit {name} ({reason}): save the adapter again, or choose another."
        ) from error
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.requires_grad_(False)
            module.eval()


def take_off_lora(model: Any) -> None:
    """The layers of the base again, also where putting on ended half-way."""
    if "peft" not in sys.modules:
        return  # nothing can be on, and importing it takes seconds
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if getattr(model, "peft_config", None) is not None:
        del model.peft_config


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, by its header; raises AdapterError."""
    try:
        return {tensor.name: tensor.shape for tensor in read_header(file)}
    except ModelError as error:
        raise AdapterError(str(error)) from error


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; raises AdapterError."""
    try:
        state: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} cannot be read ({error}): make the adapter again.") from error
    return state


def _read_config(folder: Path) -> Any:
    """The LoraConfig of the folder, if it is of a form that can be put on and taken off."""
    from peft import LoraConfig, PeftConfig

    file = folder / "adapter_config.json"
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        # peft reads the foreign file in many ways: whatever fails is told.
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{file} cannot be used ({reason}): save the adapter again.") from error
    if not isinstance(config, LoraConfig):
        raise AdapterError(
            f"{folder} is no LoRA adapter, the one kind that mmchat runs: choose another adapter."
        )
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
    return config


def _ranks(model: nn.Module, name: str, file: Path) -> dict[str, int]:
    """The rank by layer that the weights in `file` have; each is a layer of `model` that they fit."""
    shapes = {_inside(key): shape for key, shape in read_shapes(file).items()}
    blocks, _ = text_blocks(model)
    modules = dict(model.named_modules())
    ranks: dict[str, int] = {}
    for key, shape in shapes.items():
        path = key.partition(".lora_")[0]
        if not path.startswith(blocks + "."):
            raise _outside(file, path)
        sizes = _sizes(modules.get(path))
        if sizes is None:
            raise _unfit(file, name, f"it has no linear layer {path}")
        inputs, outputs = sizes
        rank = shapes.get(f"{path}.lora_A.weight", (0,))[0]
        fitting = {"A": (rank, inputs), "B": (outputs, rank)}
        if key.endswith(".weight") and shape != fitting.get(key[-len("A.weight")]):
            raise _unfit(file, name, f"{key} is {shape} in size")
        ranks[path] = rank
    if not ranks:
        raise _outside(file, "it targets nothing")
    return ranks


def _sizes(module: nn.Module | None) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, None for anything else."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # GPT-2's family
    return (module.nx, module.nf) if isinstance(module, Conv1D) else None


def _confine(config: Any, ranks: dict[str, int], folder: Path) -> None:
    """Makes `config` target the layers of `ranks` and no others, with patterns that are ours."""
    claimed = _by_layer(config.rank_pattern, ranks, config.r, folder)
    if claimed != ranks:
        raise _inconsistent(folder / LORA_WEIGHTS)
    scales = _by_layer(config.alpha_pattern, ranks, config.lora_alpha, folder)
    config.target_modules = set(ranks)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    # One for most layers: peft tries every pattern on every layer.
    config.r = Counter(ranks.values()).most_common(1)[0][0]
    config.rank_pattern = {re.escape(p): rank for p, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {
        re.escape(path): scale for path, scale in scales.items() if scale != config.lora_alpha
    }
    config.inference_mode = True
    config.megatron_config = None  # with it, the foreign file would name a module to import
    # Other ways to begin (PiSSA, LoftQ) would change the base's weights; ours are read from the file.
    config.init_lora_weights = True


def _by_layer(
    pattern: dict[str, Any] | None, paths: Iterable[str], default: Any, folder: Path
) -> dict[str, Any]:
    """What `pattern` says of each layer: its first key that is the layer's name or the end of it."""
    pattern = pattern or {}
    if not all(_PLAIN.fullmatch(key) for key in pattern):
        raise AdapterError(
            f"{folder / 'adapter_config.json'} names layers by regular expressions in rank_pattern "
            "or alpha_pattern, which are never run: write the layers' names there."
        )
    order = {key: number for number, key in enumerate(pattern)}
    found: dict[str, Any] = {}
    for path in paths:
        words = path.split(".")
        ends = [".".join(words[number:]) for number in range(len(words))]
        first = min((end for end in ends if end in order), key=order.__getitem__, default=None)
        found[path] = default if first is None else pattern[first]
    return found


def _fill(model: nn.Module, file: Path) -> None:
    """Copies the weights of `file` into the layers that wait for them."""
    state = {_inside(key): tensor for key, tensor in read_tensors(file).items()}
    # Tensor by tensor, and never through state_dict(): on a CPU bitsandbytes repacks all 4-bit
    # weights for that, with a loss.
    places = {
        key.replace(f".{_PEFT_NAME}.", ".").removesuffix(f".{_PEFT_NAME}"): parameter
        for key, parameter in model.named_parameters()
        if f".{_PEFT_NAME}" in key
    }
    if set(state) != set(places):
        raise _inconsistent(file)
    with torch.no_grad():
        for key, parameter in places.items():
            if parameter.shape != state[key].shape:
                raise ValueError(f"{key} is {tuple(state[key].shape)} in size")
            parameter.copy_(state[key])


def _inside(key: str) -> str:
    """A tensor's name as the model has it."""
    return key.removeprefix("base_model.model.")


def _outside(file: Path, where: str) -> AdapterError:
    return AdapterError(
        f"{file.parent} reaches outside the text model's blocks ({where}): train LoRA on the "
        "language model's layers only."
    )


def _unfit(file: Path, name: str, why: str) -> AdapterError:
    return AdapterError(f"{file} does not fit {name} ({why}): the adapter is for another model.")


def _inconsistent(file: Path) -> AdapterError:
    return AdapterError(
        f"{file} does not hold what its adapter_config.json says: save the adapter again."
    )
