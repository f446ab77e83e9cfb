"""Uploaded pictures, so that later requests need not send their bytes again."""

import hashlib

from cachetools import LRUCache

from mmchat.turns import ImagePart

MAX_BYTES = 512 * 1024 * 1024
"""Of all pictures together; the least recently used is dropped first."""


class ImageStore:
    """The original bytes of pictures, by sha256."""

    def __init__(self) -> None:
        self._images: LRUCache[str, ImagePart] = LRUCache(
            MAX_BYTES, getsizeof=lambda image: len(image.data or b"")
        )

    def put(self, sha256: str, data: bytes, mime: str = "") -> bool:
        """Stores a picture; False if `sha256` is not the hash of `data`."""
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        self._images[sha256] = ImagePart(sha256, mime, data)
        return True

    def get(self, sha256: str) -> ImagePart | None:
        """The picture, or None; marks it as used."""
        image: ImagePart | None = self._images.get(sha256)
        return image
