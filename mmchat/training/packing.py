"""Rows of several dialogs, each blind to the others.

The dialogs of a sample share their pictures. Instead of repeating the pictures
for each dialog, a row holds them once (the trunk) and the dialogs after them
(the branches): a token sees what stands before it in its own branch and in the
trunk of its own sample, and positions of every branch go on from the trunk. The
result equals each dialog alone (a test holds loss and gradients to it); the
idea is the tree attention mask of Miao et al. 2024, "SpecInfer".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""The label of a token that is not trained, as torch's cross entropy has it."""


def next_labels(tokens: Sequence[int], answer_mask: Sequence[bool]) -> list[int]:
    """What each token has to be followed by: the next one where that is an answer's, else IGNORED."""
    following = zip(tokens[1:], answer_mask[1:], strict=True)
    return [token if asked else IGNORED for token, asked in following] + [IGNORED]


@dataclass(frozen=True, slots=True)
class Branch:
    """One dialog after the trunk. `labels[i]` is what token i has to be followed by."""

    tokens: Sequence[int]
    labels: Sequence[int]
    weight: float
    """Of each of its trained tokens in the loss."""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """A sample: the tokens of its pictures and what stands before them, then its dialogs."""

    trunk: Sequence[int]
    images: tuple[int, ...]
    """Pictures of the trunk and of the branches, in the order of their tokens."""
    branches: Sequence[Branch]

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch.tokens) for branch in self.branches)


@dataclass(slots=True)
class Row:
    """Trees packed into one sequence of at most `capacity` tokens."""

    capacity: int
    trees: list[Tree] = field(default_factory=list)
    length: int = 0

    def fits(self, tree: Tree) -> bool:
        return self.length + len(tree) <= self.capacity

    def add(self, tree: Tree) -> None:
        self.trees.append(tree)
        self.length += len(tree)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tree stands: tokens `start` to `stop` of a row of a batch."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step takes.

    input_ids, labels: int64 (rows, tokens); position_ids: int64 (rows, tokens);
    weights: float32 (rows, tokens); attention_mask: bool (rows, 1, tokens, tokens),
    True where a query (third) may see a key (fourth); branch: int32 (rows, tokens),
    the number of the dialog in the batch, -1 in trunks and padding; kinds: the
    type of each dialog; images: the pictures in the order of their tokens; spans:
    where each tree stands, in that order too.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    weights: Tensor
    attention_mask: Tensor
    branch: Tensor
    kinds: list[str]
    images: list[int]
    spans: list[Span]

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        if device.type == "cpu":
            return self
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in ((field, getattr(self, field)) for field in self.__slots__)
        }
        return Batch(**moved)


def pack(trees: Iterable[Tree], capacity: int) -> list[Row]:
    """First fit: each tree into the first row that has room, in the order given; no empty one."""
    rows: list[Row] = []
    for tree in trees:
        if not len(tree):
            continue
        row = next((row for row in rows if row.fits(tree)), None)
        if row is None:
            row = Row(capacity)
            rows.append(row)
        row.add(tree)
    return rows


def collate(rows: Sequence[Row], capacity: int, pad_id: int) -> Batch:
    """Rows -> tensors of shape (rows, capacity)."""
    shape = (len(rows), capacity)
    input_ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    positions = np.zeros(shape, np.int64)
    weights = np.zeros(shape, np.float32)
    tree_of = np.full(shape, -1, np.int32)
    branch_of = np.full(shape, -1, np.int32)
    kinds: list[str] = []
    images: list[int] = []
    spans: list[Span] = []
    for row_index, row in enumerate(rows):
        at = 0
        for tree_index, tree in enumerate(row.trees):
            trunk = len(tree.trunk)
            end = at + len(tree)
            spans.append(Span(row_index, at, end))
            tree_of[row_index, at:end] = tree_index
            input_ids[row_index, at : at + trunk] = tree.trunk
            positions[row_index, at : at + trunk] = np.arange(trunk)
            images += tree.images
            at += trunk
            for branch in tree.branches:
                span = slice(at, at + len(branch.tokens))
                input_ids[row_index, span] = branch.tokens
                labels[row_index, span] = branch.labels
                positions[row_index, span] = np.arange(trunk, trunk + len(branch.tokens))
                weights[row_index, span] = branch.weight
                branch_of[row_index, span] = len(kinds)
                kinds.append(branch.kind)
                at = span.stop
    weights[labels == IGNORED] = 0
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        weights=torch.from_numpy(weights),
        attention_mask=torch.from_numpy(tree_mask(tree_of, branch_of))[:, None],
        branch=torch.from_numpy(branch_of),
        kinds=kinds,
        images=images,
        spans=spans,
    )


def join(batches: Sequence[Batch]) -> Batch:
    """Batches of rows of one length -> one of all their rows."""
    dialogs = np.cumsum([0, *(len(batch.kinds) for batch in batches)])
    rows = np.cumsum([0, *(len(batch.input_ids) for batch in batches)])
    branch = [
        torch.where(batch.branch >= 0, batch.branch + int(first), batch.branch)
        for first, batch in zip(dialogs[:-1], batches, strict=True)
    ]
    stacked = {
        field: torch.cat([getattr(batch, field) for batch in batches])
        for field in ("input_ids", "labels", "position_ids", "weights", "attention_mask")
    }
    return Batch(
        **stacked,
        branch=torch.cat(branch),
        kinds=[kind for batch in batches for kind in batch.kinds],
        images=[image for batch in batches for image in batch.images],
        spans=[
            Span(int(first) + span.row, span.start, span.stop)
            for first, batch in zip(rows[:-1], batches, strict=True)
            for span in batch.spans
        ],
    )


def tree_mask(tree_of: NDArray[np.int32], branch_of: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(rows, tokens) twice -> bool (rows, tokens, tokens): causal, own tree, own branch or trunk.

    Padding (tree -1) sees other padding before it, so that no softmax is empty.
    """
    causal = np.tri(tree_of.shape[1], dtype=bool)
    same_tree = tree_of[:, :, None] == tree_of[:, None, :]
    key = branch_of[:, None, :]
    visible: NDArray[np.bool_] = causal & same_tree & ((key == -1) | (key == branch_of[:, :, None]))
    return visible


def packs(text_config: Any) -> bool:
    """Whether conversations can share a row: where attention alone connects tokens.

    A recurrent layer carries its state over a row, and no mask stops it.
    """
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if getattr(text_config, "model_type", "") in ("rwkv", "xlstm"):  # say nothing of their layers
        return False
    return kinds <= {"full_attention", "sliding_attention"} and not any(
        hasattr(text_config, name)
        for name in ("ssm_cfg", "mamba_d_state", "state_size", "linear_conv_kernel_dim")
    )
