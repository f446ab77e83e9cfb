"""Training two ways side by side: features cached or encoded each time, rows packed or padded.

    python -m tests.benchmarks.bench_training

Both ways do the same steps on the same samples in turn; CPU seconds of this process, medians.
What the cache spares is the encoder's share of a step, and depends on the sizes of both: it is
measured on captions, what a projector is aligned with, with the built-in base, whose encoder is
small, and with a SigLIP tower of the base size (86M, random weights) before text models of two
sizes.
"""

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from accelerate import Accelerator

from mmchat.data.types import Dataset, Example
from mmchat.model.loaded_model import LoadedModel
from mmchat.model.loading import load_planned
from mmchat.training.dataloader import RowPacker, StepDataset
from mmchat.training.feature_cache import FeatureCache, FeatureReader, pixel_values
from mmchat.training.finetune_config import read_config
from mmchat.training.losses import PackedLoss
from mmchat.training.optimizer import build_optimizers
from mmchat.training.prepare import PreparedRun, prepare
from mmchat.training.train_step import StepInput, TrainStep
from mmchat.training.trainable import Trainable
from mmchat.turns import Turn
from tests.benchmarks.memory_cases import SHAPES, write_model
from tests.training.tuned import picture

SAMPLES, BATCH = 64, 32
CAPTION, PAGE = 40, 200
"""Words of the longest answer."""


def material(most_words: int) -> Dataset:
    """Conversations of mixed lengths from two words on, each about its own picture."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(SAMPLES):
        words = int(np.exp(rng.uniform(np.log(2), np.log(most_words))))
        answer = "I see " + "a red star and " * (words // 4) + "a moon."
        turns = (Turn("user", (picture(number), "what is here?")), Turn("assistant", (answer,)))
        made.append(Example(turns, "", f"sample {number}"))
    return Dataset("made", "here", made, (), "0" * 64)


class Way:
    """One way to do the steps of an epoch."""

    def __init__(
        self, loaded: LoadedModel, prepared: PreparedRun, method: str, feed: Any, **rows: Any
    ):
        stage = msgspec.structs.replace(prepared.recipe.stages[0], method=method)
        recipe = msgspec.structs.replace(prepared.recipe, stages=(stage,))
        self.trainable, self.stage = Trainable(loaded, recipe), stage
        self.groups = self.trainable.start_stage(stage)
        made = RowPacker(stage.row_tokens, 0, feed, fixed_length=False, **rows)
        self.feed = StepDataset(prepared.train, None, made, batch=BATCH, replay_share=0, seed=1)
        self.steps = TrainStep(
            Accelerator(cpu=True),
            PackedLoss(loaded.model),
            build_optimizers(self.groups, "adamw"),
            [p for group in self.groups for p in group["params"]],
            clip=1.0,
            micro_rows=0,
            say=print,
        )

    def epoch(self) -> tuple[float, int]:
        """(CPU seconds, tokens)"""
        self.trainable.start_stage(self.stage)
        began = time.process_time()
        tokens = 0
        for number in range(SAMPLES // BATCH):
            given = self.feed[number]
            assert isinstance(given, StepInput), given
            tokens += given.tokens
            self.steps.step(given, 0.0, "step")
        return time.process_time() - began, tokens


def padded(rows: RowPacker) -> Callable[[Any], Any]:
    """One sample a row, every row as long as the longest of its step: what packing is measured against."""

    def make(trees: Any) -> Any:
        longest = max(len(tree) for tree, _ in trees)
        kept, rows.row_tokens, rows.fixed = rows.row_tokens, longest, True
        rows.pack = True
        try:
            return [row for tree in trees for row in rows([tree])]
        finally:
            rows.row_tokens = kept

    return make


def base(model: str, most_words: int, row_tokens: int = 512) -> tuple[LoadedModel, PreparedRun]:
    """A loaded base and the samples that it is given."""
    overrides = [f"model={model}", "name=bench", "data.replay=0", f"row_tokens={row_tokens}"]
    prepared = prepare(read_config(None, overrides), material(most_words), [])
    return load_planned(prepared.plan, lambda stage, fraction: None), prepared


def features_cached(model: str, called: str, rounds: int, row_tokens: int = 512) -> None:
    loaded, prepared = base(model, CAPTION, row_tokens)
    cache = FeatureCache(loaded)
    cache.fill(prepared.train.pictures)

    def encoded(shown: Any) -> torch.Tensor:
        with torch.no_grad():
            pixels = torch.cat([pixel_values(loaded.processor, one) for one in shown])
            features: torch.Tensor = loaded.model.encode_images(pixels)
        return features

    read = FeatureReader(cache.folder, cache.dtype).read
    ways = {
        "projector, features cached": Way(loaded, prepared, "projector", read, pack=True),
        "projector, encoded each time": Way(loaded, prepared, "projector", encoded, pack=True),
    }
    _compare(f"{called}: an epoch", ways, rounds)


def rows_packed(rounds: int) -> None:
    loaded, prepared = base("scenes", PAGE)
    cache = FeatureCache(loaded)
    cache.fill(prepared.train.pictures)
    cached = FeatureReader(cache.folder, cache.dtype).read
    packed = Way(loaded, prepared, "lora", cached, pack=True)
    alone = copy.copy(packed)
    alone.feed = StepDataset(
        prepared.train,
        None,
        padded(RowPacker(packed.stage.row_tokens, 0, cached, pack=True, fixed_length=True)),  # type: ignore[arg-type]
        batch=BATCH,
        replay_share=0,
        seed=1,
    )
    _compare(
        "the built-in base: mixed lengths", {"LoRA, packed": packed, "LoRA, padded": alone}, rounds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows_packed(rounds)
    features_cached("scenes", "the built-in base", rounds)
    with tempfile.TemporaryDirectory() as folder:
        for size in ("3M", "30M"):
            shape = dataclasses.replace(SHAPES[size], vision="siglip-base")
            model = write_model(shape, Path(folder) / size)
            features_cached(str(model), f"SigLIP base before {size} of text", rounds, 1024)


def _compare(what: str, ways: dict[str, Way], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = 0
    for _ in range(rounds):
        for name, way in ways.items():
            took, tokens = way.epoch()
            seconds[name].append(took)
    print(f"\n{what}: {SAMPLES} samples, {tokens:,} tokens, {rounds} rounds, one thread")
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"  {name:32} {median:7.2f} CPU s   {tokens / median:8.0f} tokens/s")
    first, second = medians.values()
    print(f"  {second / first:.2f} times as fast")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        import os

        os.environ["MMCHAT_HOME"] = str(Path(home))
        main()
