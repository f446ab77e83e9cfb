"""What each step of a stage computes: the same at every start, on any number of processes."""

from collections.abc import Iterator, Sequence
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
from mmchat.training.finetune_config import own_samples
from mmchat.training.packing import Row, Tree, collate, pack
from mmchat.training.train_step import RowInput, StepInput

Shown = tuple[Tree, Sequence[Picture]]
"""A tree, and the pictures that its `images` index."""


class Rows:
    """Trees -> packed rows with what their pictures need."""

    def __init__(
        self, row_tokens: int, pad_id: int, feed: Any, *, packs: bool, fixed: bool
    ) -> None:
        """`feed(pictures)` gives what the loss takes for a row's pictures. `packs`: several trees
        share a row; else rows are of several lengths, and computed one at a time. `fixed`: every row is `row_tokens` long, and not just as long as it has to be."""
        self.row_tokens = row_tokens
        self.pad_id = pad_id
        self.feed = feed
        self.packs = packs
        self.fixed = fixed

    def __call__(self, trees: Sequence[Shown]) -> list[RowInput]:
        pictures = {id(tree): shown for tree, shown in trees}
        # The longest first: rows end up fuller (first fit decreasing, Johnson 1973).
        ordered = sorted((tree for tree, _ in trees), key=len, reverse=True)
        if not self.packs:
            return [self._input([tree], pictures, len(tree)) for tree in ordered]
        rows = [row.trees for row in pack(ordered, self.row_tokens)]
        if self.fixed:
            return [self._input(row, pictures, self.row_tokens) for row in rows]
        # So many rows it has to be; all about equally long, less is computed for nothing.
        rows = _levelled(ordered, len(rows), self.row_tokens) or rows
        longest = max((sum(map(len, row)) for row in rows), default=0)
        capacity = min(self.row_tokens, -(-longest // 16) * 16)
        return [self._input(row, pictures, capacity) for row in rows]

    def _input(
        self, trees: Sequence[Tree], pictures: dict[int, Sequence[Picture]], capacity: int
    ) -> RowInput:
        row = Row(capacity)
        for tree in trees:
            row.add(tree)
        shown = [pictures[id(tree)][image] for tree in trees for image in tree.images]
        batch = collate([row], capacity, self.pad_id)
        return RowInput(batch, self.feed(shown) if shown else None)


def _levelled(ordered: Sequence[Tree], count: int, capacity: int) -> list[list[Tree]] | None:
    """`count` rows of about one length, each tree into the emptiest (Graham 1969); None where one overflows."""
    rows: list[list[Tree]] = [[] for _ in range(count)]
    lengths = [0] * count
    for tree in ordered:
        emptiest = lengths.index(min(lengths))
        rows[emptiest].append(tree)
        lengths[emptiest] += len(tree)
    return rows if max(lengths, default=0) <= capacity else None


class PictureFeed:
    """What the loss takes for a row's pictures; called in a worker process."""

    def __init__(self, loaded: LoadedModel, reader: FeatureReader | None) -> None:
        """`reader` has the features of the frozen encoder; without one the encoder gets pixels."""
        self._loaded = loaded
        self._reader = reader

    def __call__(self, pictures: Sequence[Picture]) -> Any:
        """For a visual-prefix model features (pictures, patches, vision_width) or pixels (pictures, 3,
        side, side); for a Hugging Face VLM its `pixel_values` and what goes with them."""
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
    """Step number -> what this process computes in it.

    An error that a person can correct is returned as a value: a DataLoader would raise it again with its
    worker's traceback as the message.
    """

    def __init__(
        self,
        own: Samples,
        replay: Samples | None,
        rows: Rows,
        *,
        batch: int,
        replay_share: float,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.sources = [own] if replay is None or not replay.trees else [own, replay]
        own_share = own_samples(batch, replay_share) if len(self.sources) > 1 else batch
        self.shares = [own_share, batch - own_share]
        self.orders = [Order(len(s.trees), seed + n) for n, s in enumerate(self.sources)]
        self.rows = rows
        self.rank = rank
        self.processes = processes

    def __getitem__(self, step: int) -> Any:
        try:
            return self._step(step)
        except MmchatError as error:
            return error

    def _step(self, step: int) -> StepInput:
        trees: list[Shown] = []
        places: list[str] = []
        for source, share, order in zip(self.sources, self.shares, self.orders, strict=False):
            for position in range(step * share, (step + 1) * share):
                number = order[position]
                trees.append((source.trees[number], source.pictures))
                places.append(source.places[number])
        rows = self.rows(trees)
        mine = rows[self.rank :: self.processes]
        if not mine:
            # Every process has to take part in the exchange of gradients: with a row that weighs nothing.
            mine = [_weightless(rows[0])]
        tokens = sum(len(tree) for tree, _ in trees)
        return StepInput(mine, places, len(trees), tokens)

    def __len__(self) -> int:
        return 2**31  # endless: the stage's steps bound it


def _weightless(row: RowInput) -> RowInput:
    batch = row.batch
    fields = {name: getattr(batch, name) for name in batch.__slots__}
    fields["weights"] = torch.zeros_like(batch.weights)
    return RowInput(type(batch)(**fields), row.features)


def build_dataloader(dataset: StepDataset, steps: range, workers: int) -> Iterator[Any]:
    """The items of `steps` in order, made ahead by worker processes."""
    return iter(
        DataLoader(dataset, batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=4)
    )


class Order:
    """Which sample stands at a position: each once within every pass, in an order of its own."""

    def __init__(self, length: int, seed: int, salt: tuple[int, ...] = ()) -> None:
        """`salt` tells orders of one seed apart."""
        self.length = length
        self._seed = seed
        self._salt = salt
        self._epoch = -1
        self._order = np.arange(length)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            rng = np.random.default_rng((self._seed, epoch, *self._salt))
            self._order = rng.permutation(self.length)
        return int(self._order[index])
