"""Old material: what the base learned from, mixed in so that it is not forgotten, and asked again.

The built-in base draws its data itself, by a script that lies beside its weights; only that script
is ever run, never one of a person's model folder. What was drawn is kept in the cache, by the
script and the amount.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mmchat.errors import DataError
from mmchat.settings import builtin_adapters, paths, private_dir
from mmchat.training.run_folder import writing

SCRIPT = "draw.py"
MOST_SCENES = 1024
_SEED, _ASKED_SEED = "11", "12"


def has_replay(model_folder: Path) -> bool:
    """Whether the base of this folder brings old material."""
    inside = model_folder.resolve().is_relative_to(builtin_adapters().resolve())
    return inside and (model_folder / SCRIPT).is_file()


def replay_data(model_folder: Path, pictures: int) -> Path:
    """A prepared folder of about `pictures` drawn pictures with dialogs, at most `MOST_SCENES`."""
    # A power of two, so that runs of about the same length share a drawing and its features.
    count = min(1 << max(pictures, 256).bit_length() - 1, MOST_SCENES)
    return _drawn(model_folder, ["--split", "replay", "--seed", _SEED, "--scenes", str(count)])


def old_skills(model_folder: Path, per_type: int) -> Path:
    """An evaluation folder with `per_type` questions of each of the base's types."""
    options = ["--evaluation", "--seed", _ASKED_SEED, "--per-type", str(per_type)]
    return _drawn(model_folder, options)


def _drawn(model_folder: Path, options: list[str]) -> Path:
    """Draws once; raises DataError where the script fails, RecipeError where the disk is full."""
    digest = hashlib.sha256("\0".join(options).encode())
    for file in sorted(model_folder.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    out = paths().cache / "replay" / digest.hexdigest()[:24]
    if out.is_dir():
        return out
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    with writing(out):
        private_dir(out.parent)
        shutil.rmtree(partial, ignore_errors=True)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
        script = [sys.executable, str(model_folder / SCRIPT), "--out", str(partial), *options]
        done = subprocess.run(script, capture_output=True, text=True, env=environment)
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            why = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise DataError(
                f"The old material of {model_folder.name} could not be drawn ({why}): train without it "
                "(--set data.replay=0)."
            )
        try:
            partial.rename(out)
        except OSError:
            if not out.is_dir():  # else another run was faster
                raise
            shutil.rmtree(partial, ignore_errors=True)
    return out
