"""Untrusted bytes become an upright RGB picture, or one `ImageError` with one sentence.

    picture = read_picture("~/barn.jpg")     # safe opening, whole validation
    picture.sha256, picture.width            # identity and size of the original
    picture.rgb(max_side=1024)               # an upright RGB `PIL.Image.Image`

Importing this package does not import Pillow; decoding does. What is read, how
large it may be, and what that costs in memory and time stands in docs/images.md.
"""

from mmchat.images.headers import MEGAPIXELS, SUPPORTED
from mmchat.images.picture import (
    MAX_BYTES,
    MAX_SIDE,
    PICTURE_SUFFIXES,
    Picture,
    decode,
    parse_data_url,
    parse_picture,
    read_picture,
)

__all__ = [
    "MAX_BYTES",
    "MAX_SIDE",
    "MEGAPIXELS",
    "PICTURE_SUFFIXES",
    "SUPPORTED",
    "Picture",
    "decode",
    "parse_data_url",
    "parse_picture",
    "read_picture",
]
