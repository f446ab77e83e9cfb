"""A run in a process of its own: `python -m tests.training.runner BASE RUN [--kill-after N] [--set k=v]`.

Killed after a step it is killed as hard as can be; several of them under torchrun share one run.
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import torch

from mmchat.training import validation
from mmchat.training.finetune import Trainer, TrainingPaused
from mmchat.training.finetune_config import read_config
from mmchat.training.prepare import prepare
from mmchat.training.run_folder import RunFolder, Status
from mmchat.training.train_step import TrainStep
from tests.training.tuned import dataset, examples

STEPS = 12
SAMPLE_TOKENS = 6
RECIPE = (
    f"steps={STEPS}", "batch=4", "row_tokens=96", "checkpoint_every=1", "evaluate_every=6",
    "learning_rate=1e-2", "projector_learning_rate=1e-2", "lora.dropout=0.1", "data.replay=0",
    "stages.0.method=lora",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill-after", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    validation.MAX_NEW_TOKENS = SAMPLE_TOKENS
    options.run.mkdir(parents=True, exist_ok=True)
    recipe = read_config(None, [*RECIPE, f"model={options.base}", "name=t", *options.overrides])
    data = dataset(10)
    prepared = prepare(recipe, data, examples(3))
    folder = RunFolder(options.run)
    tune = Trainer(prepared, data.sha256, folder, Status("t", options.base, "preparing"))
    done = TrainStep.step
    world = os.environ.get("WORLD_SIZE", "1")
    assert str(tune.accelerator.num_processes) == world, "the processes did not find each other"

    def step(self: TrainStep, *given: Any) -> Any:
        if options.kill_after and tune.done == options.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return done(self, *given)

    TrainStep.step = step  # type: ignore[method-assign]
    try:
        tune.run()
    except TrainingPaused:
        print("paused")
    if tune.main:
        print(f"processes {tune.accelerator.num_processes}")


if __name__ == "__main__":
    main()
