"""The script that makes the built-in model, as a module: it lies outside of the package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).resolve().parents[2] / "adapters" / "scenes" / "pretrain.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scenes_pretrain", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scenes_pretrain"] = module
    spec.loader.exec_module(module)
    return module


pretrain = _load()
