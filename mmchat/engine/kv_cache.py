"""The keys and values of a conversation, and the tokens that they belong to."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

CacheKey = tuple[int, str | None]
"""A token id and, if the token is part of a picture, the picture's sha256."""

# The caches of attention layers. All others (Mamba, short convolutions, linear attention) hold a
# recurrent state. It cannot be truncated, and with some families several new tokens at once start anew.
_ATTENTION_LAYERS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    # For layers that share the keys and values of another one; older transformers have none for them.
    getattr(cache_utils, "DummyLayer", DynamicLayer),
}


@dataclass
class ConversationState:
    """What the model keeps of the tokens that it has read; `keys` names these tokens."""

    cache: DynamicCache
    keys: list[CacheKey] = field(default_factory=list)
    position_shift: int = 0
    """Next position minus number of tokens: pictures take fewer positions than tokens in M-RoPE."""

    @property
    def length(self) -> int:
        """Tokens that were read."""
        return len(self.keys)

    @property
    def is_attention_only(self) -> bool:
        """Whether the state is only keys and values, so that a later prompt can go on from it."""
        return all(type(layer) in _ATTENTION_LAYERS for layer in self.cache.layers)

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values. A slice keeps the whole tensor alive, and counts as that."""
        tensors = [
            tensor
            for layer in self.cache.layers
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if isinstance(tensor, Tensor)
        ]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def truncate(self, length: int) -> bool:
        """Forget all but the first `length` tokens; False, and no change, if that is impossible.

        It is impossible if a sliding window has moved on, or if the state is more than keys and values.
        """
        surplus = self.length - length
        if surplus <= 0:
            return surplus == 0
        moved_on = any(
            isinstance(layer, DynamicSlidingWindowLayer) and self.length >= layer.sliding_window
            for layer in self.cache.layers
        )
        if moved_on or not self.is_attention_only:
            return False
        self.cache.crop(-surplus)
        del self.keys[length:]
        return True


def common_prefix(read: Sequence[CacheKey], prompt: Sequence[CacheKey]) -> int:
    """How many tokens at the beginning of `prompt` are in `read` too.

    The last token of the prompt does not count, because it must be read for its logits. Nor does a
    part of a picture: some models cut a picture into fewer tokens if there are more pictures, and in
    some the tokens of a picture attend to later ones of the same picture.
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
    """Whether `keys[place]` and the token before it are of the same picture."""
    if place == len(keys):
        return False
    sha256 = keys[place][1]
    return sha256 is not None and sha256 == keys[place - 1][1]
