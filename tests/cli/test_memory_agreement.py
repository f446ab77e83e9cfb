"""There is one answer to "does it fit?", to the byte, wherever it is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmchat.display.numbers import format_size
from mmchat.errors import ModelError
from mmchat.model import load_plan
from mmchat.settings import builtin_adapters
from mmchat.training.finetune_config import read_config
from mmchat.training.prepare import prepare
from tests.cli.conftest import Run
from tests.memory import published
from tests.training.tuned import dataset

HEADERS = {
    "llava": "llava-hf/llava-1.5-7b-hf",
    "qwen2-vl": "Qwen/Qwen2-VL-2B-Instruct",
    "smolvlm": "HuggingFaceTB/SmolVLM-256M-Instruct",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a published model (its header, and a hole instead of numbers), or the built-in one."""
    root = tmp_path_factory.mktemp("published")

    def find(name: str) -> Path:
        if name == "scenes":
            return builtin_adapters() / name
        if not (root / name).exists():
            config = published.CONFIGS[HEADERS[name]]
            published.write_headers(root / name, config, published.shapes(config))
        return root / name

    return find


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("scenes", "bf16"), ("scenes", "fp32"), ("llava", "fp32"), ("qwen2-vl", "bf16")],
)
def test_every_command_and_the_engine_agree(
    name: str,
    dtype: Any,
    folder: Callable[[str], Path],
    mmchat: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = str(folder(name))
    monkeypatch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", dtype)
    monkeypatch.setenv("MMCHAT_MODEL_DEVICE", "cpu")
    if name != "scenes":
        mmchat("models", "add", where)
    listed = {row["name"]: row for row in rows(mmchat("models", "list", "--json").stdout)}
    needed: int = listed[name]["needed_bytes"]
    offered = listed.get(HEADERS.get(name, ""), listed[name])  # the same before it is fetched
    assert offered["needed_bytes"] == needed
    shown = json.loads(mmchat("models", "show", name, "--no-load", "--json").stdout)
    assert shown["needed_bytes"] == needed
    fits = {
        row["use"]: row for row in rows(mmchat("models", "show", name, "--fit", "--json").stdout)
    }
    assert fits["talk, 4-bit"]["needed_bytes"] == needed
    doctor = json.loads(mmchat("doctor", "--no-load", "--json", MMCHAT_MODEL_NAME=name).stdout)
    assert doctor["model"]["needed_bytes"] == needed
    plain = fits[f"talk, unquantized ({dtype})"]["needed_bytes"]
    for form, size in (("4bit", needed), (dtype, plain)):
        refusal_at(size, where, form, monkeypatch)
    assert f"{format_size(needed)}" in mmchat("models", "list").stdout
    assert f"needs {format_size(needed)} of memory" in shown["reason"]
    assert f": about {format_size(needed)}" in mmchat("models", "show", name, "--fit").stdout or (
        not fits["talk, 4-bit"]["fits"]
    )


def refusal_at(needed: int, where: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine loads with exactly `needed` bytes and refuses with one less, before it takes any."""
    monkeypatch.setattr(load_plan, "own_memory", lambda: 0)
    for given in (0, 1):
        monkeypatch.setattr(load_plan, "available_memory", lambda given=given: needed - given)
        monkeypatch.setattr(load_plan, "weights_hash", lambda folder: "")
        if not given:
            load_plan.plan_load(where, quantization=form, device="cpu")
            continue
        with pytest.raises(ModelError) as told:
            load_plan.plan_load(where, quantization=form, device="cpu")
        assert f"{where} needs about {format_size(needed)} of memory and " in str(told.value)


def test_the_models_of_the_catalogue_need_the_same_before_and_after_they_are_fetched(
    folder: Callable[[str], Path], mmchat: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = folder("smolvlm")
    for dtype in ("bf16", "fp32"):
        monkeypatch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", dtype)
        before, after = (
            json.loads(mmchat("models", "show", name, "--no-load", "--json").stdout)["needed_bytes"]
            for name in (HEADERS["smolvlm"], str(where))
        )
        assert before == after
        fetchable = rows(mmchat("models", "show", HEADERS["smolvlm"], "--fit", "--json").stdout)
        assert fetchable[0]["needed_bytes"] == before


def test_training_refuses_a_base_with_the_same_figure(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_plan, "available_memory", lambda: 0)
    monkeypatch.setattr(load_plan, "own_memory", lambda: 0)
    monkeypatch.setenv("MMCHAT_MODEL_DEVICE", "cpu")
    where = str(folder("qwen2-vl"))
    with pytest.raises(ModelError) as engine:
        load_plan.plan_load(where, quantization="4bit")
    with pytest.raises(ModelError) as training:
        prepare(read_config(None, [f"model={where}", "method=qlora"]), dataset(4), [])
    assert "needs about" in str(engine.value)
    assert str(training.value) == str(engine.value)
