"""Measures the speed and the memory of a run, and describes what a stage trains."""

from collections import deque

import psutil
import torch

from mmchat.model.loaded_model import LoadedModel
from mmchat.training.finetune_config import StageConfig
from mmchat.training.train_step import StepResult
from mmchat.training.trainable import Trainable


class Throughput:
    """The speed of a run over its last steps."""

    WINDOW = 20

    def __init__(self, steps_left: int) -> None:
        self._steps_left = steps_left
        self._last: deque[StepResult] = deque(maxlen=self.WINDOW)

    def add(self, result: StepResult) -> None:
        self._steps_left -= 1
        self._last.append(result)

    @property
    def _seconds(self) -> float:
        return max(sum(one.seconds + one.wait_seconds for one in self._last), 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self._last) / self._seconds

    @property
    def samples_per_second(self) -> float:
        return sum(one.samples for one in self._last) / self._seconds

    @property
    def waiting(self) -> float:
        """The share of the time that the model waited for data."""
        return sum(one.wait_seconds for one in self._last) / self._seconds

    @property
    def seconds_left(self) -> float:
        return self._steps_left * self._seconds / max(len(self._last), 1)


def describe_stage(stage: StageConfig, loaded: LoadedModel, trainable: Trainable) -> list[str]:
    """Lines that say what a stage trains, with which quantization and dtypes."""
    form = "in 4-bit" if loaded.quantization == "4bit" else "unquantized"
    dtype = str(loaded.compute_dtype).removeprefix("torch.")
    where = f"computed in {dtype} on the {loaded.device.type}"
    lines = [
        f"stage {stage.name}: {stage.method} on {loaded.name} {form}, {where}",
        f"  {'part':<14}{'parameters':>14}{'trains':>12}  {'dtype':<18}4-bit",
    ]
    for part in trainable.summarize_parts():
        counts = f"{part.name:<14}{part.parameters:>14,}{part.trainable:>12,}"
        lines.append(f"  {counts}  {part.dtype:<18}{'yes' if part.four_bit else 'no'}")
    return lines


def process_memory(device: torch.device) -> int:
    """Bytes that the process uses: peak GPU memory on CUDA, else its resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
