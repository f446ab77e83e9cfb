"""What is worth keeping between answers: the features of pictures."""

from collections import OrderedDict

from torch import Tensor


class VisionCache:
    """Features of the pictures seen last, up to `limit` bytes; the longest unused goes first.

    A key is (sha256 of the picture's bytes, hash of the weights that read it).
    Features are those before projection, so that switching adapters reads a
    picture again only where one of them has tensors of the vision tower.
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
        """Keep `features`; what is larger than the whole cache is not kept."""
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
        """Forget everything, to free memory."""
        self._features.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._features)
