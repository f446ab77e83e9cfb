"""Settings: one name in three places, weakest first; wrong ones are told."""

from pathlib import Path

import pytest

from mmchat.errors import SettingsError
from mmchat.settings import (
    builtin_adapters,
    folder_environment,
    load_settings,
    paths,
    private_dir,
    setting_names,
)


def test_file_environment_flag_in_that_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().generation.max_tokens == 512
    (home / "settings.toml").write_text("[generation]\nmax_tokens = 100\ntop_k = 3\n")
    assert load_settings().generation.max_tokens == 100
    monkeypatch.setenv("MMCHAT_GENERATION_MAX_TOKENS", "200")
    assert load_settings().generation.max_tokens == 200
    settings = load_settings({"generation.max_tokens": "300"})
    assert (settings.generation.max_tokens, settings.generation.top_k) == (300, 3)


def test_every_setting_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "quantization": "fp32",
        "device": "cpu",
        "compute_dtype": "bf16",
        "transport": "tcp",
        "min_p": "0.5",
    }
    for name in setting_names():
        section, key = name.split(".")
        value = values.get(key, "1")
        monkeypatch.setenv(f"MMCHAT_{section}_{key}".upper(), value)
        assert str(getattr(getattr(load_settings(), section), key)) in (value, "1.0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[generation]\ntemprature = 1\n", "Did you mean generation.temperature"),
        ("[modell]\nname = 'x'\n", "Did you mean model"),
        ("[generation]\ntop_p = 7\n", "generation.top_p is 7.0"),
        ("[generation]\ntemperature = inf\n", "temperature is inf"),
        ("[generation]\nmax_tokens = 'many'\n", "max_tokens"),
        ("generation = 1\n", "must be a table"),
        ('[generation]\nmax_tokens = "many"\n', "generation.max_tokens must be a whole number"),
        ("[model\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(home: Path, text: str, says: str) -> None:
    (home / "settings.toml").write_text(text)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_another_encoding(home: Path) -> None:
    file = home / "settings.toml"
    file.write_text("[generation]\ntop_k = 3\n", encoding="utf-8-sig")
    assert load_settings().generation.top_k == 3
    file.write_text("[generation]\ntop_k = 3\n", encoding="utf-16")
    with pytest.raises(SettingsError, match="save it as UTF-8"):
        load_settings()


def test_none_is_no_adapter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "settings.toml").write_text("[model]\nadapter = 'birds'\n")
    assert load_settings({"model.adapter": "none"}).model.adapter == ""
    monkeypatch.setenv("MMCHAT_MODEL_ADAPTER", "none")
    assert load_settings().model.adapter == ""


def test_a_misspelled_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCHAT_GENERATION_TOPP", "0.5")
    with pytest.raises(SettingsError, match="Did you mean MMCHAT_GENERATION_TOP_P"):
        load_settings()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_folders_are_private(tmp_path: Path, mask: int) -> None:
    import os

    before = os.umask(mask)
    try:
        made = private_dir(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert (made.stat().st_mode & 0o777, made.parent.stat().st_mode & 0o777) == (0o700, 0o700)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="set MMCHAT_HOME"):
        private_dir(tmp_path / "file" / "inside")


def test_a_home_of_its_own(home: Path) -> None:
    found = paths()
    assert all(
        p.is_relative_to(home) for p in (found.data, found.config, found.cache, found.runtime)
    )
    assert (builtin_adapters() / "scenes" / "recipe.toml").is_file()


def test_relative_folders_are_absolute_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMCHAT_HOME", "here")
    monkeypatch.setenv("MMCHAT_RUNTIME", "~/run")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert (paths().data, paths().runtime) == (tmp_path / "here", tmp_path / "me" / "run")
    assert folder_environment() == {
        "MMCHAT_HOME": str(tmp_path / "here"),
        "MMCHAT_RUNTIME": str(tmp_path / "me" / "run"),
    }
    monkeypatch.delenv("MMCHAT_RUNTIME")
    assert paths().runtime == tmp_path / "here" / "run"
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SettingsError, match="give an absolute path"):
        paths()
    monkeypatch.setenv("MMCHAT_HOME", "~nobody-here/x")
    with pytest.raises(SettingsError, match="MMCHAT_HOME is '~nobody-here/x'"):
        paths()
