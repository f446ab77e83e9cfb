"""Adapters on a tiny base: listed, refused where they do not belong, put on and taken off exactly."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmchat.adapters import card as adapters
from mmchat.errors import AdapterError, ModelError
from mmchat.model.catalogue import resolve_model
from mmchat.model.loaded_model import LoadedModel
from tests.adapters.adapting import active, change, logits, make
from tests.model import forms

# peft, as it wraps the model that a test trains, asks it for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_a_projector_is_put_on_and_taken_off_exactly(base: LoadedModel) -> None:
    before = logits(base)
    make(base, "one")
    active(base).switch("one")
    changed = logits(base)
    assert not torch.allclose(before, changed)
    assert active(base).name == "one" and len(active(base).digest) == 64
    active(base).switch("")
    assert torch.equal(logits(base), before)
    assert (active(base).name, active(base).digest) == ("", "")


def test_lora_is_put_on_and_taken_off_exactly(base: LoadedModel) -> None:
    before = logits(base)
    names = [name for name, _ in base.model.named_modules()]
    make(base, "lora-only", projector=False, lora=True)
    active(base).switch("lora-only")
    assert not torch.allclose(logits(base), before, atol=0.1)
    active(base).switch("")
    assert torch.equal(logits(base), before)
    assert [name for name, _ in base.model.named_modules()] == names


def test_one_adapter_replaces_another(base: LoadedModel) -> None:
    make(base, "a", lora=True)
    make(base, "bb")
    active(base).switch("bb")
    alone, digest = logits(base), active(base).digest
    active(base).switch("a")
    assert not torch.allclose(logits(base), alone)
    active(base).switch("bb")
    assert torch.equal(logits(base), alone) and active(base).digest == digest


def test_another_load_of_the_base_answers_the_same(base: LoadedModel) -> None:
    make(base, "start")
    active(base).switch("start")
    loaded = forms.load(base.folder, forms.form_of(base))
    active(loaded).switch("start")
    assert active(loaded).digest == active(base).digest
    assert torch.equal(logits(loaded), logits(base))


def refused(base: LoadedModel, name: str) -> str:
    """The sentence; whatever was on before stays on."""
    before, layers, worn = logits(base), module_names(base), active(base).name
    with pytest.raises(AdapterError) as caught:
        active(base).switch(name)
    assert torch.equal(logits(base), before) and "\n" not in str(caught.value)
    assert module_names(base) == layers and active(base).name == worn
    return str(caught.value)


def module_names(base: LoadedModel) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in base.model.named_modules()]


def test_one_that_does_not_fit_leaves_the_one_before_on(base: LoadedModel) -> None:
    good, bad = make(base, "right", lora=True), make(base, "half", lora=True)
    active(base).switch(good.name)
    change(bad, alpha_pattern={"v_proj": "large"})
    assert "cannot be used" in refused(base, "half")
    change(bad, alpha_pattern={})
    weights = bad / "lora" / "adapter_model.safetensors"
    whole = load_file(weights)
    wide = {key: t[:, :1].clone() if "lora_A" in key else t for key, t in whole.items()}
    save_file(wide, weights)  # its projector alone would fit
    assert "does not fit" in refused(base, "half")
    save_file({key: t * float("nan") for key, t in whole.items()}, weights)
    assert "not finite" in refused(base, "half")
    save_file(whole, weights)
    active(base).switch("half")
    assert active(base).name == "half"


def test_the_weights_say_which_layers_change(base: LoadedModel) -> None:
    folder = make(base, "named", projector=False, lora=True)
    active(base).switch("named")
    expected = logits(base)
    for targets in ("(", "(([a-z_.]*)*)*!", ["lm_head", "mlp"]):
        change(folder, target_modules=targets, exclude_modules=".*", layers_pattern=None)
        active(base).switch("named")
        assert torch.equal(logits(base), expected)


def test_foreign_expressions_and_ranks_are_not_believed(base: LoadedModel) -> None:
    folder = make(base, "hostile", projector=False, lora=True)
    for pattern in ("rank_pattern", "alpha_pattern"):
        change(folder, **{pattern: {"(([a-z_.]*)*)*!": 4}})
        assert "regular expressions" in refused(base, "hostile")
        change(folder, **{pattern: {}})
    change(folder, r=10**12)
    assert "does not match its" in refused(base, "hostile")
    change(folder, r=4, rank_pattern={"q_proj": 10**12})
    assert "does not match its" in refused(base, "hostile")
    # A file of a few megabytes whose ranks would make layers of gigabytes.
    change(folder, r=10**6, rank_pattern={})
    weights = folder / "lora" / "adapter_model.safetensors"
    thin = {
        key: t.new_zeros((10**6, 1) if "lora_A" in key else (1, 10**6)) for key, t in load(weights)
    }
    save_file(dict(list(thin.items())[:2]), weights)
    assert "does not fit" in refused(base, "hostile")


def load(file: Path) -> list[tuple[str, torch.Tensor]]:
    return list(load_file(file).items())


@pytest.mark.parametrize("place", ["model.vision_tower", "lm_heads", "model.multi_modal_projector"])
def test_weights_outside_of_the_text_model_are_refused(base: LoadedModel, place: str) -> None:
    folder = make(base, "outside", projector=False, lora=True)
    weights = folder / "lora" / "adapter_model.safetensors"
    more = {f"base_model.model.{place}.fc1.lora_{part}.weight": torch.zeros(4, 4) for part in "AB"}
    save_file({**load_file(weights), **more}, weights)
    assert "outside the text model's blocks" in refused(base, "outside")


def test_a_projector_of_other_sizes_is_refused_unread(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(base, "wide")
    file = folder / adapters.PROJECTOR
    save_file({key: t[..., :1].clone() for key, t in load(file)}, file)
    monkeypatch.setattr("mmchat.adapters.lora.load_file", None)
    assert "does not fit the projector" in refused(base, "wide")


def test_tensors_of_the_tower_that_it_has_not_are_refused_unread(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(base, "tower", projector=False, tower=True)
    file = folder / adapters.VISION_TOWER
    whole = load_file(file)
    monkeypatch.setattr("mmchat.adapters.lora.load_file", None)
    for wrong in (
        {"blocks.7.fc1.weight": torch.zeros(1)},
        {key: t[:1].clone() for key, t in whole.items()},
        {},
    ):
        save_file(wrong, file)
        assert "does not fit the vision tower" in refused(base, "tower")


def test_an_adapter_of_another_base_is_refused(base: LoadedModel) -> None:
    make(base, "foreign", hash_="f" * 64)
    message = refused(base, "foreign")
    assert "tiny (ffffffffffff)" in message and base.weights_hash[:12] in message
    assert "--model tiny" in message


def test_damaged_and_unsafe_adapters_are_refused(base: LoadedModel) -> None:
    folder = make(base, "broken", lora=True)
    config = folder / "lora" / "adapter_config.json"
    weights = folder / "lora" / "adapter_model.safetensors"
    whole = load_file(weights)
    save_file(dict(list(whole.items())[:-1]), weights)
    assert "does not match its" in refused(base, "broken")
    save_file({key: t[:1].clone() for key, t in whole.items()}, weights)
    assert "does not match its" in refused(base, "broken")
    save_file({**whole, "base_model.model.lm_head.weight": torch.zeros(1)}, weights)
    assert "not LoRA of a linear layer" in refused(base, "broken")
    save_file(whole, weights)
    settings = json.loads(config.read_text())
    for fields, words in (
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "PREFIX_TUNING"}, "not a LoRA adapter"),
        ({"peft_type": "UNHEARD"}, "not a LoRA adapter"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"target_parameters": ["q_proj.weight"]}, "target_parameters"),
        ({"r": -1}, "cannot be used"),
        ({"lora_alpha": 10**400}, "cannot be used"),
        ({"lora_alpha": float("nan")}, "cannot be used"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_dora": True}, "does not match its"),
        ({"lora_bias": True}, "does not match its"),
    ):
        config.write_text(json.dumps({**settings, **fields}))
        assert words in refused(base, "broken")
    for text, words in (("[" * 100_000, "cannot be used"), ("{}", "cannot be used")):
        config.write_text(text)
        assert words in refused(base, "broken")
    config.write_text(json.dumps(settings))
    file = adapters.CARD
    (folder / file).write_text("#" * 2_000_000)
    assert "larger than 1 MB" in refused(base, "broken")
    adapters.write_card(folder, adapters.Card("broken", adapters.Base("tiny", base.weights_hash)))
    weights.rename(weights.with_suffix(".bin"))
    assert "never loaded" in refused(base, "broken")
    shutil.rmtree(folder / "lora")
    projector = folder / adapters.PROJECTOR
    state = load_file(projector)
    save_file({key: t[..., :1].clone() for key, t in state.items()}, projector)
    assert "does not fit the projector" in refused(base, "broken")
    projector.write_bytes(projector.read_bytes()[:-4])
    assert "cut short" in refused(base, "broken")
    projector.unlink()
    assert "has no weights" in refused(base, "broken")
    (folder / adapters.CARD).write_text("name = 3")
    assert "cannot be used" in refused(base, "broken")


def test_a_type_that_is_none_is_refused(base: LoadedModel) -> None:
    folder = make(base, "typed")
    file = folder / adapters.PROJECTOR
    raw = file.read_bytes()
    for name in (b'"F99"', b'"I32"'):
        file.write_bytes(raw.replace(b'"F32"', name))
        assert "has the dtype" in refused(base, "typed")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "/" + "x" * 5000, "./\0"])
def test_paths_that_lead_nowhere_are_told(name: str) -> None:
    with pytest.raises(AdapterError, match="There is no adapter"):
        adapters.find_adapter(name)
    with pytest.raises(ModelError, match="There is no folder"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["a/b", "..", "x/../../y", "a\\b", "a b", "\0", "-", "n" * 200])
def test_names_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(AdapterError):
        adapters.find_adapter(name)


def test_listing_shows_what_is_there_and_what_is_wrong(base: LoadedModel) -> None:
    make(base, "good")
    bad = make(base, "bad")
    (bad / adapters.CARD).write_text("[")
    found = {adapter.name: adapter for adapter in adapters.list_adapters()}
    assert found["good"].card is not None and found["good"].card.metrics == {"n": 1.0}
    assert found["bad"].card is None and "cannot be used" in found["bad"].problem


def test_only_ones_own_adapters_are_removed(base: LoadedModel, tmp_path: Path) -> None:
    folder = make(base, "mine")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    with pytest.raises(AdapterError, match="does not change it"):
        adapters.remove_adapter(str(elsewhere))
    assert adapters.remove_adapter("mine") == folder and not folder.exists()
    with pytest.raises(AdapterError, match="There is no adapter mine"):
        adapters.remove_adapter("mine")
    with pytest.raises(AdapterError, match="digits is part of mmchat and cannot be"):
        adapters.remove_adapter("digits")
