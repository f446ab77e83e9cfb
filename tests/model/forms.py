"""A tiny base in every weight format and compute dtype, on every machine."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_model
from mmchat.model.quantization import import_bitsandbytes, is_four_bit, is_packed
from mmchat.settings import Quantization

FORMS = ("4bit-fp32", "4bit-bf16", "fp32", "bf16")
"""How the weights are kept and, for 4-bit ones, the compute dtype."""


def load(folder: Path | str, form: str, **more: Any) -> LoadedModel:
    """The checkpoint in `folder` on the CPU, in one of `FORMS`."""
    kept, _, computed = form.partition("-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", computed or "auto")
        return load_model(str(folder), quantization=cast(Quantization, kept), device="cpu", **more)


def form_of(loaded: LoadedModel) -> str:
    """The one of `FORMS` in which a model was loaded."""
    computed = "fp32" if loaded.compute_dtype is torch.float32 else "bf16"
    return f"4bit-{computed}" if loaded.quantization == "4bit" else loaded.quantization


def exact_form(form: str) -> str:
    """The form with the same weights that computes in float32."""
    return {"4bit-bf16": "4bit-fp32", "bf16": "fp32"}.get(form, form)


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """|found - truth| / |truth|, of all numbers together."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def assert_as_exact(
    found: torch.Tensor, reference: torch.Tensor, truth: torch.Tensor, factor: float = 1.5
) -> None:
    """Asserts that `found` is about as near to `truth` as `reference` is: two ways to compute in bfloat16.

    bfloat16 has 8 bits, and how far they carry depends on the weights; so the yardstick is another
    computation in it, and the truth the same weights in float32.
    """
    ours, theirs = relative_error(found, truth), relative_error(reference, truth)
    assert ours <= factor * theirs, f"off by {ours:.3g}, the reference by {theirs:.3g}"


def pack(model: torch.nn.Module) -> None:
    """Repacks every 4-bit layer as bitsandbytes does on a CPU with AVX512-BF16, on any CPU."""
    convert = import_bitsandbytes().functional._convert_weight_packed_for_cpu
    for module in model.modules():
        if is_four_bit(module) and not is_packed(module):
            layer: Any = module
            layer.weight.data, layer.weight.quant_state = convert(
                layer.weight.data, layer.weight.quant_state
            )
