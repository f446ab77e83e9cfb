"""Builds the input of each training step: the same in every run, on any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmchat.data.types import Picture
from mmchat.errors import MmchatError
from mmchat.model.loaded_model import LoadedModel
from mmchat.prompt.pixel_values import picture_inputs
from mmchat.training.encode import Samples
from mmchat.training.feature_cache import FeatureReader, pixel_values
from mmchat.training.finetune_config import new_samples_per_step
from mmchat.training.packing import Tree, collate, pack
from mmchat.training.train_step import RowInput, StepInput

TreeWithPictures = tuple[Tree, Sequence[Picture]]
"""A tree, and the pictures that its `images` are indices of."""


class RowPacker:
    """Packs trees into rows and loads the inputs for their pictures."""

    def __init__(
        self, row_tokens: int, pad_id: int, load_pictures: Any, *, pack: bool, fixed_length: bool
    ) -> None:
        """load_pictures: returns the loss's input for a row's pictures. pack: several trees share a row;
        otherwise each has a row of its own length. fixed_length: every row has `row_tokens` tokens;
        otherwise rows are as short as possible."""
        self.row_tokens = row_tokens
        self.pad_id = pad_id
        self.load_pictures = load_pictures
        self.pack = pack
        self.fixed_length = fixed_length

    def __call__(self, trees: Sequence[TreeWithPictures]) -> list[RowInput]:
        pictures = {id(tree): of_tree for tree, of_tree in trees}
        # The longest first, which fills the rows better (first fit decreasing, Johnson 1973).
        ordered = sorted((tree for tree, _ in trees), key=len, reverse=True)
        if not self.pack:
            return [self._input([tree], pictures, len(tree)) for tree in ordered]
        rows = pack(ordered, self.row_tokens)
        if self.fixed_length:
            return [self._input(row, pictures, self.row_tokens) for row in rows]
        # The number of rows is fixed now. Rows of about equal length need the least padding.
        rows = _balance(ordered, len(rows), self.row_tokens) or rows
        longest = max((sum(map(len, row)) for row in rows), default=0)
        capacity = min(self.row_tokens, -(-longest // 16) * 16)
        return [self._input(row, pictures, capacity) for row in rows]

    def _input(
        self, trees: Sequence[Tree], pictures: dict[int, Sequence[Picture]], capacity: int
    ) -> RowInput:
        used = [pictures[id(tree)][image] for tree in trees for image in tree.images]
        batch = collate([trees], capacity, self.pad_id)
        return RowInput(batch, self.load_pictures(used) if used else None)


def _balance(ordered: Sequence[Tree], count: int, capacity: int) -> list[list[Tree]] | None:
    """`count` rows of about equal length: each tree goes into the shortest row (Graham 1969).

    None if a row would exceed `capacity`.
    """
    rows: list[list[Tree]] = [[] for _ in range(count)]
    lengths = [0] * count
    for tree in ordered:
        shortest = lengths.index(min(lengths))
        rows[shortest].append(tree)
        lengths[shortest] += len(tree)
    return rows if max(lengths, default=0) <= capacity else None


class PictureLoader:
    """Loads the loss's input for a row's pictures, in a worker process."""

    def __init__(self, loaded: LoadedModel, reader: FeatureReader | None) -> None:
        """reader: has the features of the frozen encoder; without it, the encoder gets pixels."""
        self._loaded = loaded
        self._reader = reader

    def __call__(self, pictures: Sequence[Picture]) -> Any:
        """For a visual-prefix model, features (pictures, patches, vision_width) or pixels (pictures, 3,
        side, side); for a Hugging Face VLM, its `pixel_values` and related inputs."""
        loaded = self._loaded
        if loaded.kind == "hf_vlm":
            _, inputs = picture_inputs(loaded, pictures, {}, lambda: False)
            dtype = loaded.compute_dtype
            return {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
        if loaded.kind == "text":
            return None
        if self._reader is not None:
            return self._reader.read(pictures)
        return torch.cat([pixel_values(loaded.processor, picture) for picture in pictures])


class StepDataset(Dataset[Any]):
    """Maps a step number to this process's input of the step.

    An MmchatError is returned as a value, because a DataLoader would raise it again with the worker's
    traceback as its message.
    """

    def __init__(
        self,
        train: Samples,
        replay: Samples | None,
        rows: RowPacker,
        *,
        batch: int,
        replay_share: float,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.sources = [train] if replay is None or not replay.trees else [train, replay]
        new = new_samples_per_step(batch, replay_share) if len(self.sources) > 1 else batch
        self.counts = [new, batch - new]
        self.orders = [ShuffledOrder(len(s.trees), seed + n) for n, s in enumerate(self.sources)]
        self.rows = rows
        self.rank = rank
        self.processes = processes

    def __getitem__(self, step: int) -> Any:
        try:
            return self._step(step)
        except MmchatError as error:
            return error

    def _step(self, step: int) -> StepInput:
        trees: list[TreeWithPictures] = []
        places: list[str] = []
        for source, count, order in zip(self.sources, self.counts, self.orders, strict=False):
            for position in range(step * count, (step + 1) * count):
                number = order[position]
                trees.append((source.trees[number], source.pictures))
                places.append(source.places[number])
        rows = self.rows(trees)
        mine = rows[self.rank :: self.processes]
        if not mine:
            # Every process must take part in the gradient exchange, here with a row of zero weight.
            batch = rows[0].batch
            weightless = replace(batch, weights=torch.zeros_like(batch.weights))
            mine = [RowInput(weightless, rows[0].features)]
        tokens = sum(len(tree) for tree, _ in trees)
        return StepInput(mine, places, len(trees), tokens)

    def __len__(self) -> int:
        return 2**31  # unlimited: the number of steps is the stage's


def build_dataloader(dataset: StepDataset, steps: range, workers: int) -> Iterator[Any]:
    """The inputs of `steps` in order, prefetched by worker processes."""
    return iter(
        DataLoader(dataset, batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=4)
    )


class ShuffledOrder:
    """Maps a position to a sample: every epoch has each sample once, in its own order."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self._seed = seed
        self._epoch = -1
        self._order = np.arange(length)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            rng = np.random.default_rng((self._seed, epoch))
            self._order = rng.permutation(self.length)
        return int(self._order[index])
