"""A cache of picture features."""

import contextlib

from cachetools import LRUCache
from torch import Tensor


class VisionCache:
    """Features of pictures, up to `limit` bytes; the least recently used are dropped first.

    A key is (sha256 of the picture's bytes, hash of the weights that encoded it). The features are
    those before projection, so switching adapters only encodes a picture again if an adapter
    changes the vision tower.
    """

    def __init__(self, limit: int = 256 * 1024 * 1024) -> None:
        self._features: LRUCache[tuple[str, str], Tensor] = LRUCache(
            limit, getsizeof=lambda features: features.nbytes
        )

    def get(self, sha256: str, weights_hash: str) -> Tensor | None:
        """The features (1, patches, vision_width), or None."""
        features: Tensor | None = self._features.get((sha256, weights_hash))
        return features

    def put(self, sha256: str, weights_hash: str, features: Tensor) -> None:
        """Keep `features`, unless they are larger than the whole cache."""
        with contextlib.suppress(ValueError):
            self._features[sha256, weights_hash] = features

    def clear(self) -> None:
        """Drop everything, to free memory."""
        self._features.clear()

    def __len__(self) -> int:
        return len(self._features)
