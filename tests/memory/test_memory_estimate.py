"""Memory estimates: exact if that is possible, in the right direction otherwise."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import bitsandbytes.functional as four_bit
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmchat.engine.decode import PREFILL_CHUNK
from mmchat.errors import ModelError
from mmchat.memory.memory_estimate import PREFILL, estimate_inference, nf4_bytes, weight_bytes
from mmchat.memory.model_dims import ModelDims, UnknownModelError, model_dims, read_dims
from mmchat.memory.training_memory import TrainingStep, estimate_training
from mmchat.model.catalogue import OFFERS, offered_dims
from mmchat.model.loaded_model import LoadedModel
from mmchat.model_files import TensorInfo
from tests.memory import published

Checkpoint = Callable[[str], Path]
Loaded = Callable[[str, str], LoadedModel]

SCENES = Path(__file__).resolve().parents[2] / "adapters" / "scenes"
SHAPES = [(64, 64), (256, 768), (4096, 64)]


@lru_cache
def scenes() -> ModelDims:
    return read_dims(SCENES)


@pytest.mark.parametrize("shape", [*SHAPES, (100, 33)])
def test_four_bit_weights_are_estimated_to_the_byte(shape: tuple[int, int]) -> None:
    packed, state = four_bit.quantize_4bit(
        torch.randn(shape), quant_type="nf4", compress_statistics=True
    )
    beside = [state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset]
    assert nf4_bytes(shape[0] * shape[1]) == (
        packed.nbytes,
        sum(tensor.nbytes for tensor in beside),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_repacked_for_inference_are_estimated_too(shape: tuple[int, int]) -> None:
    packed, state = four_bit.quantize_4bit(
        torch.randn(shape), quant_type="nf4", compress_statistics=True
    )
    packed, state = four_bit._convert_weight_packed_for_cpu(packed, state)
    weights, beside = nf4_bytes(shape[0] * shape[1], packed=True)
    assert weights == packed.nbytes
    tables = 4 * (16 + 256 + 1) + 4 * -(-state.absmax.numel() // 256)
    assert beside == state.absmax.nbytes + tables


@pytest.mark.parametrize(
    "kind", ["visual_prefix", "llava", "llama", "smolvlm", "qwen2_vl", "gemma3"]
)
@pytest.mark.parametrize("form", ["4bit", "fp32"])
def test_the_weights_of_every_kind_take_what_is_estimated(
    kind: str, form: Any, checkpoint: Checkpoint, loaded: Loaded
) -> None:
    model = loaded(kind, form)
    itemsize = model.compute_dtype.itemsize
    dims = read_dims(checkpoint(kind))
    estimated = sum(weight_bytes(dims, form, itemsize).values())
    # The report leaves out the tables for reading a 4-bit layer.
    tables = 1100 * sum(linear.count for linear in dims.linears) if form == "4bit" else 0
    assert estimated == pytest.approx(model.memory_bytes, rel=0.01, abs=tables)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(["projector", "lora", "qlora", "full"]),
    rows=st.integers(1, 8),
    row_tokens=st.integers(64, 2048),
    rank=st.integers(1, 64),
    checkpointing=st.booleans(),
    optimizer=st.sampled_from(["adamw", "adamw8bit", "muon"]),
    device=st.sampled_from(["cpu", "cuda"]),
    itemsize=st.sampled_from([2, 4]),
)
def test_more_work_never_takes_less(
    method: Any,
    rows: int,
    row_tokens: int,
    rank: int,
    checkpointing: bool,
    optimizer: Any,
    device: Any,
    itemsize: int,
) -> None:
    def estimate(step: TrainingStep) -> Any:
        form: Any = "4bit" if method == "qlora" else "fp32"
        return estimate_training(scenes(), form, step, itemsize=itemsize, device=device)

    step = TrainingStep(
        method,
        rows=rows,
        row_tokens=row_tokens,
        rank=rank,
        answer_tokens=40,
        projector=True,
        gradient_checkpointing=checkpointing,
        optimizer=optimizer,
    )
    least = estimate(step)
    assert least.total == sum(least.parts.values())
    assert all(size > 0 for size in least.parts.values())
    changes: list[dict[str, Any]] = [
        {"rows": rows + 1},
        {"row_tokens": row_tokens + 64},
        {"rank": rank + 8},
        {"pictures": 4},
        {"vision_blocks": 2, "pictures": 4},
    ]
    for change in changes:
        assert estimate(replace(step, **change)).total >= least.total, change
    assert (
        estimate(replace(step, gradient_checkpointing=True)).total
        <= estimate(replace(step, gradient_checkpointing=False)).total * 1.001
        or row_tokens * rows < 512
    )


def test_what_saves_memory_saves_it() -> None:
    dims = scenes()
    big = TrainingStep("lora", rows=8, row_tokens=1024, projector=True)
    saving = replace(big, gradient_checkpointing=True)
    plain = estimate_training(dims, "fp32", big, itemsize=4).total
    assert estimate_training(dims, "fp32", saving, itemsize=4).total < 0.7 * plain
    assert sum(weight_bytes(dims, "4bit", 4).values()) < sum(weight_bytes(dims, "fp32", 4).values())
    full = TrainingStep("full", row_tokens=64)
    small = replace(full, optimizer="adamw8bit")
    assert (
        estimate_training(dims, "fp32", small, device="cuda").total
        < estimate_training(dims, "fp32", full, device="cuda").total
    )


def test_part_of_a_step_has_its_share_of_everything() -> None:
    step = TrainingStep("lora", row_tokens=64, rows=8, pictures=16, answer_tokens=400)
    assert step.at_once(2) == replace(step, rows=2, pictures=4, answer_tokens=100)
    assert step.at_once(8) == step


def test_a_longer_conversation_takes_more() -> None:
    sizes = [estimate_inference(scenes(), "4bit", context=n).total for n in (1024, 4096, 16384)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("form", ["4bit", "bf16"])
def test_a_mapped_file_is_not_counted_beside_the_weights(form: Any) -> None:
    """The system can drop its pages, or they are the weights."""
    dims = published.dims("Qwen/Qwen2-VL-2B-Instruct")
    estimate = estimate_inference(dims, form, context=2048, itemsize=2)
    weights = sum(weight_bytes(dims, form, 2, packed=form == "4bit").values())
    held = estimate.parts["weights"] + estimate.parts.get("quantization state", 0)
    assert held == weights
    assert estimate.total < weights + 600_000_000


def test_of_an_embedding_in_the_file_only_the_rows_that_are_read_count() -> None:
    """But not if it is converted, because then it is a copy."""
    dims = published.dims("HuggingFaceTB/SmolVLM-Instruct")
    as_it_is, converted = (
        estimate_inference(replace(dims, dtype=dtype), "bf16", context=2048, itemsize=2)
        for dtype in ("BF16", "F16")
    )
    difference = converted.parts["weights"] - as_it_is.parts["weights"]
    assert difference == 2 * dims.embedding


def test_a_prompt_is_read_in_pieces_as_the_engine_reads_it() -> None:
    assert PREFILL == PREFILL_CHUNK


# The models that can be fetched


@pytest.mark.parametrize("name", [offer.hub_id for offer in OFFERS])
def test_the_sizes_of_offered_models_are_those_of_their_headers(name: str) -> None:
    """After a change of ModelDims: python -m tests.memory.published"""
    dims = published.dims(name)
    assert offered_dims()[name] == dims and not dims.estimated
    assert dims.parameters == published.PARAMETERS.get(name, dims.parameters)
    offer = next(offer for offer in OFFERS if offer.hub_id == name)
    assert 2 * dims.parameters == pytest.approx(offer.download_gb * 1e9, rel=0.06)


def test_older_names_of_tensors_say_the_same() -> None:
    """Checkpoints from before transformers 5 name the same tensors in another order."""
    name = "llava-hf/llava-1.5-7b-hf"
    older = [
        TensorInfo(
            re.sub(
                r"^model\.language_model\.",
                "language_model.model.",
                re.sub(r"^lm_head", "language_model.lm_head", tensor).replace(
                    "model.vision_tower.", "vision_tower.vision_model."
                ),
            ).removeprefix("model."),
            "F16",
            shape,
        )
        for tensor, shape in published.shapes(published.CONFIGS[name]).items()
    ]
    assert {"language_model.lm_head.weight", "vision_tower.vision_model.post_layernorm.bias"} < {
        tensor.name for tensor in older
    }
    assert model_dims(published.CONFIGS[name], older) == published.dims(name)


def test_the_estimate_needs_no_torch() -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from mmchat.memory.machine import Machine; from mmchat.memory.memory_fit import all_fits\n"
        "from mmchat.memory.model_dims import read_dims\n"
        f"found = list(all_fits(read_dims(Path({str(SCENES)!r})), Machine('cpu', 8 << 30, 4)))\n"
        "assert len(found) == 5, found\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_model_without_text_cannot_be_estimated() -> None:
    with pytest.raises(ModelError, match="does not know the text model"):
        model_dims({"model_type": "strange"}, [])


def test_an_embedding_of_unknown_name_does_not_matter() -> None:
    """The configuration has its sizes too; layers of unknown names are estimated from their shapes."""
    config = {"model_type": "strange", "hidden_size": 64, "vocab_size": 100}
    tensors = [
        TensorInfo("backbone.embeddings.weight", "BF16", (100, 64)),
        TensorInfo("backbone.layers.0.mixer.one.weight", "BF16", (256, 64)),
    ]
    dims = model_dims(config, tensors)
    assert (dims.parameters, dims.block_matrices, dims.vocab_size) == (22_784, 16_384, 100)
    assert len(dims.estimated) == 2
    with pytest.raises(UnknownModelError):
        model_dims({"model_type": "strange"}, tensors)
