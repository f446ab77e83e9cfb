"""Packs several conversations into a row, with a mask that separates them.

The conversations of a sample share their pictures. Instead of repeating the pictures, a row has them
once (the trunk), followed by the conversations (the branches). A token attends to the tokens before it
in its own branch and in the trunk of its own sample, and the positions of every branch continue from
the trunk. Loss and gradients equal those of each conversation alone, which a test checks. The idea is
the tree attention mask of Miao et al. 2024, "SpecInfer".

Attention between samples is masked, and in a long row most of the work would be spent on it. A CPU is
faster if it computes each sample's own square (`tests.benchmarks.bench_training`). On a GPU, where many
small calls are expensive, the whole row is computed at once.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IGNORED = -100
"""The label of tokens without loss: the `ignore_index` of torch's cross entropy."""


def next_labels(tokens: Sequence[int], answer_mask: Sequence[bool]) -> list[int]:
    """The label of each token: the next token if it belongs to an answer, else IGNORED."""
    following = zip(tokens[1:], answer_mask[1:], strict=True)
    return [token if answer else IGNORED for token, answer in following] + [IGNORED]


@dataclass(frozen=True, slots=True)
class Branch:
    """A conversation after the trunk. `labels[i]` is the token that should follow token i."""

    tokens: Sequence[int]
    labels: Sequence[int]
    weight: float
    """The weight of each label in the loss."""
    kind: str = ""
    """The question type, for the accuracy by type."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A sample: a trunk (everything up to its last picture), then its conversations."""

    trunk: Sequence[int]
    images: tuple[int, ...]
    """Indices of the pictures in trunk and branches, in the order of their tokens."""
    branches: Sequence[Branch]

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch.tokens) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Span:
    """The position of a tree: tokens `start` to `stop` of a row of a batch."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows as tensors.

    input_ids, labels, position_ids: int64 (rows, tokens); weights: float32 (rows, tokens);
    attention_mask: bool (rows, 1, queries, keys), True where a query may attend to a key;
    branch: int32 (rows, tokens), the conversation's number in the batch, -1 in trunks and
    padding; kinds: the type of each conversation; images: the pictures in the order of their
    tokens; spans: the position of each tree, in the same order.
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
        if device.type == "cpu":
            return self
        fields = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        return replace(self, **{n: t.to(device, non_blocking=True) for n, t in tensors.items()})


def pack(trees: Iterable[Tree], capacity: int) -> list[list[Tree]]:
    """First fit: each tree goes into the first row of `capacity` tokens that has room for it.

    Empty trees are skipped.
    """
    rows: list[list[Tree]] = []
    room: list[int] = []
    for tree in trees:
        size = len(tree)
        if not size:
            continue
        number = next((number for number, left in enumerate(room) if size <= left), len(rows))
        if number == len(rows):
            rows.append([])
            room.append(capacity)
        rows[number].append(tree)
        room[number] -= size
    return rows


def collate(rows: Sequence[Sequence[Tree]], capacity: int, pad_id: int) -> Batch:
    """Rows of trees -> tensors of shape (rows, capacity)."""
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
        position = 0
        for tree_index, tree in enumerate(row):
            trunk = len(tree.trunk)
            end = position + len(tree)
            spans.append(Span(row_index, position, end))
            tree_of[row_index, position:end] = tree_index
            input_ids[row_index, position : position + trunk] = tree.trunk
            positions[row_index, position : position + trunk] = np.arange(trunk)
            images += tree.images
            position += trunk
            for branch in tree.branches:
                span = slice(position, position + len(branch.tokens))
                input_ids[row_index, span] = branch.tokens
                labels[row_index, span] = branch.labels
                positions[row_index, span] = np.arange(trunk, trunk + len(branch.tokens))
                weights[row_index, span] = branch.weight
                branch_of[row_index, span] = len(kinds)
                kinds.append(branch.kind)
                position = span.stop
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
    """Concatenates batches whose rows have the same length."""
    conversations = np.cumsum([0, *(len(batch.kinds) for batch in batches)])
    rows = np.cumsum([0, *(len(batch.input_ids) for batch in batches)])
    branch = [
        torch.where(batch.branch >= 0, batch.branch + int(first), batch.branch)
        for first, batch in zip(conversations[:-1], batches, strict=True)
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
    """(rows, tokens) twice -> bool (rows, queries, keys): causal, same tree, and same branch or trunk.

    Padding (tree -1) attends to earlier padding, so that no softmax is empty.
    """
    causal = np.tri(tree_of.shape[1], dtype=bool)
    same_tree = tree_of[:, :, None] == tree_of[:, None, :]
    key = branch_of[:, None, :]
    visible: NDArray[np.bool_] = causal & same_tree & ((key == -1) | (key == branch_of[:, :, None]))
    return visible


def can_pack(text_config: Any) -> bool:
    """Whether conversations can share a row, which needs a model of attention layers only.

    A recurrent layer carries its state across a row, which no mask can prevent.
    """
    if getattr(text_config, "model_type", "") in ("rwkv", "xlstm"):  # have no layer_types
        return False
    layer_types = set(getattr(text_config, "layer_types", None) or ())
    return layer_types <= {"full_attention", "sliding_attention"} and not any(
        hasattr(text_config, name)
        for name in ("ssm_cfg", "mamba_d_state", "state_size", "linear_conv_kernel_dim")
    )


@contextlib.contextmanager
def sample_attention() -> Iterator[None]:
    """Makes transformers' "sdpa" attention accept `sample_spans`; without spans it is unchanged."""
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", original)


def attention_spans(batch: Batch, decoder: Any) -> dict[str, Any]:
    """The samples' spans as keyword arguments for `decoder`, if that is faster; else none.

    Without them, or if the decoder ignores them, the mask gives the same result.
    """
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not attend:
        return {}
    alone = len(batch.spans) == 1 and batch.spans[0].stop == batch.input_ids.shape[1]
    compiled = hasattr(decoder, "_orig_mod")  # it would be recompiled for every row
    if batch.input_ids.device.type != "cpu" or compiled or alone or not _accepts_kwargs(decoder):
        return {}
    return {"sample_spans": batch.spans}


def _accepts_kwargs(decoder: Any) -> bool:
    parameters = inspect.signature(decoder.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sample_spans: Sequence[Span] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' sdpa attention, only within each of `sample_spans` if they are given.

    query, key, value: (rows, heads, tokens, head_dim); attention_mask: bool (rows, 1, tokens,
    tokens). Returns (rows, tokens, heads, head_dim), which is zero outside the spans, and None.
    """
    if sample_spans is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, _, tokens, _ = query.shape
    lengths: list[int] = []  # of gaps and spans in turn, row after row
    end = 0
    for span in sample_spans:
        start = span.row * tokens + span.start
        lengths += [start - end, span.stop - span.start]
        end = start + lengths[-1]
    lengths.append(rows * tokens - end)
    # Split, not sliced: the gradient of a slice is a full-size tensor that is padded with zeros.
    split = [t.transpose(1, 2).flatten(0, 1).split(lengths) for t in (query, key, value)]
    parts: list[Tensor] = []
    for number, span in enumerate(sample_spans):
        place = slice(span.start, span.stop)
        attended, _ = sdpa_attention_forward(
            module,
            *(pieces[2 * number + 1].transpose(0, 1)[None] for pieces in split),
            attention_mask[span.row : span.row + 1, :, place, place],
            **options,
        )
        parts += [attended.new_zeros(lengths[2 * number], *attended.shape[2:]), attended[0]]
    parts.append(parts[-1].new_zeros(lengths[-1], *parts[-1].shape[1:]))
    return torch.cat(parts).unflatten(0, (rows, tokens)), None
