"""Computes the attention of a packed row sample by sample.

Attention between samples is masked, and in a long row most of the work would be spent on it. A CPU is
faster if it computes each sample's own square (`tests.benchmarks.bench_training`). On a GPU, where many
small calls are expensive, the whole row is computed at once.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmchat.training.packing import Batch, Span


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
