"""The keys and values of a conversation, and their tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

CacheKey = tuple[int, str | None]
"""A token id and, if the token is part of a picture, the picture's sha256."""

# The caches of attention layers. All others (Mamba, short convolutions, linear attention) hold a
# recurrent state, which cannot be truncated; in some families, several new tokens at once reset it.
_ATTENTION_LAYERS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    # For layers that share another layer's keys and values; missing in older transformers.
    getattr(cache_utils, "DummyLayer", DynamicLayer),
}


@dataclass
class ConversationState:
    """What the model has stored of the tokens in `keys`, which it has read."""

    cache: DynamicCache
    keys: list[CacheKey] = field(default_factory=list)
    position_shift: int = 0
    """Next position minus number of tokens: in M-RoPE, pictures take fewer positions than tokens."""

    @property
    def length(self) -> int:
        """The number of tokens that were read."""
        return len(self.keys)

    @property
    def is_attention_only(self) -> bool:
        """Whether the state is only keys and values, so that a later prompt can reuse it."""
        return all(type(layer) in _ATTENTION_LAYERS for layer in self.cache.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values. A slice keeps its whole tensor alive and counts fully."""
        tensors = [
            tensor
            for layer in self.cache.layers
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if isinstance(tensor, Tensor)
        ]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def truncate(self, length: int) -> bool:
        """Drop all but the first `length` tokens; False, and no change, if that is impossible.

        It is impossible if a sliding window has moved, or if the state is more than keys and values.
        """
        surplus = self.length - length
        if surplus <= 0:
            return surplus == 0
        window_moved = any(
            isinstance(layer, DynamicSlidingWindowLayer) and self.length >= layer.sliding_window
            for layer in self.cache.layers
        )
        if window_moved or not self.is_attention_only:
            return False
        self.cache.crop(-surplus)
        del self.keys[length:]
        return True


def common_prefix(read: Sequence[CacheKey], prompt: Sequence[CacheKey]) -> int:
    """The number of tokens that `prompt` and `read` have in common at the beginning.

    The last token of the prompt does not count, because it must be read for its logits. Neither
    does a part of a picture: some models use fewer tokens per picture if there are more pictures,
    and in some, the tokens of a picture attend to later ones of the same picture.
    """
    longest = min(len(read), len(prompt) - 1)
    length = next((i for i in range(longest) if read[i] != prompt[i]), longest)
    while length and (_is_inside_picture(read, length) or _is_inside_picture(prompt, length)):
        length -= 1
    return length


def pictures_in(keys: Sequence[CacheKey]) -> list[str]:
    """The sha256 of each picture, in order."""
    return [sha256 for sha256, _ in itertools.groupby(key[1] for key in keys) if sha256 is not None]


def _is_inside_picture(keys: Sequence[CacheKey], place: int) -> bool:
    """Whether `keys[place]` and the token before it belong to the same picture."""
    if place == len(keys):
        return False
    sha256 = keys[place][1]
    return sha256 is not None and sha256 == keys[place - 1][1]
