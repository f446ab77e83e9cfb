"""A stand-in for `mmchat train` that does what it is told, step by step, with a real run folder.

Told by files in the folder `fake` of the data folder:

    plan.json   what the dry run prints
    remark      what the dry run says before
    refuse      a sentence: the dry run ends with it
    die         a sentence: a run ends with it before it has told anything
    unready     a sentence: a run fails with it while it is preparing
    fail        a sentence: a run fails with it at step 3
    break       anything: a run breaks down at step 3 with a traceback
    allowed     the last step that may be done; none are before this is there

Every call is written down in `calls.jsonl`. A run has ten steps and goes on from the step in
RUN/checkpoint; in the end it writes its adapter's card.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mmchat.adapters.card import Base, Card, write_card
from mmchat.settings import paths
from mmchat.training.run_folder import (
    KEEP,
    PAUSE,
    RECIPE,
    Measurement,
    RunFolder,
    SampleAnswer,
    Status,
    run_folder,
)

STEPS = 10
PLAN = {
    "form": "from history",
    "examples": 42,
    "pictures": 34,
    "corrected": 30,
    "good": 12,
    "problems": 1,
    "held_out": 6,
    "tokens": 9_000,
    "steps": 240,
    "epochs": 3.0,
    "trainable_parameters": 412_000,
    "memory_bytes": 1_230_000_000,
    "seconds": 380.0,
    "stages": ["adapter"],
    "replay": 0.5,
}
ROWS = (
    Measurement("held-out answers", 12, 0.08, (0.002, 0.385), 0.92, (0.615, 0.998)),
    Measurement("base model skills", 500, 0.831, (0.796, 0.862), 0.829, (0.793, 0.86)),
)
SAMPLES = (
    SampleAnswer("What is this?", "a florp", "a florp"),
    SampleAnswer("What shape is left of the [red] one?", "a florp", "a circle \x1b[31m"),
)


def folder() -> Path:
    made = paths().data / "fake"
    made.mkdir(parents=True, exist_ok=True)
    return made


def tell(name: str, text: object) -> None:
    """For tests: what the stand-in is to do."""
    partial = folder() / f".{name}"
    partial.write_text(str(text))
    partial.replace(folder() / name)


def calls() -> list[list[str]]:
    """For tests: the arguments of every call."""
    file = folder() / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _told(name: str) -> str:
    file = folder() / name
    return file.read_text() if file.exists() else ""


def status(name: str, state: Any, step: int, **fields: Any) -> Status:
    """What the run tells at a step."""
    given: dict[str, Any] = {
        "model": "scenes",
        "stage": "adapter",
        "steps": STEPS,
        "loss": 3.0 / (step + 1),
        "held_out_loss": 4.0 / (step + 1),
        "learning_rate": 2.1e-4,
        "tokens_per_second": 812.3,
        "samples_per_second": 6.1,
        "memory_bytes": 1_230_000_000,
        "waiting": 0.02,
        "seconds_left": (STEPS - step) * 20.0,
        "samples": SAMPLES if step else (),
        "command": ("train", "--resume", "--name", name),
    }
    return Status(name=name, state=state, step=step, **(given | fields))


def _run(run: RunFolder, name: str) -> None:
    asked: list[int] = []
    for number in (PAUSE, KEEP, signal.SIGINT):
        signal.signal(number, lambda which, frame: asked.append(which))
    checkpoint = run.folder / "checkpoint"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    run.write_status(status(name, "preparing", step, message="reading 42 conversations"))
    if _told("unready"):
        run.write_status(status(name, "failed", step, message=_told("unready")))
        raise SystemExit(1)
    (run.folder / RECIPE).touch()
    run.write_status(status(name, "training", step))
    while step < STEPS and KEEP not in asked:
        if asked:
            checkpoint.write_text(str(step))
            said = f"Paused at step {step}; mmchat train --resume --name {name} goes on."
            run.write_status(status(name, "paused", step, message=said))
            raise SystemExit(130)
        if step >= int(_told("allowed") or 0):
            time.sleep(0.002)
            continue
        step += 1
        run.log(stage="adapter", step=step, of=STEPS, loss=3.0 / step)
        if step % 5 == 0:
            run.log(stage="adapter", step=step, of=STEPS, held_out_loss=4.0 / step)
        if step == 3 and _told("break"):
            raise RuntimeError("a bug in training")
        if step == 3 and _told("fail"):
            run.write_status(status(name, "failed", step, message=_told("fail")))
            raise SystemExit(1)
        run.write_status(status(name, "training", step))
    run.write_status(status(name, "measuring", step, message="asking held-out questions"))
    adapter = paths().adapters / name
    adapter.mkdir(parents=True, exist_ok=True)
    write_card(adapter, Card(name, Base("scenes", "0" * 64), trained=("lora",)))
    said = "Stopped early; what it learned is kept." if KEEP in asked else ""
    run.write_status(status(name, "finished", step, rows=ROWS, adapter=name, message=said))


def main(arguments: list[str]) -> None:
    with (folder() / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if "--dry-run" in arguments:
        if _told("remark"):
            print(_told("remark"), file=sys.stderr)
        if _told("refuse"):
            sys.exit(f"mmchat: {_told('refuse')}")
        print(_told("plan.json") or json.dumps(PLAN))
        return
    if _told("die"):
        sys.exit(f"a remark before\nmmchat: {_told('die')}")
    name = arguments[arguments.index("--name") + 1]
    run = run_folder(name)
    with run.working():
        _run(run, name)


if __name__ == "__main__":
    main(sys.argv[1:])
