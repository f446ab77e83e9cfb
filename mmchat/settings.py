"""The settings, and the folders of mmchat's files.

Every setting has one name in three places, from lowest to highest priority: ``[section] key`` in settings.toml,
``MMCHAT_SECTION_KEY`` in the environment, a command-line flag.
"""

import difflib
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from mmchat.errors import SettingsError
from mmchat.field_errors import explain
from mmchat.sampling_params import SamplingError, SamplingParams

Quantization = Literal["auto", "4bit", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda", "mps"]
ComputeDtype = Literal["auto", "bf16", "fp32"]

NO_ADAPTER = "none"
"""What users type for no adapter; no adapter can have this name."""

# MMCHAT_ variables that are not settings: folders, an API key, a backend for tests.
_OTHER_VARIABLES = frozenset(
    {"MMCHAT_HOME", "MMCHAT_RUNTIME", "MMCHAT_ENGINE_TOKEN", "MMCHAT_ENGINE_BACKEND"}
)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of settings.toml; an unknown key is an error that suggests the nearest one."""


class ModelSettings(_Section, frozen=True):
    """Which model answers, and how it is loaded."""

    name: str = "scenes"
    """A built-in or installed model, a folder, or a hub id."""
    adapter: str = ""
    """An installed adapter's name or folder; empty or `none` means no adapter."""
    quantization: Quantization = "auto"
    """`auto` is 4-bit if bitsandbytes works on the device."""
    device: Device = "auto"
    compute_dtype: ComputeDtype = "auto"
    """The dtype that a 4-bit model computes in; `auto` is what the processor is fast at."""

    def __post_init__(self) -> None:
        if self.adapter == NO_ADAPTER:
            msgspec.structs.force_setattr(self, "adapter", "")


class GenerationSettings(SamplingParams, frozen=True, forbid_unknown_fields=True):
    """The sampling parameters, and the system prompt of new conversations."""

    system: str = ""
    """The system prompt of new conversations."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except SamplingError as error:
            raise SettingsError(f"The setting generation.{error}") from error


class EngineSettings(_Section, frozen=True):
    """The process that holds the model."""

    idle_seconds: float = 900.0
    """The engine stops after this time without a request."""
    transport: Literal["auto", "unix", "tcp"] = "auto"
    """`auto` is a Unix socket if the system supports it, otherwise a loopback port with a token."""
    url: str = ""
    """Another OpenAI-compatible server (https://host/v1); empty means the local engine."""

    def __post_init__(self) -> None:
        if not self.idle_seconds > 0:
            raise SettingsError(
                f"The setting engine.idle_seconds is {self.idle_seconds!r}, but must be above 0."
            )


class AppSettings(_Section, frozen=True):
    """The terminal app."""

    theme: str = "textual-dark"


class Settings(_Section, frozen=True):
    """All settings, read once at the start of a command."""

    model: ModelSettings = ModelSettings()
    generation: GenerationSettings = GenerationSettings()
    engine: EngineSettings = EngineSettings()
    app: AppSettings = AppSettings()


_SECTIONS = {name: type(getattr(Settings(), name)) for name in Settings.__struct_fields__}


def setting_names() -> list[str]:
    """Every setting as `section.key`."""
    return [f"{name}.{key}" for name, part in _SECTIONS.items() for key in part.__struct_fields__]


def load_settings(overrides: Mapping[str, str] | None = None) -> Settings:
    """Merges the settings file, the environment and `overrides` (`{"model.name": "x"}`).

    Raises SettingsError if a key is unknown or a value is invalid; the message says where it came
    from.
    """
    merged = Settings()
    file = paths().settings_file
    merged = _merge(merged, read_settings_file(file), str(file))
    merged = _merge(merged, _from_environment(), "the environment")
    tables: dict[str, dict[str, Any]] = {}
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        tables.setdefault(section, {})[key] = value
    return _merge(merged, tables, "the command line")


def read_settings_file(file: Path) -> dict[str, Any]:
    """Reads a settings.toml; empty if the file does not exist.

    Raises SettingsError if the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors write a BOM
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read ({error.strerror}): check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML ({error}): fix or remove it.") from error


def _from_environment() -> dict[str, dict[str, Any]]:
    """The settings in `MMCHAT_SECTION_KEY` variables. Raises SettingsError for a misspelled one."""
    names = {f"MMCHAT_{name}".upper().replace(".", "_"): name for name in setting_names()}
    found: dict[str, dict[str, Any]] = {}
    for variable, value in os.environ.items():
        if not variable.startswith("MMCHAT_") or variable in _OTHER_VARIABLES:
            continue
        if variable not in names:
            raise SettingsError(_unknown(variable, list(names), "the environment"))
        section, _, key = names[variable].partition(".")
        found.setdefault(section, {})[key] = value
    return found


def _merge(settings: Settings, tables: Mapping[str, Any], source: str) -> Settings:
    changed: dict[str, Any] = {}
    for section, table in tables.items():
        kind = _SECTIONS.get(section)
        if kind is None:
            raise SettingsError(_unknown(section, list(_SECTIONS), source))
        if not isinstance(table, Mapping):
            raise SettingsError(f"{source}: {section} must be a table of settings.")
        for key in table:
            if key not in kind.__struct_fields__:
                raise SettingsError(_unknown(f"{section}.{key}", setting_names(), source))
        values = {**msgspec.structs.asdict(getattr(settings, section)), **table}
        try:
            changed[section] = msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{source}: {explain(error, section)}.") from error
    return msgspec.structs.replace(settings, **changed)


def _unknown(name: str, known: list[str], source: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The settings are: {', '.join(known)}."
    return f"{source}: there is no setting {name}. {hint}"


@dataclass(frozen=True, slots=True)
class Paths:
    """The user's folders. `MMCHAT_HOME` puts all of them into one folder."""

    data: Path
    config: Path
    cache: Path
    runtime: Path

    @property
    def history_db(self) -> Path:
        return self.data / "history.db"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def adapters(self) -> Path:
        return self.data / "adapters"

    @property
    def settings_file(self) -> Path:
        return self.config / "settings.toml"

    @property
    def vision_cache(self) -> Path:
        return self.cache / "vision"

    @property
    def logs(self) -> Path:
        return self.data / "logs"


def paths() -> Paths:
    """The folders of the user's files; creates nothing.

    `MMCHAT_RUNTIME` sets another runtime folder, for a second engine. Raises SettingsError if a
    variable is invalid.
    """
    found = _home()
    runtime = _folder_variable("MMCHAT_RUNTIME")
    return replace(found, runtime=runtime) if runtime else found


def folder_environment() -> dict[str, str]:
    """The folder variables as absolute paths.

    For a process with another working directory, where a relative path would mean another folder.
    """
    found = {name: _folder_variable(name) for name in ("MMCHAT_HOME", "MMCHAT_RUNTIME")}
    return {name: str(folder) for name, folder in found.items() if folder}


def _folder_variable(name: str) -> Path | None:
    value = os.environ.get(name)
    if not value:
        return None
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(
            f"{name} is {value!r}, but this user has no home folder: give an absolute path."
        ) from error
    except OSError as error:  # the working directory was removed
        raise SettingsError(
            f"{name} is the relative path {value!r}, but the current folder does not exist any more: "
            "give an absolute path."
        ) from error


def _home() -> Paths:
    root = _folder_variable("MMCHAT_HOME")
    if root:
        return Paths(root, root, root / "cache", root / "run")
    import platformdirs

    folders = platformdirs.PlatformDirs("mmchat", appauthor=False)
    # Without XDG_RUNTIME_DIR (no login session) platformdirs would warn and fall back to /tmp.
    session = sys.platform != "linux" or os.environ.get("XDG_RUNTIME_DIR")
    runtime = folders.user_runtime_path if session else folders.user_cache_path / "run"
    return Paths(folders.user_data_path, folders.user_config_path, folders.user_cache_path, runtime)


def private_dir(path: Path) -> Path:
    """Creates the folder `path` with mode 0700, whatever the umask, and returns it.

    Raises SettingsError if it cannot be created or is not writable.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in missing:
            folder.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"The folder {path} cannot be created ({error.strerror}): "
            "make its parent writable, or set MMCHAT_HOME to a folder that is."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise SettingsError(
            f"The folder {path} cannot be written to: "
            "make it writable, or set MMCHAT_HOME to a folder that is."
        )
    return path


def named_folder(name: str) -> Path | None:
    """The folder at the path `name` (`~` is expanded), absolute; None if there is none."""
    try:
        folder = Path(name).expanduser()
        return folder.absolute() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a NUL
        return None


def builtin_adapters() -> Path:
    """The folder of the built-in models and adapters: a checkout's `adapters/`, or the wheel's copy.

    The checkout comes first, because an editable install can leave an outdated copy in the
    package.
    """
    package = Path(__file__).resolve().parent
    checkout = package.parent / "adapters"
    if (package.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return package / "_adapters"
