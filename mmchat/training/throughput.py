"""How fast a run goes, what memory it takes, and what of the model trains."""

from collections import deque

import psutil
import torch

from mmchat.model.loaded_model import LoadedModel
from mmchat.training.finetune_config import StageConfig
from mmchat.training.train_step import StepResult
from mmchat.training.trainable import Trainable


class Throughput:
    """How fast it goes, over the last steps."""

    KEPT = 20

    def __init__(self, left: int) -> None:
        self._left = left
        self._last: deque[StepResult] = deque(maxlen=self.KEPT)

    def add(self, result: StepResult) -> None:
        self._left -= 1
        self._last.append(result)

    @property
    def _seconds(self) -> float:
        return max(sum(one.seconds + one.waited for one in self._last), 1e-9)

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self._last) / self._seconds

    @property
    def samples_per_second(self) -> float:
        return sum(one.samples for one in self._last) / self._seconds

    @property
    def waiting(self) -> float:
        """The share of time in which the model waited for data."""
        return sum(one.waited for one in self._last) / self._seconds

    @property
    def seconds_left(self) -> float:
        return self._left * self._seconds / max(len(self._last), 1)


def stage_lines(stage: StageConfig, loaded: LoadedModel, trainable: Trainable) -> list[str]:
    """What trains in a stage, and in what form, as lines for people."""
    form = "in 4-bit" if loaded.quantization == "4bit" else "unquantized"
    dtype = str(loaded.compute_dtype).removeprefix("torch.")
    where = f"computed in {dtype} on the {loaded.device.type}"
    lines = [
        f"stage {stage.name}: {stage.method} on {loaded.name} {form}, {where}",
        f"  {'part':<14}{'parameters':>14}{'trains':>12}  {'dtype':<18}4-bit",
    ]
    for row in trainable.table():
        counts = f"{row.part:<14}{row.parameters:>14,}{row.trainable:>12,}"
        lines.append(f"  {counts}  {row.dtype:<18}{'yes' if row.four_bit else 'no'}")
    return lines


def memory_of(device: torch.device) -> int:
    """Bytes that the process takes where it computes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
