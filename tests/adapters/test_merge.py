"""An adapter that becomes part of its base: the same answers, a whole model folder, one of the person's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mmchat.adapters import card as adapters
from mmchat.adapters import merge as merging
from mmchat.adapters.card import Base, Card, write_card
from mmchat.adapters.merge import merge_adapter
from mmchat.errors import AdapterError, ModelError
from mmchat.model import catalogue
from mmchat.model.loading import load_model
from mmchat.model_files import tensors, weights_hash
from mmchat.settings import paths, private_dir
from tests.adapters.adapting import active, logits, make, save_lora

# peft, as it wraps the model that a test trains, asks it for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def base(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A base that the person has added; not to be changed."""
    folder = checkpoint("visual_prefix")
    catalogue.add_folder(folder, "tiny")
    return folder


def on(model: str, adapter: str = "", form: Any = "fp32") -> torch.Tensor:
    loaded = load_model(model, quantization=form, device="cpu")
    active(loaded).switch(adapter)
    return logits(loaded)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"use_rslora": True, "r": 6}],
    ids=["lora", "dora", "rslora"],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_merged_model_says_what_base_and_adapter_say(
    base: Path,
    tmp_path: Path,
    options: dict[str, Any],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMCHAT_MODEL_COMPUTE_DTYPE", dtype)
    loaded = load_model("tiny", quantization="fp32", device="cpu")
    make(loaded, "all", lora=True, tower=True, **options)
    done = merge_adapter("all", tmp_path / "out" / "merged")
    assert (done.model.name, done.base, done.dtype) == ("merged", "tiny", "float32")
    before, wanted, given = on("tiny"), on("tiny", "all"), on("merged")
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, before, atol=0.1)
    forms = {one.form: one for one in done.differences}
    assert set(forms) == {"4bit", dtype}
    assert not any(one.problem for one in done.differences)
    if "fp32" in forms:
        exact = forms["fp32"]
        assert exact.largest <= 1e-4 and exact.mean <= exact.largest and exact.logits > 1000
        assert exact.same_token == 1.0
        # Quantized anew, the weights are others: this is told, not hidden.
        assert forms["4bit"].largest > 10 * exact.largest


def test_the_figures_are_those_of_the_two_models(base: Path, tmp_path: Path) -> None:
    loaded = load_model("tiny", quantization="fp32", device="cpu")
    make(loaded, "same", lora=True)
    done = merge_adapter("same", tmp_path / "merged")
    for one in done.differences:
        wanted, _ = merging._logits(one.form, "tiny", "same", lambda what, share: None)
        given, _ = merging._logits(one.form, "merged", "", lambda what, share: None)
        apart = torch.cat([(a - b).abs().flatten() for a, b in zip(wanted, given, strict=True)])
        assert one.largest == pytest.approx(float(apart.max()))
        assert one.mean == pytest.approx(float(apart.mean()))


def test_it_is_a_whole_model_folder(base: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    shutil.copytree(base, tmp_path / "base", dirs_exist_ok=True)
    for name in ("run.py", "training_args.bin", "LICENSE"):
        (tmp_path / "base" / name).write_text("x")
    loaded = load_model("tiny", quantization="fp32", device="cpu")
    make(loaded, "one")
    catalogue.remove_model("tiny")
    catalogue.add_folder(tmp_path / "base", "moved")  # found by its weights, whatever its name
    done = merge_adapter("one", tmp_path / "out", "mine")
    assert done.base == "moved" and done.model.name == "mine"
    assert {one.name for one in catalogue.list_installed()} >= {"mine", "moved"}
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "processor_config.json", "LICENSE"} <= there
    assert not there & {"run.py", "training_args.bin"}
    assert not list(tmp_path.glob(".merge-*"))
    shapes = {tensor.name: tensor.shape for tensor in tensors(tmp_path / "out")}
    assert shapes == {tensor.name: tensor.shape for tensor in tensors(tmp_path / "base")}
    words = (tmp_path / "out" / "README.md").read_text()
    assert "one" in words and loaded.weights_hash in words


def test_large_models_are_written_in_several_files(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(load_model("tiny", quantization="fp32", device="cpu"), "one")
    monkeypatch.setattr(merging, "MAX_SHARD_SIZE", "100KB")
    merge_adapter("one", tmp_path / "merged")
    files = list((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(files) > 2
    torch.testing.assert_close(on("merged"), on("tiny", "one"), atol=1e-4, rtol=1e-4)


def test_weights_keep_the_type_that_they_are_published_in(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    state = load_file(half / "model.safetensors")
    save_file(
        {key: t.to(torch.bfloat16) for key, t in state.items()},
        half / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    make(load_model(str(half), quantization="fp32", device="cpu"), "bf", lora=True)
    catalogue.add_folder(half)
    done = merge_adapter("bf", tmp_path / "merged")
    assert done.dtype == "bfloat16"
    assert {tensor.dtype for tensor in tensors(tmp_path / "merged")} == {"BF16"}
    plain = next(one for one in done.differences if one.form != "4bit")
    assert 0 < plain.largest < 2  # the sum is rounded to 8 bits


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_a_head_that_was_the_embedding_is_its_own_when_lora_changes_it(tmp_path: Path) -> None:
    from tests.model import tiny

    folder = tiny.llama(tmp_path / "tied", tied=True)
    catalogue.add_folder(folder)
    loaded = load_model("tied", quantization="fp32", device="cpu")
    adapter = private_dir(paths().adapters) / "head"
    adapter.mkdir()
    write_card(adapter, Card("head", Base("tied", loaded.weights_hash), "", ("lora",)))
    save_lora(folder, adapter / adapters.LORA, target_modules=["lm_head", "q_proj"])
    merge_adapter("head", tmp_path / "merged")
    active(loaded).switch("head")
    ids = torch.arange(5, 25)[None]
    wanted = loaded.model(ids).logits
    given = load_model("merged", quantization="fp32", device="cpu").model(ids).logits
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    # Stock transformers reads the folder too.
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(stock(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_stock_model_of_two_parts(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("llava")
    catalogue.add_folder(folder, "llava")
    adapter = private_dir(paths().adapters) / "stock"
    adapter.mkdir()
    write_card(adapter, Card("stock", Base("llava", weights_hash(folder)), "", ("lora",)))
    save_lora(folder, adapter / adapters.LORA)
    done = merge_adapter("stock", tmp_path / "merged")
    assert not any(one.problem for one in done.differences)
    torch.testing.assert_close(on("merged"), on("llava", "stock"), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_merged_is_one_sentence_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model("tiny", quantization="fp32", device="cpu")
    make(loaded, "good")
    make(loaded, "foreign", hash_="f" * 64)
    (tmp_path / "there").mkdir()
    usage = type("Usage", (), {"free": 1000})
    with pytest.raises(AdapterError, match="no adapter nowhere"):
        merge_adapter("nowhere", tmp_path / "out")
    with pytest.raises(AdapterError, match="ffffffffffff") as caught:
        merge_adapter("foreign", tmp_path / "out")
    assert loaded.weights_hash[:12] in str(caught.value)
    with pytest.raises(ModelError, match="already exists"):
        merge_adapter("good", tmp_path / "there")
    for name, words in (
        ("tiny", "a model tiny already"),
        ("scenes", "already"),
        ("a/b", "not a valid name"),
    ):
        with pytest.raises(ModelError, match=words):
            merge_adapter("good", tmp_path / "out", name)
    with monkeypatch.context() as patched:
        patched.setattr("mmchat.adapters.merge.shutil.disk_usage", lambda folder: usage)
        with pytest.raises(ModelError, match="free some disk space"):
            merge_adapter("good", tmp_path / "out")

    def fails(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(loaded.model), "save_pretrained", fails)
        with pytest.raises(ModelError, match="No space left"):
            merge_adapter("good", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    assert {one.name for one in catalogue.list_installed()} == {"scenes", "tiny"}


def test_where_a_form_cannot_be_loaded_that_is_said(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(load_model("tiny", quantization="fp32", device="cpu"), "good")
    real = merging.load_model

    def small(model: str, **options: Any) -> Any:
        if options["quantization"] != "4bit":
            raise ModelError("There is no room for it.")
        return real(model, **options)

    monkeypatch.setattr(merging, "load_model", small)
    done = merge_adapter("good", tmp_path / "merged")
    assert [one.problem for one in done.differences] == ["", "There is no room for it."]
