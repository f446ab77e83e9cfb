"""What is installed, what can be fetched, what fits: without torch and without a network."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from mmchat import settings
from mmchat.errors import ModelError
from mmchat.memory.memory_estimate import weight_bytes
from mmchat.model import catalogue, hub
from mmchat.model_files import read_header, weights_hash

Checkpoint = Callable[[str], Path]
HUB_ID = "someone/tiny-model"


def test_listing_needs_no_torch() -> None:
    program = (
        "import sys; import mmchat.model.catalogue as c, mmchat.adapters.card as a, "
        "mmchat.model.hub; c.list_installed(); a.list_adapters(); "
        "assert not {'torch', 'transformers', 'PIL', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_added_folder_is_found_and_removed(checkpoint: Checkpoint) -> None:
    folder = checkpoint("llama")
    added = catalogue.add_folder(folder)
    assert (added.name, added.origin, added.model_type) == ("llama", "folder", "llama")
    assert added.parameters > 100_000 and added.bytes > 4 * 100_000
    assert catalogue.resolve_model("llama") == folder.resolve()
    assert "llama" in [model.name for model in catalogue.list_installed()]
    assert catalogue.remove_model("llama") == folder.resolve()
    assert folder.is_dir()
    with pytest.raises(ModelError, match="There is no model llama"):
        catalogue.resolve_model("llama")


def test_a_taken_name_and_a_bad_folder_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    catalogue.add_folder(checkpoint("llama"))
    shutil.copytree(checkpoint("llama"), tmp_path / "llama")
    with pytest.raises(ModelError, match="already"):
        catalogue.add_folder(tmp_path / "llama")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no config"):
        catalogue.add_folder(tmp_path / "empty")


def test_names_are_resolved_in_one_way(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("llama")
    assert catalogue.resolve_model(str(folder)) == folder
    with pytest.raises(ModelError, match="There is no model x"):
        catalogue.resolve_model("x" * 5000)
    with pytest.raises(ModelError, match="mmchat models add someone/tiny-model"):
        catalogue.resolve_model(HUB_ID)
    with pytest.raises(ModelError, match="There is no folder"):
        catalogue.resolve_model("./nowhere")
    with pytest.raises(ModelError, match="The name of the model is empty"):
        catalogue.resolve_model(" ")
    for owner in ("one", "two"):
        target = catalogue.target_folder(f"{owner}/tiny")
        shutil.copytree(folder, target)
        (target / catalogue.MARKER).write_text("{}")
    assert catalogue.resolve_model("two/tiny").name == "two--tiny"
    with pytest.raises(ModelError, match="could be one/tiny or two/tiny"):
        catalogue.resolve_model("tiny")
    catalogue.remove_model("one/tiny")
    assert catalogue.resolve_model("TINY").name == "two--tiny"


def test_a_folder_is_given_as_a_path(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name does not name a folder here, because the engine has another working directory."""
    shutil.copytree(checkpoint("llama"), tmp_path / "in" / "mine")
    monkeypatch.chdir(tmp_path)
    assert catalogue.resolve_model("in/mine") == tmp_path / "in" / "mine"
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(ModelError, match=r"There is no model mine.*\./FOLDER"):
        catalogue.resolve_model("mine")
    assert catalogue.resolve_model("./mine") == tmp_path / "in" / "mine"


def test_a_damaged_model_is_listed_with_its_problem() -> None:
    target = catalogue.target_folder(HUB_ID)
    target.mkdir(parents=True)
    (target / catalogue.MARKER).write_text("{}")
    [model] = [m for m in catalogue.list_installed() if m.name == HUB_ID]
    assert "no config.json" in model.problem


def test_a_built_in_model_is_not_removed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint("llama"), tmp_path / "own")
    monkeypatch.setattr(catalogue, "builtin_adapters", lambda: tmp_path)
    assert catalogue.resolve_model("own") == tmp_path / "own"
    with pytest.raises(ModelError, match="part of mmchat"):
        catalogue.remove_model("own")
    assert catalogue.list_installed()[0].origin == "built in"


def test_every_offer_is_complete() -> None:
    assert 8 <= len(catalogue.OFFERS) == len({offer.hub_id for offer in catalogue.OFFERS})
    dims = catalogue.offered_dims()
    for offer in catalogue.OFFERS:
        # 4-bit weights take less than the files, which have 16 bits.
        four_bit = sum(weight_bytes(dims[offer.hub_id], "4bit", 2).values())
        assert 0 < four_bit < offer.download_gb * 1e9
        assert offer.licence and offer.good_at and offer.hub_id.count("/") == 1


def test_the_hash_is_of_the_weights_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("llama"), tmp_path / "copy")
    assert weights_hash(tmp_path / "copy") == weights_hash(checkpoint("llama"))
    assert (settings.paths().cache / "weights.json").is_file()
    assert weights_hash(tmp_path / "copy") == weights_hash(checkpoint("llama"))
    weights = tmp_path / "copy" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert weights_hash(tmp_path / "copy") != weights_hash(checkpoint("llama"))


def test_a_large_models_hash_is_sampled(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.model_files._WHOLE_HASH_BYTES", 10)
    value = weights_hash(checkpoint("smolvlm"))
    assert value.startswith("s") and len(value) == 65


def test_hostile_headers_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    for content in (
        b"",
        b"\x01" * 7,
        (2**62).to_bytes(8, "little") + b"{}",
        len(header).to_bytes(8, "little") + header,
        len(header).to_bytes(8, "little") + header + b"\0" * 9,
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": 12}',
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="damaged"):
            read_header(file)
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    assert [tensor.elements for tensor in read_header(file)] == [2]


class FakeHub:
    """The two functions of the hub, served from a folder; `calls` lists the requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error: Exception | None = None
        self.calls: list[str] = []

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        self.calls.append("info")
        if self.error is not None:
            raise self.error
        files = [
            SimpleNamespace(rfilename=path.name, size=path.stat().st_size)
            for path in self.folder.iterdir()
        ]
        extra = ["pytorch_model.bin", "modeling_evil.py", "onnx/model.json"]
        files += [SimpleNamespace(rfilename=name, size=10**15) for name in extra]
        return SimpleNamespace(sha="abc123", siblings=files)

    def snapshot_download(
        self, repo_id: str, *, revision: str, local_dir: Path, allow_patterns: list[str]
    ) -> str:
        self.calls.append(revision)
        if self.error is not None:
            raise self.error
        for name in allow_patterns:
            shutil.copy(self.folder / name, local_dir / name)
        return str(local_dir)


@pytest.fixture
def fake_hub(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(checkpoint("llava"))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_model_is_planned_fetched_found_and_removed(fake_hub: FakeHub) -> None:
    plan = hub.plan_download(f"{HUB_ID}@v1")
    assert plan.revision == "abc123" and plan.bytes < 10**7
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(plan.files)
    assert not any(name.endswith((".bin", ".py")) or "/" in name for name in plan.files)
    model = hub.fetch(plan)
    assert (model.name, model.origin, model.model_type) == (HUB_ID, "fetched", "llava")
    assert catalogue.resolve_model(HUB_ID) == catalogue.resolve_model("tiny-model") == plan.folder
    assert plan.folder.stat().st_mode & 0o777 == 0o700
    assert catalogue.remove_model("tiny-model") == plan.folder and not plan.folder.exists()


def test_an_interrupted_download_is_not_installed_and_resumes(fake_hub: FakeHub) -> None:
    plan = hub.plan_download(HUB_ID)
    fake_hub.error = _unreachable("gone")
    with pytest.raises(ModelError, match="continues where it stopped"):
        hub.fetch(plan)
    assert HUB_ID not in [model.name for model in catalogue.list_installed()]
    fake_hub.error = None
    assert hub.fetch(plan).problem == ""


def _http(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    return kind(
        "no", response=errors.Response(status, request=_client().Request("GET", "http://x"))
    )


def _client() -> Any:
    """The HTTP client that huggingface_hub uses; which one differs by version."""
    return sys.modules[errors.Response.__module__.split(".")[0]]


def _unreachable(words: str) -> Exception:
    error: Exception = _client().ConnectError(words)
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_http(errors.GatedRepoError, 403), "is gated"),
        (_http(errors.RepositoryNotFoundError, 404), "There is no model"),
        (_http(errors.RevisionNotFoundError, 404), "has no revision v9"),
        (_http(errors.HfHubHTTPError, 503), "answered 503"),
        (errors.LocalTokenNotFoundError("no token"), "asks for a token"),
        (errors.OfflineModeIsEnabled("offline"), "hub cannot be reached"),
        (errors.LocalEntryNotFoundError("offline"), "hub cannot be reached"),
        (_unreachable("refused"), "hub cannot be reached"),
        (_client().ReadTimeout("slow"), "hub cannot be reached"),
        (errors.HFValidationError("bad"), "not a valid hub id"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    fake_hub: FakeHub, error: Exception, words: str
) -> None:
    fake_hub.error = error
    with pytest.raises(ModelError, match=words) as caught:
        hub.plan_download(f"{HUB_ID}@v9")
    assert "\n" not in str(caught.value)


def test_the_real_client_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hub cannot be reached"):
        hub.plan_download(HUB_ID)


def test_a_full_disk_is_reported_before_the_download(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match="make room"):
        hub.plan_download(HUB_ID)
    assert fake_hub.calls == ["info"]


def test_pickled_weights_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_hub: FakeHub
) -> None:
    (tmp_path / "config.json").write_text("{}")
    fake_hub.folder = tmp_path
    with pytest.raises(ModelError, match="no safetensors"):
        hub.plan_download(HUB_ID)


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x/y", "a/..", "/a", "a/", "", "a--b/c"])
def test_an_invalid_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        hub.plan_download(name)
