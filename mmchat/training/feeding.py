"""Step number -> what is computed in it: the same at every start, on every number of processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmchat.data.types import Picture
from mmchat.errors import MmchatError
from mmchat.training.examples import Samples
from mmchat.training.loop import RowInput, StepInput
from mmchat.training.packing import Row, Tree, collate


class Order:
    """Which sample stands at a position: each once within every pass, in an order of its own."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self._epoch = -1
        self._order = np.arange(length)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return int(self._order[index])


class Rows:
    """Trees -> packed rows with what their pictures need."""

    def __init__(
        self, row_tokens: int, pad_id: int, feed: Any, *, packs: bool, fixed: bool
    ) -> None:
        """`feed(pictures)` gives what the loss takes for a row's pictures. `packs`: several trees
        share a row. `fixed`: every row is `row_tokens` long, and not just as long as it has to be."""
        self.row_tokens = row_tokens
        self.pad_id = pad_id
        self.feed = feed
        self.packs = packs
        self.fixed = fixed

    def __call__(self, trees: Sequence[tuple[Tree, Sequence[Picture]]]) -> list[RowInput]:
        """`trees` with the pictures that their `images` index."""
        # The longest first: rows end up fuller (first fit decreasing, Johnson 1973).
        rows: list[tuple[Row, list[Picture]]] = []
        for tree, pictures in sorted(trees, key=lambda pair: len(pair[0]), reverse=True):
            found = next((row for row in rows if self.packs and row[0].fits(tree)), None)
            if found is None:
                found = (Row(self.row_tokens), [])
                rows.append(found)
            found[0].add(tree)
            found[1].extend(pictures[image] for image in tree.images)
        if not rows:
            return []
        longest = max(row.length for row, _ in rows)
        capacity = self.row_tokens if self.fixed else min(self.row_tokens, -(-longest // 16) * 16)
        if not self.packs:
            return [self._input(row, shown, row.length) for row, shown in rows]
        return [self._input(row, shown, capacity) for row, shown in rows]

    def _input(self, row: Row, pictures: Sequence[Picture], capacity: int) -> RowInput:
        batch = collate([row], capacity, self.pad_id)
        return RowInput(batch, self.feed(pictures) if pictures else None)


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
        of_replay = round(batch * replay_share) if len(self.sources) > 1 else 0
        of_replay = min(of_replay, batch - 1)
        self.shares = [batch - of_replay, of_replay]
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
        trees: list[tuple[Tree, Sequence[Picture]]] = []
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
