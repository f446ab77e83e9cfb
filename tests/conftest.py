"""Every test lives in a home of its own, and never reaches a network."""

import gc
import os
import signal
from pathlib import Path

import pytest

# A shell starts what it puts into the background deaf to Ctrl-C, and programs that tests start would be too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's library is imported
# The same on every processor; tests of what is computed run in both themselves. `MMCHAT_TEST_DTYPE=bf16
# make test` (or auto) forces another for all the others.
os.environ["MMCHAT_MODEL_COMPUTE_DTYPE"] = os.environ.get("MMCHAT_TEST_DTYPE", "fp32")


def pytest_collection_finish() -> None:
    """The modules of torch are not looked through again by each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MMCHAT_HOME, also for the processes that a test starts."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MMCHAT_HOME", str(folder))
    monkeypatch.setenv("NO_COLOR", "1")
    return folder
