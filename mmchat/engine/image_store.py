"""Pictures that were uploaded once, so that no turn sends megabytes again."""

import hashlib
from collections import OrderedDict

from mmchat.client.protocol import ImagePart

MAX_STORED = 512 * 1024 * 1024
"""Bytes of all pictures together; the one unused for longest goes first."""


class PictureStore:
    """Original bytes by sha256, the least recently used forgotten first."""

    def __init__(self, max_bytes: int = MAX_STORED) -> None:
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[str, ImagePart] = OrderedDict()
        self._bytes = 0

    def put(self, sha256: str, data: bytes, mime: str = "") -> bool:
        """Keeps a picture; False where `data` is not what `sha256` says."""
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        if sha256 not in self._pictures:
            self._pictures[sha256] = ImagePart(sha256, mime, data)
            self._bytes += len(data)
        self._pictures.move_to_end(sha256)
        while self._bytes > self._max_bytes and len(self._pictures) > 1:
            _, dropped = self._pictures.popitem(last=False)
            self._bytes -= len(dropped.data or b"")
        return True

    def get(self, sha256: str) -> ImagePart | None:
        picture = self._pictures.get(sha256)
        if picture is not None:
            self._pictures.move_to_end(sha256)
        return picture
