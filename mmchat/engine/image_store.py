"""Pictures that were uploaded once, so that later requests need not send their bytes again."""

import hashlib
from collections import OrderedDict

from mmchat.client.protocol import ImagePart

MAX_BYTES = 512 * 1024 * 1024
"""Of all pictures together; the least recently used is dropped first."""


class ImageStore:
    """The original bytes of pictures, by sha256."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, ImagePart] = OrderedDict()
        self._bytes = 0

    def put(self, sha256: str, data: bytes, mime: str = "") -> bool:
        """Stores a picture; False if `sha256` is not the hash of `data`."""
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        if sha256 not in self._images:
            self._images[sha256] = ImagePart(sha256, mime, data)
            self._bytes += len(data)
        self._images.move_to_end(sha256)
        while self._bytes > self._max_bytes and len(self._images) > 1:
            _, dropped = self._images.popitem(last=False)
            self._bytes -= len(dropped.data or b"")
        return True

    def get(self, sha256: str) -> ImagePart | None:
        """The picture, or None; it counts as used now."""
        image = self._images.get(sha256)
        if image is not None:
            self._images.move_to_end(sha256)
        return image
