"""Before and after: a run's held-out answers and the base's old skills, asked through an engine.

Each measuring is a process with an engine of its own in a runtime folder of its own, so that the
person's engine, and the chat that may go on with it, is left alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmchat.errors import EngineError, MmchatError
from mmchat.training.progress import Row

HELD_OUT, OLD_SKILLS = "held-out answers", "old skills"
NONE = "none"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: a folder, and what it is called in the table."""

    what: str
    folder: Path


def measure(
    model: str,
    adapter: Path,
    asked: Sequence[Asked],
    *,
    together: bool,
    tell: Callable[[str], None],
) -> list[Row]:
    """Rows of shares right without and with `adapter`; the two at once where `together`.

    Raises EngineError with the sentence of what failed.
    """
    tell("asking the held-out questions without and with the adapter")
    jobs = [NONE, str(adapter)]
    with ThreadPoolExecutor(len(jobs) if together else 1) as pool:
        folders = [str(one.folder) for one in asked]
        before, after = pool.map(lambda name: _measured(model, name, folders, together), jobs)
    return [
        Row(one.what, a["n"], b["share"], tuple(b["interval"]), a["share"], tuple(a["interval"]))
        for one, b, a in zip(asked, before, after, strict=True)
    ]


def _measured(model: str, adapter: str, folders: list[str], shares: bool) -> list[dict[str, Any]]:
    environment = dict(os.environ)
    if shares:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    with tempfile.TemporaryDirectory(prefix="mmchat-") as runtime:
        environment["MMCHAT_RUNTIME"] = runtime
        # -P: the folder that we are in must not be where Python looks for modules.
        command = [sys.executable, "-P", "-m", "mmchat.cli.measuring", model, adapter, *folders]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EngineError(f"Measuring did not end well: {said.removeprefix('mmchat: ')}")
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str]) -> int:
    """In the process of its own: `MODEL ADAPTER|none FOLDER …` -> one JSON list."""
    import asyncio

    from mmchat.client import EngineClient
    from mmchat.data.snapshot import has_snapshot, load_snapshot
    from mmchat.evaluation.run import evaluate
    from mmchat.settings import load_settings

    model, adapter, *folders = arguments
    settings = load_settings()
    found = []

    async def stop() -> None:
        client = EngineClient(settings)
        await client.stop()
        await client.aclose()

    try:
        for name in folders:
            folder = Path(name)
            data = load_snapshot(folder) if has_snapshot(folder) else folder
            report = evaluate(data, settings, model=model, adapter=adapter)
            total = report.total
            found.append({"n": total.n, "share": total.share, "interval": total.interval})
    except MmchatError as error:
        print(f"mmchat: {error}", file=sys.stderr)
        return 1
    finally:
        asyncio.run(stop())
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
