"""TensorBoard and Weights & Biases through accelerate's tracker classes; nothing is imported without them.

`Accelerator.init_trackers` is not used: it only logs a line if a tracker is unknown or its package is
missing, and the run would go on without it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmchat.errors import RecipeError, describe_error

PROJECT = "mmchat"
_TRACKERS = ("tensorboard", "wandb")
"""Their names, which are also those of their packages."""


class Trackers:
    """Logs a run's figures to the trackers that a recipe names; for the main process only."""

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        """Starts each of `names` for the run in `folder`, after the trainer's `Accelerator` was made.

        `config` is the recipe, logged once. TensorBoard writes to `folder`/tensorboard and W&B to
        `folder`; W&B also sends everything to its server unless WANDB_MODE is offline. Raises
        RecipeError if a name is unknown, its package is missing or it does not start.
        """
        self._trackers: list[Any] = []
        try:
            for name in dict.fromkeys(names):
                self._trackers.append(_start(name, folder))
        except RecipeError:
            self.close()
            raise
        flat = _flat(config)
        for tracker in self._trackers:
            tracker.store_init_configuration(flat)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Logs the numbers among `figures`; those in a table are logged as `table/name`."""
        if not self._trackers:
            return
        numbers = {
            name: value
            for name, value in _flat(figures, "/").items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def close(self) -> None:
        """Flushes and ends the trackers; can be called twice."""
        trackers, self._trackers = self._trackers, []
        for tracker in trackers:
            tracker.finish()


def _start(name: str, folder: Path) -> Any:
    if name not in _TRACKERS:
        raise RecipeError(
            f"trackers names {name!r}: choose from {', '.join(_TRACKERS)}, or leave it out."
        )
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in map(str, get_available_trackers()):
        raise RecipeError(
            f"trackers names {name}, and the package {name} is not installed: install it "
            f"(pip install {name}), or leave it out of trackers."
        )
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        if name == "tensorboard":
            tracker = kind("tensorboard", str(folder))
        else:
            # A run that was resumed is one group.
            tracker = kind(PROJECT, dir=str(folder), name=folder.name, group=folder.name)
        tracker.start()
    except Exception as error:  # a missing key, no network, a full disk: each library has its own
        offline = " (WANDB_MODE=offline keeps it on this machine)" if name == "wandb" else ""
        raise RecipeError(
            f"The tracker {name} does not start ({describe_error(error)}): correct that{offline}, or leave it out "
            "of trackers."
        ) from error
    return tracker


def _flat(tables: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists as one table of plain values, without `None`."""
    if isinstance(tables, Mapping):
        pairs = [(str(key), value) for key, value in tables.items()]
    elif isinstance(tables, Sequence) and not isinstance(tables, str):
        pairs = [(str(place), value) for place, value in enumerate(tables)]
    elif tables is None:
        return {}
    elif isinstance(tables, (str, bool, int, float)):
        return {prefix: tables}
    else:
        return {prefix: os.fspath(tables) if isinstance(tables, os.PathLike) else str(tables)}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= _flat(value, separator, f"{prefix}{separator}{key}" if prefix else key)
    return flat
