"""Reads a picture file's header, without decoding and without Pillow.

Three questions are answered before any decoder sees the bytes. Which format is it
(by content, never by name)? How many pixels does it claim? Would its structure keep
a decoder busy for minutes or fill the memory (a million tiny chunks, thousands of
scans, tags with millions of numbers)?

Files that are only damaged are left to the decoder, which finds the damage anyway.
"""

import struct
from dataclasses import dataclass
from typing import Final

from mmchat.images.unsupported import explain_unsupported

SUPPORTED: Final[dict[str, str]] = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}

# The most megapixels that are decoded, by kind. Chosen with tests/benchmarks/bench_images.py
# so that no picture takes more than 800 MB or 4 s; docs/images.md has the figures.
MEGAPIXELS: Final[dict[str, int]] = {
    "PNG": 50,
    "JPEG": 200,
    "progressive JPEG": 50,
    "WebP": 25,
    "GIF": 50,
    "BMP": 50,
    "run-length BMP": 4,
    "TIFF": 40,
}

_KINDS: Final = "PNG, JPEG, WebP, GIF, BMP and TIFF are read"
_METADATA: Final = "carries metadata made to fill the memory: save it again without them"
_MAX_PNG_CHUNKS: Final = 100_000
_MAX_JPEG_SEGMENTS: Final = 10_000
_MAX_JPEG_JUNK: Final = 65_536
_MAX_EXIF_SEGMENTS: Final = 20
_MAX_SCAN_MEGAPIXELS: Final = 1_200
_MAX_GIF_BLOCKS: Final = 20_000
_MAX_RLE_BYTES: Final = 4_000_000
_MAX_TAGS: Final = 4_096
_MAX_NUMBERS: Final = 200_000
_MAX_RATIONALS: Final = 1_000
_MAX_STRIPS: Final = 100_000

ORIENTATION: Final = 274


class UnreadablePicture(Exception):  # noqa: N818 - half of an ImageError's sentence
    """Why a picture cannot be read: the rest of the sentence after the picture's name."""


@dataclass(frozen=True, slots=True)
class Header:
    """The format and the size that a file declares.

    `kind` is a key of `MEGAPIXELS`. `size` is (width, height) as stored, before any
    rotation, or None if only the decoder can tell. `depth` is in bits per sample
    (0: unknown). `inverted` means that 0 is white (TIFF).
    """

    format: str
    kind: str
    size: tuple[int, int] | None = None
    depth: int = 0
    inverted: bool = False


def read_header(data: bytes, *, named_as_picture: bool = False) -> Header:
    """The header of `data`; raises `UnreadablePicture` for anything that must not reach a decoder.

    `named_as_picture`: whether the file has a picture's extension, which the error then mentions.
    """
    if not data:
        raise UnreadablePicture("is empty: it has 0 bytes")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        header = _png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data)
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        header = _gif(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        header = _tiff(data)
    elif data[:2] == b"BM":
        header = _bmp(data)
    else:
        ending = ", whatever its extension says" if named_as_picture else ""
        raise UnreadablePicture(explain_unsupported(data) or f"is not a picture{ending}: {_KINDS}")
    if header.size is not None:
        check_size(header, header.size)
    return header


def check_size(header: Header, size: tuple[int, int]) -> None:
    """Raises `UnreadablePicture` if `size` (width, height) is empty or over the limit of its kind."""
    width, height = size
    if width < 1 or height < 1:
        raise UnreadablePicture(f"is {width} × {height} pixels: there is nothing to see")
    cap = MEGAPIXELS[header.kind]
    if width * height > cap * 1_000_000:
        has = f"{width * height / 1e6:.1f}".removesuffix(".0")
        raise UnreadablePicture(
            f"has {has} megapixels, more than the limit of {cap} for a {header.kind}: make it smaller"
        )


def is_cut_off(header: Header, data: bytes) -> bool:
    """Whether a file that failed to decode seems to be truncated."""
    try:
        if header.format == "PNG":
            return b"IEND" not in data[-64:]
        if header.format == "JPEG":
            return b"\xff\xd9" not in data[-64:]
        if header.format == "WEBP":
            return int(struct.unpack_from("<I", data, 4)[0]) > len(data) - 8
        if header.format == "GIF":
            return not data.rstrip(b"\0").endswith(b";")
        if header.format == "BMP":
            return int(struct.unpack_from("<I", data, 2)[0]) > len(data)
        tags = read_tags(data)
        ends = (tags.get(273, 0) + tags.get(279, 0), tags.get(324, 0) + tags.get(325, 0))
        return not tags or max(ends) > len(data)
    except struct.error:
        return True


def orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF data do not say or are damaged."""
    try:
        value = read_tags(exif.removeprefix(b"Exif\0\0")).get(ORIENTATION, 1)
    except UnreadablePicture:
        return 1
    return value if 1 <= value <= 8 else 1


def _png(data: bytes) -> Header:
    position, chunks = 8, 0
    while position + 8 <= len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4])
        chunks += 1
        if chunks > _MAX_PNG_CHUNKS:
            raise UnreadablePicture(f"is a PNG with over {_MAX_PNG_CHUNKS:,} chunks: save it again")
    if data[12:16] != b"IHDR" or len(data) < 26:
        return Header("PNG", "PNG")
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    return Header("PNG", "PNG", (width, height), depth)


def _jpeg(data: bytes) -> Header:
    """Walks the segments up to the first scan (ITU-T T.81, annex B)."""
    position, junk, size, components, progressive = 2, 0, None, 0, False
    exif: list[bytes] = []
    for _ in range(_MAX_JPEG_SEGMENTS):
        start = data.find(b"\xff", position)
        if start < 0:
            break
        junk += start - position
        position = start + 1
        while data[position : position + 1] == b"\xff":
            position += 1
            junk += 1
        if junk > _MAX_JPEG_JUNK:
            raise UnreadablePicture(
                "is a JPEG with long runs of junk between its parts: save it again"
            )
        marker = data[position] if position < len(data) else 0xD9
        position += 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:
            continue
        length = int.from_bytes(data[position : position + 2])
        segment = data[position + 2 : position + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker > 0xC2:
                raise UnreadablePicture(
                    "is a rare kind of JPEG (lossless or arithmetic): save it as PNG"
                )
            if len(segment) >= 6:
                height, width, components = struct.unpack_from(">HHB", segment, 1)
                size, progressive = (width, height), marker == 0xC2
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            # Pillow joins these one by one, so their cost grows with the square of their number.
            exif.append(segment[6:])
            if len(exif) > _MAX_EXIF_SEGMENTS:
                raise UnreadablePicture(_METADATA)
        elif marker == 0xDA:
            # A scan with only some of the components makes the decoder keep all coefficients.
            several = progressive or bool(segment and segment[0] < components)
            header = Header("JPEG", "progressive JPEG" if several else "JPEG", size)
            if several and size:
                check_size(header, size)
                scans = data.count(b"\xff\xda", position - 2)
                if scans * size[0] * size[1] > _MAX_SCAN_MEGAPIXELS * 1_000_000:
                    raise UnreadablePicture(
                        f"is a JPEG with {scans:,} scans, too many for its size: save it again"
                    )
            read_tags(b"".join(exif))
            return header
        position += length
    else:
        raise UnreadablePicture(
            f"is a JPEG with over {_MAX_JPEG_SEGMENTS:,} segments: save it again"
        )
    return Header("JPEG", "JPEG", size)


def _webp(data: bytes) -> Header:
    chunk, size = data[12:16], None
    if chunk == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        size = (width & 0x3FFF, height & 0x3FFF)
    elif chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    elif chunk == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        size = (width + 1, height + 1)
    return Header("WEBP", "WebP", size)


def _gif(data: bytes) -> Header:
    """Counts the extension blocks before the first picture: each costs the decoder a step."""
    if len(data) < 13:
        return Header("GIF", "GIF")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while data[position : position + 1] == b"!":
        position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
        position += 1
        blocks += 1
        if blocks > _MAX_GIF_BLOCKS:
            raise UnreadablePicture(f"is a GIF with over {_MAX_GIF_BLOCKS:,} blocks: save it again")
    if data[position : position + 1] == b"," and position + 9 <= len(data):
        left, top, wide, high = struct.unpack_from("<HHHH", data, position + 1)
        if wide < 1 or high < 1:
            raise UnreadablePicture(f"is {wide} × {high} pixels: there is nothing to see")
        width, height = max(width, left + wide), max(height, top + high)
    return Header("GIF", "GIF", (width, height))


def _bmp(data: bytes) -> Header:
    if len(data) < 34:
        return Header("BMP", "BMP")
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", "BMP", (width, height))
    width, height = struct.unpack_from("<ii", data, 18)
    if struct.unpack_from("<I", data, 30)[0] not in (1, 2):
        return Header("BMP", "BMP", (width, abs(height)))
    if len(data) > _MAX_RLE_BYTES:
        raise UnreadablePicture(
            f"is a run-length BMP over {_MAX_RLE_BYTES // 10**6} MB: save it as PNG"
        )
    return Header("BMP", "run-length BMP", (width, abs(height)))


def _tiff(data: bytes) -> Header:
    tags = read_tags(data)
    if _is_camera_raw(data, tags):
        raise UnreadablePicture(
            "has the format camera raw, which is not read: save it as PNG or JPEG"
        )
    if not tags:
        return Header("TIFF", "TIFF")
    size = (tags.get(256, 0), tags.get(257, 0))
    header = Header("TIFF", "TIFF", size, tags.get(258, 0), tags.get(262) == 0)
    tile = (tags.get(322, 0), tags.get(323, 0))
    if all(tile):
        check_size(header, size)
        if tile[0] * tile[1] > MEGAPIXELS["TIFF"] * 1_000_000:
            raise UnreadablePicture(
                "is a TIFF with tiles far larger than the picture: save it again"
            )
    return header


def _is_camera_raw(data: bytes, tags: dict[int, int]) -> bool:
    """Whether a TIFF holds a camera's raw data: decoding it would give its thumbnail, or noise."""
    canon = data[8:10] == b"CR"
    thumbnail_first = bool(tags.get(254, 0) & 1) and 330 in tags  # and the picture elsewhere
    return canon or thumbnail_first or tags.get(262) in (32803, 34892)


_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES_BIG: Final = _SIZES | {16: 8, 17: 8, 18: 8}


def read_tags(data: bytes) -> dict[int, int]:
    """The first value of each whole-number tag in the first directory of a TIFF or EXIF block.

    TIFF 6.0, section 2, and BigTIFF. Damaged data give fewer tags. Raises `UnreadablePicture` for
    directories that would make a decoder build millions of objects.
    """
    if len(data) < 16 or data[:2] not in (b"II", b"MM"):
        return {}
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    tags = _directory(data, order, big, start)
    for pointer in (34665, 34853):  # EXIF and GPS directories: only their sizes are checked
        if pointer in tags:
            inner = _directory(data, order, big, tags[pointer])
            if 40965 in inner:
                _directory(data, order, big, inner[40965])
    return tags


def _directory(data: bytes, order: str, big: bool, start: int) -> dict[int, int]:
    counter, entry, inline = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    step = struct.calcsize("=" + entry) + inline
    first = start + struct.calcsize("=" + counter)
    if first > len(data):
        return {}
    (entries,) = struct.unpack_from(order + counter, data, start)
    if entries > _MAX_TAGS:
        raise UnreadablePicture(f"carries {entries:,} tags of metadata: save it again without them")
    tags: dict[int, int] = {}
    total = 0
    for position in range(first, min(first + entries * step, len(data) - step + 1), step):
        tag, kind, count = struct.unpack_from(order + entry, data, position)
        width = (_SIZES_BIG if big else _SIZES).get(kind)
        if width is None:
            continue
        if kind in (1, 2, 7):
            most = len(data)
        elif tag in (273, 279, 324, 325):
            most = _MAX_STRIPS
        else:
            most = _MAX_RATIONALS if kind in (5, 10) else _MAX_NUMBERS
        total += count * width
        # Values may overlap, so a directory can name the same megabytes thousands of times.
        if (count > most and count * width <= len(data)) or total > 2 * len(data) + 1_000_000:
            raise UnreadablePicture(_METADATA)
        place = position + step - inline
        if count * width > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
        code = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
        if code and count and place + width <= len(data):
            tags.setdefault(tag, struct.unpack_from(order + code, data, place)[0])
    return tags
