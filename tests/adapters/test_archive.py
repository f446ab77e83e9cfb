"""Adapters that go out and come in: the round trip, and what hostile ones try. No torch is needed."""

import io
import json
import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mmchat.adapters import card as adapters
from mmchat.adapters.archive import ADAPTER_FILES, export_adapter, import_adapter
from mmchat.adapters.card import Base, Card, Metric, read_card, write_card
from mmchat.errors import AdapterError
from mmchat.model_files import weights_hash
from mmchat.settings import paths, private_dir

LAYER = "model.layers.0.mlp.up_proj"


def make_base(folder: Path, layers: int = 2) -> Path:
    """A text model's folder as far as headers tell: 8 features in, 16 out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    random = np.random.default_rng(layers)
    save_file(
        {
            f"model.layers.{n}.mlp.up_proj.weight": random.normal(size=(16, 8)).astype(np.float32)
            for n in range(layers)
        },
        folder / "model.safetensors",
    )
    return folder


def make_lora(folder: Path, path: str = LAYER, rank: int = 2, outputs: int = 16) -> Path:
    """A stock peft folder."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / adapters.LORA_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    state = {
        f"base_model.model.{path}.lora_A.weight": np.ones((rank, 8), np.float32),
        f"base_model.model.{path}.lora_B.weight": np.ones((outputs, rank), np.float32),
    }
    save_file(state, folder / adapters.LORA_WEIGHTS)
    return folder


def make(folder: Path, base: Path) -> Path:
    """A whole adapter with everything that it can have."""
    make_lora(folder / adapters.LORA)
    metrics = {"exact_match": Metric(0.9, 60, (0.8, 0.95)), "steps": 240}
    write_card(
        folder, Card(folder.name, Base(base.name, weights_hash(base)), "", ("lora",), metrics)
    )
    (folder / "README.md").write_text("# What it knows\n", encoding="utf-8")
    (folder / "recipe.toml").write_text("seed = 1\n", encoding="utf-8")
    (folder / "loss.png").write_bytes(png())
    return folder


def png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def whole(base: Path) -> Path:
    return make(private_dir(paths().adapters) / "birds", base)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refused(source: Path, **options: str) -> str:
    """The sentence; nothing of it has come in."""
    before = sorted(paths().adapters.iterdir()) if paths().adapters.exists() else []
    with pytest.raises(AdapterError) as caught:
        import_adapter(source, **options)
    assert sorted(paths().adapters.iterdir()) == before
    assert "\n" not in str(caught.value) and ".import-" not in str(caught.value)
    return str(caught.value)


def test_out_and_in_again_is_the_same(whole: Path, tmp_path: Path) -> None:
    (whole / "notes.txt").write_text("private")
    (whole / "secret.md").symlink_to("/etc/passwd")
    done = export_adapter("birds", tmp_path / "birds.zip")
    assert done.skipped == ("notes.txt", "secret.md")
    again = export_adapter(str(whole), tmp_path / "again.zip")
    assert done.file.read_bytes() == again.file.read_bytes()
    came = import_adapter(tmp_path / "birds.zip", name="gulls")
    card = read_card(came.folder)
    assert (came.card, came.base, came.skipped) == (card, "", ())
    assert card.name == "gulls" and card.metrics == read_card(whole).metrics
    ours, theirs = contents(whole), contents(came.folder)
    assert {k: v for k, v in theirs.items() if k != "adapter.toml"} == {
        k: v for k, v in ours.items() if k in ADAPTER_FILES and k != "adapter.toml"
    }
    assert adapters.adapter_hash(whole) == adapters.adapter_hash(came.folder)
    for file in came.folder.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600)


def test_nothing_is_overwritten(whole: Path, tmp_path: Path) -> None:
    file = export_adapter("birds", tmp_path / "birds.zip").file
    with pytest.raises(AdapterError, match="already exists"):
        export_adapter("birds", file)
    before = contents(whole)
    assert "There already is an adapter birds" in refused(file)
    assert "There already is an adapter birds" in refused(whole)
    for name in ("../x", "none", "a b", ".hidden", ""):
        if name:
            assert "is not a valid adapter name" in refused(file, name=name)
    assert contents(whole) == before
    with pytest.raises(AdapterError, match="cannot be written"):
        export_adapter("birds", tmp_path / "nowhere" / "birds.zip")


def test_a_folder_comes_in_and_what_is_no_adapters_stays_out(
    whole: Path, tmp_path: Path, base: Path
) -> None:
    outside = make(tmp_path / "outside", base)
    (outside / "trainer_state.json").write_text("{}")
    (outside / "README.md").unlink()
    (outside / "README.md").symlink_to("/etc/passwd")
    (outside / "run.py").write_text("print()")
    came = import_adapter(outside)
    assert came.skipped == ("run.py", "trainer_state.json")
    assert came.folder == paths().adapters / "outside"
    assert not (came.folder / "README.md").exists()


def test_a_stock_lora_gets_a_card_with_its_base(tmp_path: Path, base: Path) -> None:
    lora = make_lora(tmp_path / "my lora (v2)")
    (lora / "optimizer.pt").write_bytes(b"\x80")
    assert "name its base with --base MODEL" in refused(lora)
    came = import_adapter(lora, base=str(base))
    assert came.card == Card("my-lora-v2", Base(str(base), weights_hash(base)), "", ("lora",))
    assert came.base == str(base) and came.skipped == ("optimizer.pt",)
    assert sorted(contents(came.folder)) == [
        "adapter.toml",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    ]


def test_weights_may_be_links_as_in_the_hubs_cache(tmp_path: Path, base: Path) -> None:
    blobs = make_lora(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (adapters.LORA_CONFIG, adapters.LORA_WEIGHTS):
        (snapshot / name).symlink_to(blobs / name)
    came = import_adapter(snapshot, base=str(base))
    assert not any(file.is_symlink() for file in came.folder.rglob("*"))


def test_no_other_link_is_followed(whole: Path, tmp_path: Path, base: Path) -> None:
    """It may lead to a person's own file, which would go out with the adapter."""
    private = tmp_path / "private.json"
    private.write_text('{"token": "secret"}')
    outside = make(tmp_path / "outside", base)
    for name in ("evaluation.json", "README.md", "recipe.toml", "loss.png"):
        (outside / name).unlink(missing_ok=True)
        (outside / name).symlink_to(private)
    came = import_adapter(outside)
    assert not any(b"secret" in data for data in contents(came.folder).values())
    lora = make_lora(tmp_path / "lora")
    (lora / adapters.LORA_CONFIG).unlink()
    (lora / adapters.LORA_CONFIG).symlink_to(private)
    assert "secret" not in refused(lora, base=str(base))


def test_what_does_not_fit_its_base_is_refused_by_headers(tmp_path: Path, base: Path) -> None:
    for number, (lora, words) in enumerate(
        [
            ({"outputs": 32}, "16 × 8"),
            ({"path": "model.layers.7.mlp.up_proj"}, "no layer"),
            ({"path": "transformer.h.0.attn.c_attn"}, "none of its layers"),
            ({"path": "model.somewhere"}, "none of its layers"),
        ]
    ):
        folder = make_lora(tmp_path / str(number), **lora)  # type: ignore[arg-type]
        assert words in refused(folder, base=str(base))
    good = make(tmp_path / "good", base)
    other = make_base(tmp_path / "other", layers=3)
    message = refused(good, base=str(other))
    assert weights_hash(base)[:12] in message and weights_hash(other)[:12] in message


def test_a_pickle_is_never_taken(tmp_path: Path, base: Path) -> None:
    lora = make_lora(tmp_path / "lora")
    (lora / adapters.LORA_WEIGHTS).rename(lora / "adapter_model.bin")
    assert "pickle file (adapter_model.bin)" in refused(lora, base=str(base))
    (lora / "adapter_model.bin").rename(lora / adapters.LORA_WEIGHTS)
    file = lora / adapters.LORA_WEIGHTS
    file.write_bytes(b"\x80\x04" + b"x" * 100)
    assert "not a safetensors file" in refused(lora, base=str(base))


def zipped(
    file: Path, entries: dict[str, bytes], change: Callable[[Any], None] | None = None
) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if change is not None:
                change(entry)
            archive.writestr(entry, data)
    return file


@pytest.mark.parametrize(
    "name",
    [
        "../adapter.toml",
        "birds/../../evil",
        "/etc/cron.d/evil",
        "birds\\..\\evil",
        "C:evil",
        "birds//x",
        "birds/\x1b[31m",
        "birds/./x/../y",
    ],
)
def test_names_that_would_leave_the_folder(whole: Path, tmp_path: Path, name: str) -> None:
    entries = {f"birds/{key}": data for key, data in contents(whole).items()}
    bad = zipped(tmp_path / "bad.zip", {**entries, name: b"x"})
    assert "do not use it" in refused(bad, name="new")
    assert not (tmp_path / "evil").exists() and not (paths().data / "evil").exists()


def test_links_devices_and_doubles_in_a_zip(whole: Path, tmp_path: Path) -> None:
    entries = {f"birds/{key}": data for key, data in contents(whole).items()}
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):

        def make_special(entry: zipfile.ZipInfo, kind: int = kind) -> None:
            if entry.filename.endswith("README.md"):
                entry.create_system, entry.external_attr = 3, (kind | 0o644) << 16

        bad = zipped(tmp_path / f"{kind}.zip", entries, make_special)
        assert "link or a device" in refused(bad, name="new")
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "two.zip", "w") as archive,
    ):
        for name in ("adapter.toml", "adapter.toml"):
            archive.writestr(name, b"x")
    assert "adapter.toml twice" in refused(tmp_path / "two.zip")


def test_bombs_and_lies_about_sizes(whole: Path, tmp_path: Path) -> None:
    entries = {f"birds/{key}": data for key, data in contents(whole).items()}
    weights = "birds/lora/adapter_model.safetensors"
    bomb = zipped(tmp_path / "bomb.zip", {**entries, weights: bytes(100 << 20)})
    assert bomb.stat().st_size < 1 << 20
    assert "would unpack" in refused(bomb, name="new")
    long = zipped(tmp_path / "long.zip", {**entries, "birds/README.md": bytes(8 << 20)})
    assert "far more than such a file can need" in refused(long, name="new")
    for claimed in (10, 1 << 15):
        raw = bytearray(zipped(tmp_path / "lie.zip", entries).read_bytes())
        at = raw.rfind(b"birds/README.md") - 46  # in the list of entries at the end
        assert raw[at : at + 4] == b"PK\x01\x02"
        struct.pack_into("<I", raw, at + 24, claimed)
        (tmp_path / "lie.zip").write_bytes(raw)
        message = refused(tmp_path / "lie.zip", name="new")
        assert "damaged" in message or "does not have its declared size" in message


def test_a_list_of_a_million_files_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "many.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(1500):
            archive.writestr(f"{number:09}", b"")
    assert "lists more than 1000 files" in refused(file)
    raw = bytearray(file.read_bytes())
    end = raw.rfind(b"PK\x05\x06")
    struct.pack_into("<HH", raw, end + 8, 5, 5)  # it says that there are five
    struct.pack_into("<I", raw, end + 12, 64 << 20)
    file.write_bytes(bytes(64 << 20) + raw)
    tracemalloc.start()
    try:
        assert "lists more than 1000 files" in refused(file)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_encrypted_and_other_files_are_one_sentence(whole: Path, tmp_path: Path) -> None:
    file = export_adapter("birds", tmp_path / "birds.zip").file
    raw = bytearray(file.read_bytes())
    at = 0
    while (at := raw.find(b"PK\x01\x02", at)) >= 0:
        raw[at + 8] |= 1
        at += 4
    (tmp_path / "locked.zip").write_bytes(raw)
    assert "encrypted" in refused(tmp_path / "locked.zip", name="new")
    (tmp_path / "text.zip").write_text("no zip")
    assert "not a zip file" in refused(tmp_path / "text.zip")
    assert "no file or folder" in refused(tmp_path / "nowhere.zip")
    assert "is not an adapter" in refused(zipped(tmp_path / "n.zip", {"a.txt": b""}))
    (tmp_path / "empty").mkdir()
    assert "is not an adapter" in refused(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    assert "no file or folder" in refused(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("loss.png", b"GIF89a"),
        ("README.md", b"\xff\xfe\x00"),
        ("recipe.toml", b"a = "),
        ("adapter.toml", b"a = " + b"[" * 5000),
        ("lora/adapter_config.json", b"[" * 100_000),
        ("lora/adapter_config.json", b"{}"),
        ("lora/adapter_model.safetensors", b"\xff" * 64),
        ("projector.safetensors", b""),
        ("vision_tower.safetensors", struct.pack("<Q", 1 << 60)),
    ],
)
def test_every_file_is_what_its_name_says(
    whole: Path, tmp_path: Path, name: str, data: bytes
) -> None:
    entries = {**contents(whole), name: data}
    refused(zipped(tmp_path / "bad.zip", entries), name="new")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_flipped_comes_in_whole_or_is_one_sentence(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    good = zipped(tmp_path / "good.zip", contents(whole)).read_bytes()
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2]))
    (tmp_path / "bad.zip").write_bytes(raw[:cut])
    outside = contents(tmp_path / "base")
    try:
        came = import_adapter(tmp_path / "bad.zip", name="new")
    except AdapterError as error:
        assert "\n" not in str(error)
        assert not (paths().adapters / "new").exists()
    else:
        read_card(came.folder)
        adapters.adapter_weights(came.folder)
        adapters.remove_adapter("new")
    assert contents(tmp_path / "base") == outside
    assert [folder.name for folder in paths().adapters.iterdir()] == ["birds"]


def test_a_full_disk_is_one_sentence(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export_adapter("birds", tmp_path / "birds.zip").file
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("mmchat.adapters.archive.shutil.disk_usage", lambda folder: usage)
    assert "free some disk space" in refused(file, name="new")


def test_rename_takes_card_and_folder(whole: Path) -> None:
    tables = (whole / "adapter.toml").read_text() + '\n[more]\nkept = "yes"\n'
    (whole / "adapter.toml").write_text(tables)
    digest = adapters.adapter_hash(whole)
    folder = adapters.rename_adapter("birds", "gulls")
    assert folder == whole.with_name("gulls") and not whole.exists()
    assert (
        read_card(folder).name == "gulls"
        and 'kept = "yes"' in (folder / "adapter.toml").read_text()
    )
    assert adapters.adapter_hash(folder) == digest
    yours = [one.name for one in adapters.list_adapters() if one.origin == "yours"]
    assert yours == ["gulls"]
    assert (
        sorted(path.name for path in folder.iterdir())[0] == "README.md"
    )  # no scratch file is left


def test_what_cannot_be_renamed_stays(whole: Path, base: Path, tmp_path: Path) -> None:
    make(paths().adapters / "gulls", base)
    before = contents(paths().adapters)
    for old, new, words in (
        ("birds", "gulls", "already"),
        ("birds", "none", "not a valid adapter name"),
        ("birds", "a/b", "not a valid adapter name"),
        ("nowhere", "x", "no adapter nowhere"),
        (str(make(tmp_path / "outside", base)), "x", "does not change it"),
    ):
        with pytest.raises(AdapterError, match=words):
            adapters.rename_adapter(old, new)
    if os.geteuid():  # who is root may write everywhere
        whole.chmod(0o500)
        with pytest.raises(AdapterError, match="cannot be renamed"):
            adapters.rename_adapter("birds", "x")
        whole.chmod(0o700)
    assert contents(paths().adapters) == before


def test_an_adapter_of_ones_own_that_is_a_link_is_removed_alone(tmp_path: Path, base: Path) -> None:
    outside = make(tmp_path / "outside", base)
    private_dir(paths().adapters)
    (paths().adapters / "linked").symlink_to(outside)
    adapters.remove_adapter("linked")
    assert (outside / "adapter.toml").is_file() and not (paths().adapters / "linked").exists()
