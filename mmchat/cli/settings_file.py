"""Changes one value in settings.toml, atomically."""

from pathlib import Path
from typing import Any

import tomli_w

from mmchat.errors import SettingsError
from mmchat.files import write_file
from mmchat.settings import load_settings, paths, private_dir, read_settings_file


def file_value(section: str, key: str) -> Any:
    """The value of `[section] key` in settings.toml, even if a stronger setting overrides it.

    None if it is not there. Raises SettingsError if the file is wrong.
    """
    load_settings()
    file = paths().settings_file
    tables = read_settings_file(file)
    return tables.get(section, {}).get(key)


def set_value(section: str, key: str, value: Any) -> Path:
    """Writes `[section] key = value` into settings.toml and returns its path.

    The other values stay, comments do not. Raises SettingsError if the file is wrong already, or
    cannot be written.
    """
    load_settings()  # a file that is wrong is for its owner to fix, not overwritten
    file = paths().settings_file.resolve()  # a link stays a link
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
