"""Picture files made by hand, byte by byte where no library would write them."""

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from PIL import Image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture of which no two corners look alike."""
    image = Image.new("RGB", size, (200, 40, 60))
    image.paste((20, 60, 220), (0, 0, size[0] // 2, size[1] // 2))
    image.paste((240, 220, 30), (size[0] // 2, size[1] // 2, *size))
    return image.convert(mode)


def chunk(name: bytes, body: bytes = b"") -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(
    width: int, height: int, rows: Iterable[bytes], depth: int, colour: int, extra: bytes = b""
) -> bytes:
    """A PNG of unfiltered rows; `colour` is the colour type of the PNG specification."""
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = PNG_MAGIC + ihdr(width, height, depth, colour)
    return head + extra + chunk(b"IDAT", body) + chunk(b"IEND")


def tiff(
    tags: Iterable[tuple[int, int, int, int]],
    tail: bytes = b"",
    order: str = "<",
    next_directory: int = 0,
) -> bytes:
    """A TIFF with one directory of (tag, type, count, value or offset), then `tail`."""
    entries = list(tags)
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else None
        out += struct.pack(order + "HHI", tag, kind, count)
        out += packed or struct.pack(order + "I", value)
    return out + struct.pack(order + "I", next_directory) + tail


def grey_tiff(
    width: int, height: int, pixels: bytes, extra: dict[int, tuple[int, int, int]]
) -> bytes:
    """An 8-bit grey TIFF of one strip; `extra` gives or replaces tag: (type, count, value)."""
    tags = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 0),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, len(pixels)),
    } | extra
    start = 8 + 2 + 12 * len(tags) + 4
    if tags[273][2] == 0:
        tags[273] = (4, 1, start)
    return tiff([(tag, *tags[tag]) for tag in sorted(tags)], pixels)


def exif(orientation: int, order: str = "<") -> bytes:
    """An EXIF block that says nothing but the orientation."""
    return tiff([(274, 3, 1, orientation)], order=order)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(parts: bytes, size: tuple[int, int] = (48, 32), **options: Any) -> bytes:
    """A whole JPEG with `parts` put in right after its first marker."""
    data = encode(scene(size=size), "JPEG", **options)
    return data[:2] + parts + data[2:]


def jpeg_resized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size than it has."""
    at = max(data.find(b"\xff\xc0\x00\x11"), data.find(b"\xff\xc2\x00\x11"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def gif(width: int, height: int, body: bytes = b"") -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + body
    )


def gif_frame(left: int, top: int, width: int, height: int) -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP that promises a canvas and holds no picture."""
    body = (
        bytes([16, 0, 0, 0])
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    part = b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(part)) + b"WEBP" + part


def bmp(width: int, height: int, body: bytes, compression: int = 0) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, 2, 0)
    start = 14 + len(head) + 8
    total = start + len(body)
    return struct.pack("<2sIHHI", b"BM", total, 0, 0, start) + head + bytes(8) + body
