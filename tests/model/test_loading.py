"""load_model on tiny checkpoints: which layers are 4-bit, and one sentence for whatever is broken."""

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmchat.errors import ModelError
from mmchat.memory import machine as machines
from mmchat.model import load_plan, quantization
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_model
from mmchat.prompt.model_inputs import build_prompt
from mmchat.turns import Turn
from tests.model import tiny

Loaded = Callable[[str, str], LoadedModel]
Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("form", ["4bit-fp32", "4bit-bf16"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_exactly_the_text_blocks_are_four_bit(loaded: Loaded, kind: str, form: str) -> None:
    model = loaded(kind, form)
    parts = {part.part: part for part in model.parts}
    assert parts["text blocks"].linear_layers == parts["text blocks"].four_bit == 14
    assert all(part.four_bit == 0 for part in model.parts if part.part != "text blocks")
    if kind != "llama":
        assert parts["vision tower"].linear_layers > 0 and parts["projector"].parameters > 0
    config = model.model.config.quantization_config
    assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == model.compute_dtype
    prompt = build_prompt(model, [Turn("user", ("what colour?",))], 8)
    assert model.model(input_ids=prompt.input_ids).logits.isfinite().all()


@pytest.mark.parametrize("form", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_unquantized_model_has_the_numbers_of_the_files(
    loaded: Loaded, kind: str, form: str
) -> None:
    model = loaded(kind, form)
    assert {p.dtype for p in model.model.parameters()} == {model.compute_dtype}
    assert model.compute_dtype is (torch.float32 if form == "fp32" else torch.bfloat16)
    assert not any(p.requires_grad for p in model.model.parameters())
    assert sum(part.four_bit for part in model.parts) == 0
    assert sum(part.parameters for part in model.parts) == sum(
        p.numel() for p in model.model.parameters()
    )


@pytest.mark.parametrize("form", ["4bit-fp32", "4bit-bf16"])
def test_four_bit_stays_near_fp32(loaded: Loaded, form: str) -> None:
    turns = [Turn("user", ("what colour is the circle?",))]
    full, packed = loaded("llama", "fp32"), loaded("llama", form)
    prompt = build_prompt(full, turns, 8)
    wanted = full.model(input_ids=prompt.input_ids).logits
    got = packed.model(input_ids=prompt.input_ids).logits.float()
    assert torch.nn.functional.cosine_similarity(wanted, got, dim=-1).mean() > 0.75


def test_a_tied_head_is_not_quantized(tmp_path: Path) -> None:
    model = load_model(str(tiny.llama(tmp_path, tied=True)), quantization="4bit", device="cpu")
    head = next(part for part in model.parts if part.part == "lm_head")
    assert head.four_bit == 0 and head.dtype == "tied to the embedding"
    model.model(input_ids=torch.tensor([[5, 6, 7]]))


def test_what_ends_an_answer_is_known(loaded: Loaded) -> None:
    for kind in tiny.KINDS:
        model = loaded(kind, "fp32")
        assert model.tokenizer.eos_token_id in model.eos_token_ids
        assert model.context_length == 4096
        assert model.vision == (kind != "llama")


def test_progress_rises_to_ready(checkpoint: Checkpoint) -> None:
    told: list[tuple[str, float]] = []
    load_model(
        str(checkpoint("llama")),
        quantization="4bit",
        device="cpu",
        progress=lambda stage, fraction: told.append((stage, fraction)),
    )
    assert told[0] == ("reading", 0.0) and told[-1] == ("ready", 1.0)
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    assert ("quantizing", 0.05) in told and len(told) > 10


def test_auto_is_four_bit_if_possible(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_model(str(checkpoint("llama")), device="cpu").quantization == "4bit"
    monkeypatch.setattr(quantization, "works", lambda device: False)
    fallen = load_model(str(checkpoint("llama")), device="cpu")
    assert fallen.quantization in {"bf16", "fp32"}
    assert fallen.compute_dtype == quantization.compute_dtype(torch.device("cpu"))
    with pytest.raises(ModelError, match="bitsandbytes does not work"):
        load_model(str(checkpoint("llama")), quantization="4bit", device="cpu")


@pytest.mark.parametrize(
    ("flags", "capability", "machine", "wanted"),
    [
        ({"avx2"}, "AVX2", "x86_64", torch.float32),
        ({"avx2", "avx512f"}, "AVX512", "x86_64", torch.float32),
        ({"avx512_bf16"}, "AVX512", "x86_64", torch.bfloat16),
        ({"amx_bf16"}, "AVX512", "AMD64", torch.bfloat16),
        ({"avx512_bf16"}, "AVX2", "x86_64", torch.float32),  # ATEN_CPU_CAPABILITY lowered it
        ({"asimd", "bf16"}, "DEFAULT", "aarch64", torch.bfloat16),
        ({"asimd"}, "DEFAULT", "aarch64", torch.float32),
    ],
)
def test_the_compute_dtype_is_what_this_cpu_is_fast_at(
    flags: set[str],
    capability: str,
    machine: str,
    wanted: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", "auto")
    monkeypatch.setattr(machines, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert quantization.compute_dtype(torch.device("cpu")) == wanted
    monkeypatch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", "bf16")
    assert quantization.compute_dtype(torch.device("cpu")) == torch.bfloat16


def test_a_layer_of_the_wrong_format_is_an_error(loaded: Loaded) -> None:
    with pytest.raises(ModelError, match="did not load as mmchat promises"):
        quantization.assert_four_bit(loaded("llava", "fp32").model, "llava")


@pytest.fixture
def copy(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, which a test may damage."""
    shutil.copytree(checkpoint("llama"), tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), quantization="fp32", device="cpu")
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        '{"a": 1}',
        "[1]",
        "[" * 100_000,
    ],
)
def test_an_odd_header_is_an_error(copy: Path, header: str) -> None:
    raw = header.encode()
    (copy / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 4)
    assert "damaged" in refused(copy)


def test_odd_json_is_an_error(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')
    assert "not a weights file" in refused(copy)
    (copy / "model.safetensors.index.json").write_text("[" * 100_000)
    assert "cannot be read" in refused(copy)
    (copy / "config.json").write_text("[" * 100_000)
    assert "not valid JSON" in refused(copy)


def test_broken_folders_are_errors(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(copy)
    weights.write_bytes(b"\xff" * 100)
    assert "damaged" in refused(copy)
    weights.write_bytes(b"")
    assert "damaged" in refused(copy)
    weights.unlink()
    assert "has no weights" in refused(copy)
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickle" in refused(copy)
    (copy / "config.json").write_text("{")
    assert "not valid JSON" in refused(copy)
    (copy / "config.json").write_text("[]")
    assert "has no model_type" in refused(copy)
    (copy / "config.json").unlink()
    assert "no config.json" in refused(copy)
    assert "There is no folder" in refused(copy / "nowhere")


def test_a_missing_shard_is_an_error(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert "has no weights file" in refused(copy)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    assert "not a weights file" in refused(copy)


def _change(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_invalid_configurations_are_errors(copy: Path) -> None:
    _change(copy, hidden_size="wide")
    assert "cannot be used" in refused(copy)
    _change(copy, hidden_size=128)
    assert "cannot be loaded" in refused(copy)
    _change(copy, hidden_size=64, num_hidden_layers=3)
    assert "incomplete" in refused(copy)
    _change(copy, num_hidden_layers=2, quantization_config={"quant_method": "gptq"})
    assert "quantized form of its own" in refused(copy)
    _change(copy, quantization_config=None, model_type="unheard_of")
    assert "cannot run" in refused(copy)
    _change(copy, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (copy / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    assert "never run" in refused(copy)
    _change(copy, model_type="bert")
    assert refused(copy)


def test_a_missing_tokenizer_is_an_error(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert "tokenizer" in refused(copy)


def test_a_model_larger_than_the_memory_is_an_error(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_plan, "available_memory", lambda: 1000)
    message = refused(copy)
    assert " of memory and " in message and "--quantization 4bit" in message


def test_an_unusable_device_is_an_error(copy: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            load_model(str(copy), device="cuda")


@pytest.mark.slow
def test_bitsandbytes_is_imported_without_its_fetcher() -> None:
    """In a new process: `kernels` is installed there, and is not used."""
    import subprocess
    import sys
    import textwrap

    program = """
        import sys, types
        asked = []
        class Kernels(types.ModuleType):
            def __getattr__(self, name):
                asked.append(name)
                raise AttributeError(name)
        sys.modules["kernels"] = Kernels("kernels")
        from mmchat.model.quantization import import_bitsandbytes
        import_bitsandbytes()
        assert 'get_kernel' not in asked and isinstance(sys.modules["kernels"], Kernels)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "kernels" not in done.stderr, done.stderr
