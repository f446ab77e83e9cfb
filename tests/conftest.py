"""The environment of every test: a home of its own, no network, nothing from the developer's shell."""

import gc
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

KEPT = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "NO_COLOR", "TERM", "PY_COLORS")
"""What stays of the environment, beside PYTEST_*. NO_COLOR and TERM are for pytest's own output:
each test gets its own."""

HOME = tempfile.TemporaryDirectory(prefix="mmchat-tests-", ignore_cleanup_errors=True)

# Libraries read the environment when they are imported, so this comes before all other imports.
for name in set(os.environ) - set(KEPT):
    if not name.startswith(("PYTEST_", "TEXTUAL_SNAPSHOT_")):
        del os.environ[name]
os.environ |= {
    "HOME": HOME.name,
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",  # a machine with a GPU runs the same tests
    # Sums in the same order on every machine; workers with several threads each slow each other down.
    "OMP_NUM_THREADS": "1",
    # Not what this CPU is fast at. Tests of what is computed choose the dtype themselves, and run
    # in both. PYTEST_COMPUTE_DTYPE=bf16 (or auto) is for all the others.
    "MMCHAT_MODEL_COMPUTE_DTYPE": os.environ.get("PYTEST_COMPUTE_DTYPE", "fp32"),
}
time.tzset()
os.umask(0o022)

# A shell makes its background jobs ignore Ctrl-C, and the programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402

hypothesis.settings.load_profile("ci")  # the same examples everywhere, and no deadlines


def pytest_collection_finish() -> None:
    """Each collection of garbage would look through the modules of torch again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    HOME.cleanup()


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No colours, an ordinary terminal and a folder of its own to be in."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(tmp_path)
    # Under nohup pytest goes on ignoring SIGHUP, but programs that tests start do not inherit a handler.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MMCHAT_HOME, also for the processes that a test starts."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MMCHAT_HOME", str(folder))
    return folder
