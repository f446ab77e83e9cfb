"""Whether a model fits: as it is, with changes, or not at all, and on which machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmchat.memory import machine as machines
from mmchat.memory.machine import Machine, own_memory, this_machine
from mmchat.memory.memory_fit import CHAT_TOKENS, all_fits, chat_fit, training_fit
from mmchat.memory.model_dims import ModelDims
from mmchat.memory.training_memory import TrainingStep
from mmchat.settings import ModelSettings
from tests.memory import published
from tests.memory.test_memory_estimate import scenes

LLAVA = "llava-hf/llava-1.5-7b-hf"
GB = 1_000_000_000


def long_scenes() -> ModelDims:
    return replace(scenes(), context=8192)


def test_a_training_fits_as_it_is_with_changes_or_not_at_all() -> None:
    step = TrainingStep("lora", rows=8, row_tokens=512, projector=True)

    def fit(free: int) -> Any:
        return training_fit(scenes(), Machine("cpu", free, 4), "fp32", step)

    whole = fit(64 << 30)
    assert whole.fits and whole.settings == () and whole.sentence.startswith("fits: about ")
    helped = fit(whole.needed_bytes - 1)
    assert helped.fits and helped.settings == ("micro_rows=1",)
    assert "fits with micro_rows=1" in helped.sentence
    tight = fit(helped.needed_bytes - 1)
    assert tight.fits and tight.settings == ("micro_rows=1", "gradient_checkpointing=true")
    none = fit(1 << 20)
    assert not none.fits
    assert none.sentence.startswith("does not fit, because it takes about ")


def test_a_conversation_is_as_long_as_memory_allows() -> None:
    whole = chat_fit(long_scenes(), Machine("cpu", 64 << 30, 4), "4bit")
    assert whole.fits and not whole.settings and whole.context == 8192
    shorter = chat_fit(long_scenes(), Machine("cpu", whole.context_bytes - 1, 4), "4bit")
    assert shorter.fits and shorter.settings == ("up to 4,096 tokens of conversation",)
    assert shorter.needed_bytes == whole.needed_bytes < shorter.context_bytes < whole.context_bytes
    least = chat_fit(long_scenes(), Machine("cpu", whole.needed_bytes, 4), "4bit")
    assert least.fits and least.context == scenes().image_tokens + CHAT_TOKENS
    assert not chat_fit(long_scenes(), Machine("cpu", whole.needed_bytes - 1, 4), "4bit").fits
    small = replace(scenes(), context=600)
    assert chat_fit(small, Machine("cpu", 64 << 30, 4), "4bit").context == 600


def test_the_reason_says_what_is_available() -> None:
    dims = published.dims(LLAVA)
    fits = chat_fit(dims, Machine("cpu", 12 * GB, 2, 16 * GB), "4bit")
    assert fits.fits and fits.reason.endswith("of memory, 12.0 GB are free")
    busy = chat_fit(dims, Machine("cpu", 2 * GB, 2, 16 * GB), "4bit")
    assert not busy.fits and busy.reason.endswith("of memory, 2.0 GB are free now")
    small = chat_fit(dims, Machine("cpu", 2 * GB, 2, 4 * GB), "4bit")
    assert not small.fits and small.reason.endswith("of memory, this machine has 4.0 GB")
    assert busy.sentence.startswith("does not fit, because it takes about ")
    assert "its largest part is weights, 4.4 GB" in busy.sentence


def test_every_use_is_listed() -> None:
    uses = [fit.use for fit in all_fits(scenes(), Machine("cpu", 8 << 30, 4))]
    assert uses == [
        "talk, 4-bit",
        "talk, unquantized (fp32)",
        "train, qlora (4-bit base)",
        "train, lora (unquantized base)",
        "train, full",
    ]


@pytest.mark.parametrize("name", sorted(published.CONFIGS))
def test_a_larger_form_never_takes_less(name: str) -> None:
    dims = published.dims(name)
    for itemsize in (2, 4):
        sizes = [
            chat_fit(dims, Machine("cpu", 64 << 30, itemsize), form).needed_bytes
            for form in ("4bit", "bf16", "fp32")
        ]
        assert sizes[0] < sizes[2] and sizes[1] < sizes[2]
    assert chat_fit(dims, Machine("cuda", 64 << 30, 2), "4bit").needed_bytes < sizes[0]


# The machine


def test_the_settings_decide_what_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "_free_gpu_memory", lambda: None)
    for fast in (True, False):
        monkeypatch.setattr(machines, "fast_in_bfloat16", lambda fast=fast: fast)
        assert this_machine(ModelSettings()).itemsize == (2 if fast else 4)
        assert this_machine(ModelSettings(compute_dtype="bf16")).itemsize == 2
        assert this_machine(ModelSettings(compute_dtype="fp32")).itemsize == 4
    assert this_machine(ModelSettings(device="mps")).itemsize == 2
    found = this_machine(ModelSettings())
    assert found.device == "cpu" and 0 < found.free <= found.total
    assert [found.itemsize_of(form) for form in ("4bit", "bf16", "fp32")] == [4, 2, 4]


def test_torch_that_may_not_use_avx512_is_slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert machines.fast_in_bfloat16()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert not machines.fast_in_bfloat16()


def test_free_gpu_memory_comes_from_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")

    def answer(words: str) -> Machine:
        program.write_text(f'#!/bin/sh\ntest "$3" = --id=1 && echo "{words}"\n', "utf-8")
        program.chmod(0o700)
        return this_machine(ModelSettings())

    assert answer("8000, 8.6") == Machine("cuda", 8000 << 20, 2)
    assert answer("8000, 7.5") == Machine("cuda", 8000 << 20, 4)
    assert answer("No devices were found").device == "cpu"
    assert answer("").device == "cpu"
    program.write_text("#!/bin/sh\nexit 9\n", "utf-8")
    assert this_machine(ModelSettings()).device == "cpu"
    answer("8000, 8.6")
    assert this_machine(ModelSettings(device="cpu")).device == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert this_machine(ModelSettings()).device == "cpu"


def test_a_process_knows_what_it_holds() -> None:
    before = own_memory()
    held = bytearray(b"x") * (64 << 20)
    assert own_memory() - before > 48 << 20
    del held
