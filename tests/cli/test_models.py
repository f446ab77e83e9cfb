"""`mmchat models`, `adapters` and `doctor`: what is here, read from real folders."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmchat.cli.doctor import print_report
from mmchat.settings import paths
from tests.cli.conftest import Run, sentence
from tests.cli.folders import make_adapter, make_model, make_sparse_llama


def test_add_list_show_remove(mmchat: Run, tmp_path: Path) -> None:
    model = make_model(tmp_path / "models" / "mine")
    assert mmchat("models", "add", "./models/mine").stdout.startswith("Added: mine.")
    lines = [json.loads(line) for line in mmchat("models", "list", "--json").stdout.splitlines()]
    mine = next(line for line in lines if line["name"] == "mine")
    assert mine["installed"] and mine["parameters"] == 128 and mine["folder"] == str(model)
    offers = [line for line in lines if not line["installed"]]
    assert offers and all(isinstance(offer["fits"], bool) and offer["reason"] for offer in offers)
    listed = mmchat("models", "list").stdout
    assert "mine" in listed and offers[0]["name"] in listed
    shown = json.loads(mmchat("models", "show", "mine", "--no-load", "--json").stdout)
    assert shown["model_type"] == "llama" and shown["fits"] is True
    assert "safetensors" not in mmchat("models", "show", offers[0]["name"]).stderr
    done = mmchat("models", "remove", "mine", "--yes")
    assert "is kept" in done.stdout and (model / "config.json").is_file()
    assert "no model mine" in sentence(mmchat("models", "show", "mine"))


def test_a_model_has_the_name_that_is_given_or_that_of_its_run(mmchat: Run, tmp_path: Path) -> None:
    """`train` with the method `full` leaves a model in `runs/NAME/model`."""
    for run in ("birds", "cats"):
        made = make_model(tmp_path / "my runs" / run / "model")
        (made.parent / "recipe.toml").touch()
        assert mmchat("models", "add", str(made)).stdout.startswith(f"Added: {run}.")
    made = make_model(tmp_path / "other" / "model")
    assert mmchat("models", "add", str(made)).stdout.startswith("Added: model.")
    done = mmchat("models", "add", str(made), "--name", "mine")
    assert done.stdout.startswith("Added: mine. To use it: mmchat ask --model mine")
    assert mmchat("models", "show", "mine", "--no-load").returncode == 0
    assert "--name" in sentence(mmchat("models", "add", str(made), "--name", "birds"))
    assert "not a valid name for a model" in sentence(
        mmchat("models", "add", str(made), "--name", "a/b")
    )
    assert mmchat("models", "add", "owner/name", "--name", "mine").returncode == 2


def test_how_a_model_fits_is_told_without_loading_it(mmchat: Run, tmp_path: Path) -> None:
    """Seven billion weights, whose file is nothing but its header and a hole."""
    folder = make_sparse_llama(tmp_path / "seven", hidden=4096, layers=32, vocabulary=32000)
    found = mmchat("models", "show", str(folder), "--fit")
    assert found.returncode == 0, found.stderr
    lines = {line.split("  ")[0]: line for line in found.stdout.splitlines()}
    assert "does not fit, because it takes about " in lines["train, full"]
    told = [
        json.loads(line)
        for line in mmchat("models", "show", str(folder), "--fit", "--json").stdout.splitlines()
    ]
    assert next(room["use"] for room in told) == "talk, 4-bit"
    by_use = {room["use"]: room for room in told}
    assert by_use["train, full"]["fits"] is False
    # Half a byte a weight of the blocks, two or four of the rest.
    assert 3.5e9 < by_use["talk, 4-bit"]["parts"]["weights"] < 5e9
    small = mmchat("models", "show", "scenes", "--fit")
    assert small.returncode == 0
    assert all(
        "fits: about " in line for line in small.stdout.splitlines() if line.startswith("talk")
    )


def test_what_cannot_be_added_or_shown_is_one_sentence(mmchat: Run) -> None:
    assert "There is no folder" in sentence(mmchat("models", "add", "./nowhere"))
    assert "There is no folder" in sentence(mmchat("models", "add", "~nobody-here/models"))
    assert "neither a folder nor a hub id" in sentence(mmchat("models", "add", "nonsense"))
    assert "connect to the network" in sentence(mmchat("models", "add", "owner/name"))
    for variable, value, expected in [
        ("SSL_CERT_FILE", "/nowhere.pem", "certificates in SSL_CERT_FILE or SSL_CERT_DIR"),
        ("ALL_PROXY", "gopher://127.0.0.1:1", "network settings in the environment"),
    ]:
        environment = {"HF_HUB_OFFLINE": "0", variable: value}
        assert expected in sentence(mmchat("models", "add", "owner/name", **environment))
    assert "There is no model" in sentence(mmchat("models", "show", "nonsense"))
    assert "no model nonsense" in sentence(mmchat("models", "remove", "nonsense", "--yes"))


def test_adapters_are_listed_and_shown(mmchat: Run, tmp_path: Path) -> None:
    folder = make_adapter(paths().adapters / "birds", make_model(tmp_path / "base"))
    (paths().adapters / "torn").mkdir()
    (paths().adapters / "torn" / "adapter.toml").write_text("name = ", encoding="utf-8")
    found = {
        one["name"]: one
        for one in map(json.loads, mmchat("adapters", "list", "--json").stdout.splitlines())
    }
    assert found["birds"]["base"]["id"] == "base" and found["birds"]["problem"] == ""
    assert "adapter.toml" in found["torn"]["problem"]
    shown = mmchat("adapters", "show", "birds").stdout
    assert str(folder) in shown and "exact_match" in shown and "0.96" in shown
    assert "no adapter nowhere" in sentence(mmchat("adapters", "show", "nowhere"))


def test_train_refuses_a_wrong_recipe_in_one_sentence(mmchat: Run, tmp_path: Path) -> None:
    arguments = ["train", "data"]
    assert "nothing.toml" in sentence(mmchat(*arguments, "--recipe", "nothing.toml"))
    (tmp_path / "recipe.toml").write_text("name = ", encoding="utf-8")
    assert "recipe.toml" in sentence(mmchat(*arguments, "--recipe", "recipe.toml"))


@pytest.mark.skipif(find_spec("torch") is None, reason="doctor asks torch what this machine can do")
def test_doctor_says_what_is_wrong_and_what_to_do(
    mmchat: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path / "mine")  # no whole model: it has neither a tokenizer nor all weights
    name = str(tmp_path / "mine")
    done = mmchat("doctor", "--json", MMCHAT_MODEL_NAME=name)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["compute"]["dtype"] in ("bfloat16", "float32")
    assert found["libraries"]["torch"] and found["memory"]["total"] > 0
    assert found["folders"]["data"]["writable"] and found["engine"] == {}
    assert "mine" in found["model"]["problem"]
    assert found["model"]["problem"] in found["advice"]
    print_report(found)
    shown = capsys.readouterr().out
    for part in ("cpu", "computes", "4-bit", "memory", "not running", found["advice"][0]):
        assert part in shown


def test_doctor_helps_where_torch_is_broken(mmchat: Run, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libgone.so is missing')")
    done = mmchat("doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0
    assert "torch cannot be imported (libgone.so is missing)" in done.stdout
