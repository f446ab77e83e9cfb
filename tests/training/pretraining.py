"""The script that trains the built-in model, as a module; it is outside the package."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "adapters" / "scenes"

sys.path.insert(0, str(FOLDER))
try:
    pretrain = importlib.import_module("pretrain")
    tower = importlib.import_module("tower")
finally:
    sys.path.remove(str(FOLDER))
