"""LoRA on the linear layers of a loaded model: what is added to each of them while they run.

The base's modules stay as they are: a hook adds to what a layer gives, and taking it away leaves
the base bit for bit. It is what stock peft computes (tested side by side) without its cost: the
scale is in the matrix already, and DoRA's norms, which peft takes of the whole dequantized weight
at every step, are taken once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmchat.adapters.card import LORA_WEIGHTS
from mmchat.adapters.lora_file import HEAD, LoraLayer, read_lora_file
from mmchat.errors import AdapterError
from mmchat.model.quantization import dequantized_weight, is_four_bit, text_blocks

# Where older transformers had the text model of an image-text-to-text model, whose adapters
# still go around.
_OLDER = ("language_model.model.", "language_model.")


@dataclass(frozen=True, slots=True, eq=False)
class LoraDelta:
    """What LoRA adds to one linear layer: `up @ down` to its weight, then DoRA's `gain` by output."""

    down: Tensor
    """(rank, inputs)"""
    up: Tensor
    """(outputs, rank), the scale in it."""
    shift: Tensor | None = None
    """(outputs,), of `lora_bias`, the scale in it."""
    gain: Tensor | None = None
    """(outputs,) float32: magnitude / norm of the changed weight's row."""

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.down, self.up, self.shift, self.gain) if t is not None)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """A forward hook of `layer`."""
        hidden = inputs[0].to(self.down.dtype)
        change = F.linear(F.linear(hidden, self.down), self.up, self.shift).to(output.dtype)
        if self.gain is None:
            return output + change
        bias = layer.bias
        inner = output + change if bias is None else output - bias + change
        scaled = (inner.float() * self.gain).to(output.dtype)
        return scaled if bias is None else scaled + bias

    def merged(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of an unquantized `layer` with this in it, as float32.

        Raises ValueError where the layer has no bias and this would need one.
        """
        change = self.up.float() @ self.down.float()
        weight = layer.weight.float() + (change if isinstance(layer, nn.Linear) else change.T)
        if self.gain is not None:
            rows = self.gain if isinstance(layer, nn.Linear) else self.gain[None]
            weight = weight * (rows[:, None] if isinstance(layer, nn.Linear) else rows)
        bias = None if layer.bias is None else layer.bias.float()
        if self.shift is not None:
            if bias is None:
                raise ValueError("the layer has no bias that lora_bias could be merged into")
            shift = self.shift.float()
            bias = bias + (shift if self.gain is None else shift * self.gain)
        return weight, bias


def read_lora(
    model: Any, name: str, folder: Path, dtype: torch.dtype
) -> list[tuple[nn.Module, LoraDelta]]:
    """What the stock peft adapter in `folder` adds to which layers of `model`, called `name`.

    Nothing of the model is changed. `dtype` is what the layers compute in. Raises AdapterError
    where the files cannot be read, do not agree, or do not fit.
    """
    found = read_lora_file(folder)
    file = folder / LORA_WEIGHTS
    layers = {path: _layer(model, name, file, path, layer) for path, layer in found.layers.items()}
    if len({id(layer) for layer in layers.values()}) < len(layers):
        raise _unfit(file, name, "it names a layer twice")
    # Only now, for a file that does not fit is never read into memory.
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(file).items():
        path, part = found.keys[key]
        parts.setdefault(path, {})[part] = tensor.float()
    deltas = []
    for path, layer in layers.items():
        at, scale = parts[path], found.layers[path].scale
        gain = None
        if "magnitude" in at:
            gain = _gain(layer, at["A"], at["B"] * scale, at["magnitude"])
            if not bool(torch.isfinite(gain).all()):
                raise AdapterError(
                    f"{file} cannot be used (the changed weights of {path} are zero): train it again."
                )
        device = _device(layer)
        delta = LoraDelta(
            at["A"].to(device, dtype, copy=True),  # the file stays mapped otherwise
            (at["B"] * scale).to(device, dtype),
            (at["bias"] * scale).to(device, dtype) if "bias" in at else None,
            gain,
        )
        deltas.append((layer, delta))
    return deltas


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, every number finite; raises AdapterError."""
    try:
        state: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{file} cannot be read ({error}): make the adapter again.") from error
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"{file} holds numbers that are not finite (in {name[:200]}): train it again."
            )
    return state


def _layer(model: Any, name: str, file: Path, path: str, wanted: LoraLayer) -> nn.Module:
    """The layer of the model that `path` of the adapter's file means, if it has these sizes."""
    blocks, _ = text_blocks(model)
    here, last = path, blocks.rpartition(".")[2]
    for older in _OLDER:
        if path.startswith(f"{older}{last}.") and not path.startswith(blocks + "."):
            here = blocks + path.removeprefix(older + last)
            break
    if not here.startswith(blocks + ".") and here != HEAD:
        raise AdapterError(
            f"{file.parent} reaches outside the text model's blocks ({path[:200]}): train LoRA on the "
            "language model's layers only."
        )
    try:
        layer = model.get_submodule(here)
    except AttributeError:
        layer = None
    sizes = _sizes(layer)
    if sizes is None:
        raise _unfit(file, name, f"it has no linear layer {path[:200]}")
    if sizes != (wanted.inputs, wanted.outputs):
        raise _unfit(
            file,
            name,
            f"{path[:200]} goes from {wanted.inputs} to {wanted.outputs} features in it, and there "
            f"from {sizes[0]} to {sizes[1]}",
        )
    assert isinstance(layer, nn.Module)
    return layer


def _sizes(module: nn.Module | None) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, None for anything else."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # GPT-2's family
    return (module.nx, module.nf) if isinstance(module, Conv1D) else None


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


def _gain(layer: nn.Module, down: Tensor, up: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: what each output of the changed layer is multiplied by; float32 (outputs,)."""
    weight = plain_weight(layer)
    changed = torch.addmm(weight, up.to(weight.device), down.to(weight.device))
    return magnitude.to(weight.device) / torch.linalg.vector_norm(changed, dim=1)


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight that a linear layer computes with, 4-bit or not: float32 (outputs, inputs)."""
    if is_four_bit(layer):
        return dequantized_weight(layer)
    weight: Tensor = layer.weight.detach().float()
    return weight if isinstance(layer, nn.Linear) else weight.T


def _unfit(file: Path, name: str, why: str) -> AdapterError:
    return AdapterError(f"{file} does not fit {name} ({why}): the adapter is for another model.")
