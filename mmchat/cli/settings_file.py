"""Changes one value in settings.toml, atomically."""

from pathlib import Path
from typing import Any

import tomli_w

from mmchat.errors import SettingsError
from mmchat.files import write_file
from mmchat.settings import load_settings, paths, private_dir, read_settings_file


def file_value(section: str, key: str) -> Any:
    """The value of `[section] key` in settings.toml, even if the environment overrides it.

    None if it is not set. Raises SettingsError if the file is invalid.
    """
    load_settings()
    file = paths().settings_file
    tables = read_settings_file(file)
    return tables.get(section, {}).get(key)


def set_value(section: str, key: str, value: Any) -> Path:
    """Writes `[section] key = value` into settings.toml and returns its path.

    Other values are kept, but comments are lost. Raises SettingsError if the file is invalid or
    cannot be written.
    """
    load_settings()  # never overwrite an invalid file
    file = paths().settings_file.resolve()  # keep a link
    tables = read_settings_file(file)
    tables.setdefault(section, {})[key] = value
    private_dir(file.parent)
    try:
        write_file(file, tomli_w.dumps(tables), synced=True)
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be written ({error.strerror}): check its disk and permissions."
        ) from error
    return file
