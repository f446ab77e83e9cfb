"""Measures a run's held-out answers and the base model's skills, without and with the adapter.

Each measurement is a process with its own engine in its own runtime folder, so that it does not
disturb the person's engine, and a chat that may be using it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.errors import EngineError, MmchatError
from mmchat.settings import NO_ADAPTER
from mmchat.training.run_folder import Measurement

HELD_OUT, BASE_SKILLS = "held-out answers", "base model skills"
STOP_SECONDS = 30.0
"""Seconds that a process has to stop its engine and end."""


@dataclass(frozen=True, slots=True)
class QuestionFolder:
    """A folder of questions, and its name in the table."""

    name: str
    folder: Path


def measure(
    model: str,
    adapter: Path,
    question_folders: Sequence[QuestionFolder],
    *,
    together: bool,
    progress: Callable[[str], None],
) -> list[Measurement]:
    """The share of right answers without and with `adapter`, a row for each folder.

    together: measures both at the same time. Raises EngineError with the reason if it fails. Its
    processes end with it, however it ends.
    """
    progress("asking the held-out questions without and with the adapter")
    folders = [str(one.folder) for one in question_folders]
    with contextlib.ExitStack() as stack:
        processes = (
            stack.enter_context(_measurement_process(model, name, folders, shares=together))
            for name in (NO_ADAPTER, str(adapter))
        )
        before, after = map(_read_result, list(processes) if together else processes)
    return [
        Measurement(
            one.name, a["n"], b["share"], tuple(b["interval"]), a["share"], tuple(a["interval"])
        )
        for one, b, a in zip(question_folders, before, after, strict=True)
    ]


@contextlib.contextmanager
def _measurement_process(
    model: str, adapter: str, folders: list[str], *, shares: bool
) -> Iterator[subprocess.Popen[str]]:
    """A process that measures; it and its engine end with the block."""
    environment = dict(os.environ)
    if shares:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    with tempfile.TemporaryDirectory(prefix="mmchat-") as runtime:
        environment["MMCHAT_RUNTIME"] = runtime
        # -P: Python must not import modules from the current folder. It has its own session, so
        # that Ctrl-C on a terminal reaches only us, and we end it once.
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "mmchat.cli.adapter_evaluation", model, adapter, *folders],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.communicate(timeout=STOP_SECONDS)
                    except subprocess.TimeoutExpired:
                        process.kill()


def _read_result(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate()
    if process.returncode:
        reason = (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise EngineError(reason.removeprefix("mmchat: "))
    results: list[dict[str, Any]] = json.loads(out.splitlines()[-1])
    return results


def main(arguments: Sequence[str]) -> int:
    """The process's entry: `MODEL ADAPTER|none FOLDER …`; prints one JSON list."""
    import asyncio

    from mmchat.client import EngineClient
    from mmchat.data.snapshot import has_snapshot, load_snapshot
    from mmchat.evaluation.runner import evaluate
    from mmchat.settings import load_settings

    # On SIGTERM, we stop our engine first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    model, adapter, *folders = arguments
    # The server in engine.url, if there is one, has no adapter of ours.
    settings = load_settings({"engine.url": ""})
    results = []

    async def stop() -> None:
        client = EngineClient(settings)
        await client.stop()
        await client.aclose()

    try:
        for name in folders:
            folder = Path(name)
            data = load_snapshot(folder) if has_snapshot(folder) else folder
            right = evaluate(data, settings, model=model, adapter=adapter).exact_match
            results.append({"n": right.n, "share": right.value, "interval": right.interval})
    except MmchatError as error:
        print(f"mmchat: {error}", file=sys.stderr)
        return 1
    finally:
        asyncio.run(stop())
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
