"""Attention of a packed row, sample by sample.

Everything between samples is masked: computing it and throwing it away is most of a long row's
attention. A CPU is faster with each sample's own square (`tests.benchmarks.bench_training`). On a
GPU, where many small calls have their price, the row is computed whole.
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
    """Inside it transformers' "sdpa" attention takes `sample_spans`; without spans it is unchanged."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", before)


def attention_spans(batch: Batch, decoder: Any) -> dict[str, Any]:
    """The samples' places, as an argument for `decoder` beside its mask, if that is faster.

    Without them, or if the decoder does not pass them on, it attends through the mask, with the same
    result.
    """
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is not attend:
        return {}
    alone = len(batch.spans) == 1 and batch.spans[0].stop == batch.input_ids.shape[1]
    compiled = hasattr(decoder, "_orig_mod")  # it would be compiled anew for every row
    if batch.input_ids.device.type != "cpu" or compiled or alone or not _takes_more(decoder):
        return {}
    return {"sample_spans": batch.spans}


def _takes_more(decoder: Any) -> bool:
    taken = inspect.signature(decoder.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)


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
    """transformers' sdpa attention, within each of `sample_spans` alone where there are some.

    query, key, value: (rows, heads, tokens, head_dim); attention_mask: bool (rows, 1, tokens,
    tokens). Returns (rows, tokens, heads, head_dim), zeros outside of the spans, and None.
    """
    if sample_spans is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, _, tokens, _ = query.shape
    lengths: list[int] = []  # of gaps and spans in turn, one row after the other
    at = 0
    for span in sample_spans:
        begins = span.row * tokens + span.start
        lengths += [begins - at, span.stop - span.start]
        at = begins + lengths[-1]
    lengths.append(rows * tokens - at)
    # Split, not sliced: a slice's gradient is a tensor of the whole, filled with zeros.
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
