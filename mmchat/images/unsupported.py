"""Recognises formats that mmchat does not read, so that the error can say what to do."""

import re
from typing import Final

UNSUPPORTED_SUFFIXES: Final[frozenset[str]] = frozenset(
    {".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs"}
    | {".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jpm", ".jxl", ".jxr"}
    | {".svg", ".svgz", ".psd", ".psb", ".xcf", ".ico", ".icns", ".tga", ".pcx", ".dds", ".qoi"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".exr", ".hdr", ".eps", ".wmf", ".emf"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
"""File name extensions of pictures that are not read, in lower case. The content still decides."""

_MAGIC: Final = (  # (offset, first bytes, what people call the format)
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"\x00\x00\x02\x00\x00\x00\x00\x00", "TGA"),
    (0, b"\x00\x00\x0a\x00\x00\x00\x00\x00", "TGA"),
    (0, b"icns", "icon"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\xd7\xcd\xc6\x9a", "Windows metafile"),
    (40, b" EMF", "Windows metafile"),
    (128, b"DICM", "DICOM"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIU\0", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (0, b"IIRS", "camera raw"),
    (0, b"MMOR", "camera raw"),
)
_VIDEO: Final = "is a video, not a picture: save one of its frames as PNG or JPEG"
_ARCHIVE: Final = "is an archive, not a picture: unpack it first"
_NOT_PICTURES: Final = (  # (offset, first bytes, the rest of the sentence)
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the picture: run git lfs pull"),
    (0, b"PK\x03\x04", _ARCHIVE),
    (0, b"\x1f\x8b", _ARCHIVE),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (8, b"AVI ", _VIDEO),
)
_BRANDS: Final = (  # of ISO base media files (ISO/IEC 23008-12 and what cameras write)
    ("AVIF", (b"avif", b"avis", b"avio")),
    ("HEIC", (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")),
    ("HEIF", (b"mif1", b"mif2", b"mif3", b"msf1", b"miaf")),
    ("camera raw", (b"crx ",)),
    ("JPEG 2000", (b"jp2 ", b"jpx ", b"jpm ")),
)
_SVG: Final = re.compile(rb"\s*(<[?!].{0,2000}?)?<svg[\s>]", re.DOTALL)
_WEB_PAGE: Final = re.compile(rb"\s*(<!doctype html|<html[\s>])", re.IGNORECASE)
_NETPBM: Final = re.compile(rb"P[1-7]\s")


def explain_unsupported(data: bytes) -> str:
    """The rest of a sentence about a file that mmchat does not read; "" if its format is unknown."""
    if _WEB_PAGE.match(_text(data)):
        return "is a web page, not a picture: download the picture itself"
    if format_name := _format_name(data):
        return f"has the format {format_name}, which is not read: save it as PNG or JPEG"
    for offset, magic, why in _NOT_PICTURES:
        if data.startswith(magic, offset):
            return why
    return _VIDEO if data[4:8] == b"ftyp" else ""


def _format_name(data: bytes) -> str:
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    if data[4:8] == b"ftyp":
        return _brand_name(data)
    if _NETPBM.match(data):
        return "Netpbm"
    return "SVG" if _SVG.match(_text(data)) else ""


def _brand_name(data: bytes) -> str:
    """The format by the file's own brand, or by its compatible brands if that one is generic."""
    length = min(int.from_bytes(data[:4]), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length, 4))]
    names = [name for brand in brands for name, known in _BRANDS if brand in known]
    exact = [name for name in names if name != "HEIF"]
    return (exact or names or [""])[0]


def _text(data: bytes) -> bytes:
    """The beginning of `data`, without a byte order mark."""
    return data[:4096].removeprefix(b"\xef\xbb\xbf")
