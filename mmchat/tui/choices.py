"""Which models and adapters can be chosen. Torch-free, and no widgets here."""

from collections.abc import Sequence

from mmchat.settings import builtin_adapters, paths


def choices(kind: str) -> Sequence[tuple[str, str]]:
    """(name, a few words) of each "model" or "adapter" that is there."""
    folder = paths().models if kind == "model" else paths().adapters
    built_in = [("scenes", "built in")] if (builtin_adapters() / "scenes").is_dir() else []
    found = [(one.name, "") for one in sorted(folder.glob("*")) if one.is_dir()]
    return (built_in if kind == "model" else []) + found
