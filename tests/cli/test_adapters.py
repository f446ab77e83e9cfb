"""`mmchat adapters`: shown, renamed, removed, carried out and in, merged, in processes of their own."""

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmchat.adapters.card import Base, Card, Metric, read_card, write_card
from mmchat.model_files import weights_hash
from mmchat.settings import paths, private_dir
from tests.cli.conftest import Run, sentence
from tests.cli.folders import make_adapter, make_model


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """An adapter of the person's whose base is a folder that was not added."""
    return make_adapter(paths().adapters / "birds", make_model(tmp_path / "base"))


def write_settings(**model: str) -> Path:
    file = private_dir(paths().config) / "settings.toml"
    lines = "".join(f'{key} = "{value}"\n' for key, value in model.items())
    file.write_text(f'[model]\n{lines}\n[app]\ntheme = "nord"\n', encoding="utf-8")
    return file


def chosen() -> str:
    written = tomllib.loads(paths().settings_file.read_text(encoding="utf-8"))
    assert written["app"] == {"theme": "nord"}
    return str(written["model"]["adapter"])


def test_show_tells_base_figures_files_and_card(mmchat: Run, birds: Path, tmp_path: Path) -> None:
    card = read_card(birds)
    metrics = {"held-out": Metric(0.93, 60, (0.841, 0.972)), "steps": 240}
    write_card(birds, Card("birds", card.base, "mlp", ("projector", "vision_tower"), metrics))
    (birds / "README.md").write_text("# Birds\n\nKnows \x1b]52;c;aGFja2Vk\x07kites.\n")
    shown = mmchat("adapters", "show", "birds").stdout
    for words in (
        "0.93 (n = 60, 95 % from 0.841 to 0.972)",
        "240",
        "projector, vision_tower",
        f"base ({card.base.hash[:12]})",
        "no: add it with `mmchat models add`",
        "projector.safetensors",
        "kites.",
    ):
        assert words in shown
    assert "\x1b" not in shown and "\x07" not in shown
    mmchat("models", "add", str(tmp_path / "base"))
    assert "yes, as base" in mmchat("adapters", "show", "birds").stdout
    found = json.loads(mmchat("adapters", "show", "birds", "--json").stdout)
    assert found["metrics"]["held-out"]["n"] == 60 and found["base_here"] == "base"
    assert found["files"]["projector.safetensors"] > 0


def test_settings_and_engine_follow_a_new_name(
    mmchat: Run, scripted_engine: None, birds: Path, tmp_path: Path
) -> None:
    write_settings(name=str(tmp_path / "base"), adapter="birds")
    json.loads(mmchat("engine", "start", "--json").stdout)
    done = mmchat("adapters", "rename", "birds", "gulls")
    assert "birds is now gulls" in done.stdout and "was changed" in done.stdout
    assert "the engine has switched" in done.stdout
    assert chosen() == "gulls" and read_card(paths().adapters / "gulls").name == "gulls"
    assert json.loads(mmchat("engine", "status", "--json").stdout)["adapter"] == "gulls"
    assert "no adapter birds" in sentence(mmchat("adapters", "show", "birds"))
    assert "not a valid adapter name" in sentence(mmchat("adapters", "rename", "gulls", "none"))
    assert "*" in mmchat("adapters", "list").stdout

    usage = mmchat("adapters", "remove", "gulls")
    assert usage.returncode == 2 and "--yes" in usage.stderr
    done = mmchat("adapters", "remove", "gulls", "--yes")
    assert "Removed: gulls" in done.stdout and "the engine has switched" in done.stdout
    assert chosen() == "" and not (paths().adapters / "gulls").exists()
    assert json.loads(mmchat("engine", "status", "--json").stdout)["adapter"] == ""
    assert "no adapter gulls" in sentence(mmchat("adapters", "remove", "gulls", "--yes"))


def test_settings_that_name_another_stay(mmchat: Run, birds: Path) -> None:
    file = write_settings(adapter="digits")
    before = file.read_bytes()
    mmchat("adapters", "rename", "birds", "gulls")
    mmchat("adapters", "remove", "gulls", "--yes")
    assert file.read_bytes() == before


def test_out_and_in_again(mmchat: Run, birds: Path, tmp_path: Path) -> None:
    (birds / "notes.txt").write_text("mine")
    done = mmchat("adapters", "export", "birds", "birds.zip")
    assert done.stdout.startswith("Exported: birds") and "notes.txt" in done.stderr
    assert "already exists" in sentence(mmchat("adapters", "export", "birds", "birds.zip"))
    assert "already" in sentence(mmchat("adapters", "import", "birds.zip"))
    done = mmchat("adapters", "import", "birds.zip", "--name", "gulls")
    assert "mmchat adapters use gulls" in done.stdout
    assert "not on this machine: base with the weights" in done.stderr
    mmchat("models", "add", str(tmp_path / "base"))
    done = mmchat("adapters", "import", "birds.zip", "--name", "terns", "--json")
    assert json.loads(done.stdout)["base"] == "base" and done.stderr == ""
    listed = mmchat("adapters", "list").stdout
    assert all(name in listed for name in ("birds", "gulls", "terns"))
    (tmp_path / "wrong.zip").write_text("x")
    assert "not a zip file" in sentence(mmchat("adapters", "import", "wrong.zip"))
    assert "no model nowhere" in sentence(
        mmchat("adapters", "import", "birds.zip", "--name", "x", "--base", "nowhere")
    )


def test_a_wrong_base_is_told_with_both_hashes(mmchat: Run, birds: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    hashes = weights_hash(tmp_path / "base")[:12], weights_hash(other)[:12]
    mmchat("adapters", "export", "birds", "birds.zip")
    write_settings(name=str(other))
    for arguments in (
        ("use", "birds"),
        ("import", "birds.zip", "--name", "x", "--base", str(other)),
    ):
        told = sentence(mmchat("adapters", *arguments))
        assert all(one in told for one in hashes), told
    other.rename(tmp_path / "elsewhere")
    mmchat("models", "add", str(tmp_path / "elsewhere"))
    write_card(birds, Card("birds", Base("elsewhere", "f" * 64), "", ("projector",)))
    told = sentence(mmchat("adapters", "merge", "birds", "--out", "merged"))
    assert "f" * 12 in told and hashes[1] in told


@pytest.mark.skipif(find_spec("torch") is None, reason="merging computes")
def test_merge_prints_the_differences(mmchat: Run, tmp_path: Path) -> None:
    from tests.model import tiny

    base = tiny.build("visual_prefix", tmp_path / "tiny")
    mmchat("models", "add", str(base))
    folder = private_dir(paths().adapters / "eyes")
    from mmchat.model_files import tensors

    random = np.random.default_rng(0)
    inside = "model.multi_modal_projector."
    state = {
        tensor.name.removeprefix(inside): random.normal(size=tensor.shape).astype(np.float32)
        for tensor in tensors(base)
        if tensor.name.startswith(inside)
    }
    save_file(state, folder / "projector.safetensors")
    write_card(folder, Card("eyes", Base("tiny", weights_hash(base)), "", ("projector",)))
    done = mmchat("adapters", "merge", "eyes", "--out", "merged")
    assert done.returncode == 0, done.stderr
    assert "Merged: eyes into tiny" in done.stdout and "LARGEST |Δ|" in done.stdout
    assert any(line.startswith("4bit") for line in done.stdout.splitlines())
    assert "Writing" not in done.stderr
    names = [
        json.loads(line)["name"] for line in mmchat("models", "list", "--json").stdout.splitlines()
    ]
    assert "merged" in names
    assert "already" in sentence(mmchat("adapters", "merge", "eyes", "--out", "merged"))
