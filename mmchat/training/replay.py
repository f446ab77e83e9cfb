"""Replay samples: data like the base model's own training data, so that it does not forget its skills.

The built-in model has a script beside its weights that draws such data; only that script is ever
run, never one in a person's model folder. What was drawn is kept in the cache, by the hash of the script
and its options.
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
MAX_SCENES = 1024
_SEED, _QUESTION_SEED = "11", "12"


def has_replay(model_folder: Path) -> bool:
    """Whether the model in this folder can draw replay samples."""
    inside = model_folder.resolve().is_relative_to(builtin_adapters().resolve())
    return inside and (model_folder / SCRIPT).is_file()


def replay_data(model_folder: Path, pictures: int) -> Path:
    """A prepared folder of about `pictures` drawn pictures with dialogs, at most `MAX_SCENES`."""
    # A power of two, so that runs of about the same length share a drawing and its features.
    count = min(1 << max(pictures, 256).bit_length() - 1, MAX_SCENES)
    return _draw(model_folder, ["--split", "replay", "--seed", _SEED, "--scenes", str(count)])


def replay_questions(model_folder: Path, per_type: int) -> Path:
    """An evaluation folder with `per_type` questions of each type that the base model was trained on."""
    options = ["--evaluation", "--seed", _QUESTION_SEED, "--per-type", str(per_type)]
    return _draw(model_folder, options)


def _draw(model_folder: Path, options: list[str]) -> Path:
    """The folder with what the script draws, drawn once.

    Raises DataError if the script fails, RecipeError if the folder cannot be written.
    """
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
            why = (done.stderr.strip().splitlines() or ["no reason was printed"])[-1]
            raise DataError(
                f"The replay samples of {model_folder.name} could not be drawn ({why}): train without "
                "them (--set data.replay=0)."
            )
        try:
            partial.rename(out)
        except OSError:
            if not out.is_dir():  # else another run was faster
                raise
            shutil.rmtree(partial, ignore_errors=True)
    return out
