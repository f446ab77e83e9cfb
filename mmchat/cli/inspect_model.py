"""Describes the parts of a loaded model: which ones are 4-bit, and which are not.

The model is loaded in another process, `python -m mmchat.cli.inspect_model`, so that a model that
crashes or takes too much memory ends only that process.
"""

import json
import subprocess
import sys
from typing import Any

from mmchat.errors import MmchatError, ModelError
from mmchat.settings import ModelSettings


def load_parts(model: ModelSettings) -> dict[str, Any]:
    """Loads the model and describes it; `parts` has a `PartReport` for each part.

    Raises ModelError with the reason if it cannot be loaded.
    """
    choice = [model.name, model.adapter, model.quantization, model.device]
    # -P: Python must not import modules from the current folder.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mmchat.cli.inspect_model", *choice],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode == 1 and done.stdout.startswith("mmchat: "):
        raise ModelError(done.stdout.removeprefix("mmchat: ").strip())
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    raise ModelError(f"Loading {model.name} ended unexpectedly ({lines[-1]}).")


def parts_table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table row for each part; the first row is the header."""
    from mmchat.display.numbers import format_size

    rows: list[tuple[str, ...]] = [("PART", "PARAMETERS", "LINEAR LAYERS", "4-BIT", "MEMORY")]
    for part in found["parts"]:
        four_bit = f"{part['four_bit']:,}" if part["four_bit"] else f"none ({part['dtype']})"
        rows.append(
            (
                part["part"],
                f"{part['parameters']:,}",
                f"{part['linear_layers']:,}",
                four_bit,
                format_size(part["bytes"]),
            )
        )
    return rows


def _main(name: str, adapter: str, quantization: Any, device: Any) -> int:
    from dataclasses import asdict

    from mmchat.adapters.active import ActiveAdapter
    from mmchat.model.loading import load_model

    try:
        loaded = load_model(name, quantization=quantization, device=device)
        ActiveAdapter(loaded).switch(adapter)
    except MmchatError as error:
        print(f"mmchat: {error}")
        return 1
    found = {
        "model": name,
        "adapter": adapter,
        "kind": loaded.kind,
        "quantization": loaded.quantization,
        "compute_dtype": str(loaded.compute_dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "context_length": loaded.context_length,
        "vision": loaded.vision,
        "weights_hash": loaded.weights_hash,
        "memory_bytes": loaded.memory_bytes,
        "parts": [asdict(part) for part in loaded.parts],
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:5]))
