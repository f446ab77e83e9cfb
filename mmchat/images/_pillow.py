"""The only module that imports Pillow: bytes with a checked header become RGB pixels.

Six of Pillow's plugin classes are called directly. Therefore no other plugin is ever loaded,
the global pixel limit and the warnings of `Image.open` do not apply, and a JPEG with several
pictures gives the first one.
"""

import ctypes
import math
import threading
import warnings
from io import BytesIO
from typing import Final

from PIL import Image, ImageFile, ImageOps, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mmchat.images.headers import (
    MEGAPIXELS,
    Header,
    UnreadablePicture,
    check_size,
    is_cut_off,
    orientation,
)

_PLUGINS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}
_TIFF_COMPRESSIONS: Final = frozenset(
    {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"}
    | {"tiff_ccitt", "group3", "group4", "jpeg"}
)
_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _silence_libtiff() -> None:
    """Turns off the messages that libtiff prints straight to the terminal, over a running app.

    These two handlers are its only switch, and Pillow offers none. If they cannot be
    found (libtiff is linked in statically), decoding still works and the messages appear.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
    except (OSError, AttributeError):
        return


_silence_libtiff()

# The memory limit applies to the process, so pictures are decoded one at a time.
_ONE_AT_A_TIME = threading.Lock()


def decode(data: bytes, header: Header, max_side: int) -> tuple[Image.Image, tuple[int, int]]:
    """An upright RGB image of at most `max_side` pixels a side, and the original's upright size.

    Raises `UnreadablePicture`, and nothing else, if the bytes cannot be decoded.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Warnings about a file from outside help nobody and would appear on the screen.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            return _decode(data, header, max_side)
        except UnreadablePicture:
            raise
        except Image.DecompressionBombError as error:
            cap = MEGAPIXELS[header.kind]
            raise UnreadablePicture(
                f"has more megapixels than the limit of {cap} for a {header.kind}: make it smaller"
            ) from error
        except MemoryError as error:
            raise UnreadablePicture("does not fit into the free memory: make it smaller") from error
        # Pillow does not document what it raises for malicious bytes, so everything is caught.
        except Exception as error:
            if is_cut_off(header, data):
                why = "is cut off, its end is missing: copy or download it again"
            else:
                why = f"is damaged and cannot be decoded as {header.kind}: save it again"
            raise UnreadablePicture(why) from error


def _decode(data: bytes, header: Header, max_side: int) -> tuple[Image.Image, tuple[int, int]]:
    image: Image.Image = _open(data, header)
    turn = 1 if header.format == "TIFF" else None  # Pillow turns these by itself
    size = image.size
    if header.format == "JPEG" and (target := _fitted_size(size, max_side)) != size:
        image.draft(None, target)
    image.load()
    if turn is None:  # only now: in a PNG the EXIF block may follow the pixels
        exif = image.info.get("exif")
        turn = orientation(exif) if isinstance(exif, bytes) else 1
    else:
        size = image.size
    image = _resizable(image, header)
    target = _fitted_size(size, max_side)
    if image.size != target:
        image = image.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if image.mode == "RGBA":
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image)
        image = canvas
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if turn in _TRANSPOSES:
        image = image.transpose(_TRANSPOSES[turn])
    image.info.clear()
    return image, (size[1], size[0]) if turn > 4 else size


def _open(data: bytes, header: Header) -> ImageFile.ImageFile:
    image = _PLUGINS[header.format](BytesIO(data))
    check_size(header, image.size)
    if header.format == "TIFF":
        compression = str(image.info.get("compression", "raw"))
        if compression not in _TIFF_COMPRESSIONS:
            raise UnreadablePicture(
                f"is a TIFF packed with {compression}, which is not read: save it as PNG"
            )
    return image


def _fitted_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    longest = max(size)
    if longest <= max_side:
        return size
    width, height = (max(1, round(side * max_side / longest)) for side in size)
    return width, height


def _resizable(image: Image.Image, header: Header) -> Image.Image:
    """The same pixels in a mode that can be resized: L, RGB, RGBA, CMYK, YCbCr or LAB.

    A full-size copy is made only if the mode cannot be resized as it is.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bit_grey(image, header)
    transparent = image.info.get("transparency")
    if transparent is not None and header.format == "PNG" and image.mode in ("L", "RGB"):
        image.info["transparency"] = _eight_bit_colour(transparent, header.depth)
    if image.mode == "1" and transparent is None:
        return image.convert("L")
    if image.mode in ("PA", "LA", "La", "RGBa") or transparent is not None:
        return image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    return image.convert("RGB") if image.mode in ("P", "RGBX", "HSV") else image


def _eight_bit_colour(colour: object, depth: int) -> object:
    """A PNG's transparent colour in the range of the decoded pixels. Pillow gives it in the file's range."""
    if isinstance(colour, tuple) and depth == 16:
        return tuple(value >> 8 for value in colour)
    if isinstance(colour, int) and depth in (2, 4):
        return colour * (85 if depth == 2 else 17)
    return colour


def _eight_bit_grey(image: Image.Image, header: Header) -> Image.Image:
    """Grey of more than 8 bits as values from 0 to 255.

    16-bit and 12-bit pictures are scaled from their full range. Signed, 32-bit and
    floating-point ones have no standard range: floats within 0 to 1 go from black to
    white, all others from the picture's own lowest value to its highest.
    """
    if image.mode.startswith("I;16"):
        top = 4095 if header.depth == 12 else 65535
        table = [min(255, (value * 255 + top // 2) // top) for value in range(65536)]
        if header.inverted:
            table = [255 - value for value in table]
        transparent = image.info.get("transparency")
        if isinstance(transparent, int) and 0 <= transparent <= 65535:
            table[transparent] = 255
        return image.convert("I").point(table, "L")
    low, high = (float(value) for value in image.getextrema() if not isinstance(value, tuple))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UnreadablePicture("holds pixels that are not numbers: save it as an 8-bit PNG")
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = 255 / (high - low) if high > low else 0.0
    offset = 0.5 - low * scale if scale else 128.0
    image = image.point(lambda value: value * scale + offset).convert("L")
    return ImageOps.invert(image) if header.inverted else image
