"""Turns untrusted bytes into an upright RGB picture, or raises `ImageError` with one sentence.

    picture = read_picture("~/barn.jpg")     # opened safely, decoded once as a check
    picture.sha256, picture.width            # identity and size of the original
    picture.rgb(max_side=1024)               # an upright RGB `PIL.Image.Image`

Importing this package does not import Pillow; decoding does. docs/images.md says which
formats and sizes are read, and what they cost in memory and time.
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
from mmchat.images.unsupported import UNSUPPORTED_SUFFIXES

__all__ = [
    "MAX_BYTES",
    "MAX_SIDE",
    "MEGAPIXELS",
    "PICTURE_SUFFIXES",
    "SUPPORTED",
    "UNSUPPORTED_SUFFIXES",
    "Picture",
    "decode",
    "parse_data_url",
    "parse_picture",
    "read_picture",
]
