"""What importing and opening the history loads."""

import subprocess
import sys
from pathlib import Path

from mmchat.history import History

HEAVY = ("torch", "transformers", "PIL", "numpy", "sqlite_utils", "textual")


def test_a_history_that_is_there_opens_without_anything_heavy(path: Path) -> None:
    History.open(path).close()
    script = (
        "import sys, pathlib; from mmchat.history import History;"
        f"History.open(pathlib.Path({str(path)!r})).close();"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_exported_name_exists() -> None:
    import mmchat.history

    assert all(hasattr(mmchat.history, name) for name in mmchat.history.__all__)
