"""Features of the pictures that were seen last."""

from collections import OrderedDict

from torch import Tensor


class VisionCache:
    """Features of pictures, up to `limit` bytes; the least recently used are dropped first.

    A key is (sha256 of the picture's bytes, hash of the weights that encoded it).
    The features are those before projection. So a switch of adapters only encodes
    a picture again if one of the adapters changes the vision tower.
    """

    def __init__(self, limit: int = 256 * 1024 * 1024) -> None:
        self._limit = limit
        self._bytes = 0
        self._features: OrderedDict[tuple[str, str], Tensor] = OrderedDict()

    def get(self, sha256: str, weights_hash: str) -> Tensor | None:
        """The features (1, patches, vision_width), or None."""
        key = (sha256, weights_hash)
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, sha256: str, weights_hash: str, features: Tensor) -> None:
        """Keep `features`, unless they are larger than the whole cache."""
        if features.nbytes > self._limit:
            return
        replaced = self._features.pop((sha256, weights_hash), None)
        self._bytes -= replaced.nbytes if replaced is not None else 0
        self._features[sha256, weights_hash] = features
        self._bytes += features.nbytes
        while self._bytes > self._limit:
            _, oldest = self._features.popitem(last=False)
            self._bytes -= oldest.nbytes

    def clear(self) -> None:
        """Drop everything, to free memory."""
        self._features.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._features)
