"""Step number -> what is computed in it: the same at every start, on every number of processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from mmchat.data.types import Picture
from mmchat.errors import MmchatError
from mmchat.training.examples import Samples
from mmchat.training.loop import RowInput, StepInput
from mmchat.training.order import Order
from mmchat.training.packing import Row, Tree, collate, pack
from mmchat.training.tuning import own_samples

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


class StepFeed(Dataset[Any]):
    """What each step of a stage computes on this process.

    An error that a person can mend is a value: a DataLoader would raise it anew, with its worker's
    traceback for a sentence.
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
