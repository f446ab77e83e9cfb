"""Hostile and broken files: each is refused in one sentence, or rightly accepted."""

import random
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial

import pytest
from PIL import Image

from mmchat.errors import ImageError
from mmchat.images import MAX_BYTES, parse_picture
from tests.images.builders import (
    PNG_MAGIC,
    bmp,
    chunk,
    encode,
    exif,
    gif,
    gif_frame,
    grey_tiff,
    ihdr,
    jpeg_resized,
    jpeg_with,
    png,
    scene,
    segment,
    tiff,
    webp_canvas,
)

CUT = "is cut off, its end is missing"
DAMAGED = "is damaged and cannot be decoded"
NOTHING = "there is nothing to see"
NOT_ONE = "is not a picture"
METADATA = "metadata made to fill the memory"


def cut(kind: str, share: float, **options: object) -> bytes:
    data = encode(scene(size=(96, 64)), kind, **options)
    return data[: int(len(data) * share)]


def bomb_png() -> bytes:
    """13,300 × 13,300 black pixels in half a megabyte: real data, not only a claim."""
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(13_301 * 100)) for _ in range(133)) + rows.flush()
    return PNG_MAGIC + ihdr(13_300, 13_300, 8, 0) + chunk(b"IDAT", body) + chunk(b"IEND")


def text_bomb() -> bytes:
    packed = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
    return PNG_MAGIC + ihdr(4, 4, 8, 0) + packed + png(4, 4, [bytes(4)] * 4, 8, 0)[33:]


def repeated_scans() -> bytes:
    data = encode(scene(size=(800, 600)), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * 3_000 + data[-2:]


def split_components() -> bytes:
    """A baseline JPEG whose first scan holds one component of three, and then many scans."""
    data = encode(scene(size=(800, 600)), "JPEG")
    at = data.rfind(b"\xff\xda")
    scan = segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") + bytes(50)
    return data[:at] + scan * 3_000 + data[-2:]


def overlapping_tags() -> bytes:
    """3,000 tags that each hold the same 100,000 bytes: 300 MB out of a 136 kB file."""
    tags = [(40_000 + tag, 1, 100_000, 36_100) for tag in range(3_000)]
    return tiff([(256, 4, 1, 4), (257, 4, 1, 4), *tags], bytes(110_000))


def many_numbers(tag: int, kind: int, count: int, width: int) -> bytes:
    return grey_tiff(4, 4, bytes(count * width + 400), {tag: (kind, count, 200)})


def floats(value: float) -> bytes:
    image = Image.new("F", (4, 4), 0.5)
    image.putpixel((1, 1), value)
    return encode(image, "TIFF")


def webp_scribbled() -> bytes:
    data = bytearray(encode(scene(size=(96, 64)), "WEBP"))
    data[60:100] = b"\xff" * 40
    return bytes(data)


def bad_crc() -> bytes:
    data = bytearray(encode(scene(), "PNG"))
    data[29] ^= 0xFF
    return bytes(data)


RAW = "has the format camera raw, which is not read"
BRANDS = {
    "HEIC": ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"),
    "HEIF": ("mif1", "msf1"),
    "AVIF": ("avif", "avis"),
    "camera raw": ("crx ",),
}


def iso_media(*brands: str) -> bytes:
    """The first box of an ISO base media file: its own brand, then those it is compatible with."""
    names = b"".join(brand.encode() for brand in brands[1:])
    return (
        struct.pack(">I4s4sI", 16 + len(names), b"ftyp", brands[0].encode(), 0) + names + bytes(50)
    )


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty: it has 0 bytes"),
    "one byte": (lambda: b"\x89", NOT_ONE),
    "text": (lambda: b"hello, this is no picture", NOT_ONE),
    "random": (lambda: random.Random(0).randbytes(5_000), NOT_ONE),
    "zeros": (lambda: bytes(5_000), NOT_ONE),
    "elf": (lambda: b"\x7fELF" + bytes(100), NOT_ONE),
    **{
        f"{brand} brand": (partial(iso_media, brand), f"has the format {name}, which is not read")
        for name, brands in BRANDS.items()
        for brand in brands
    },
    "heif that is heic": (lambda: iso_media("mif1", "heic"), "has the format HEIC, which"),
    "heif that is avif": (lambda: iso_media("mif1", "miaf", "avif"), "has the format AVIF, which"),
    **{
        f"video: {brand}": (partial(iso_media, brand), "is a video, not a picture: save one of its")
        for brand in ("isom", "mp42", "qt  ")
    },
    "avif": (lambda: encode(scene(), "AVIF"), "has the format AVIF, which is not read"),
    "jpeg 2000": (
        lambda: encode(scene(), "JPEG2000"),
        "has the format JPEG 2000, which is not read",
    ),
    "jpeg 2000 stream": (lambda: b"\xff\x4f\xff\x51" + bytes(50), "has the format JPEG 2000"),
    "jpeg xl": (lambda: b"\xff\x0a" + bytes(50), "has the format JPEG XL, which"),
    "icon": (lambda: encode(scene(), "ICO"), "has the format icon, which is not read"),
    "pdf": (lambda: b"%PDF-1.7\n", "has the format PDF, which is not read"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "has the format PostScript, which"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "has the format SVG, which"),
    "svg as editors write it": (
        lambda: b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- by an editor -->\n<svg\nid='a'/>",
        "has the format SVG, which",
    ),
    "psd": (lambda: b"8BPS\0\1" + bytes(40), "has the format Photoshop, which"),
    "ppm": (lambda: encode(scene(), "PPM"), "has the format Netpbm, which"),
    "tga": (lambda: encode(scene(), "TGA"), "has the format TGA, which"),
    "web page": (lambda: b"\n<!DOCTYPE html><html>404", "is a web page, not a picture"),
    "git lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a Git LFS pointer, not the picture: run git lfs pull",
    ),
    "zip": (lambda: b"PK\3\4" + bytes(50), "is an archive, not a picture"),
    "webm": (lambda: b"\x1aE\xdf\xa3" + bytes(50), "is a video, not a picture"),
    "canon raw": (lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(50), RAW),
    "raw with a thumbnail": (
        lambda: grey_tiff(4, 4, bytes(16), {254: (4, 1, 1), 330: (4, 1, 8)}),
        RAW,
    ),
    "raw sensor data": (lambda: grey_tiff(4, 4, bytes(16), {262: (3, 1, 32803)}), RAW),
    "png: only the magic": (lambda: PNG_MAGIC, CUT),
    "png: header only": (lambda: PNG_MAGIC + ihdr(4, 4), CUT),
    "png: cut at a quarter": (lambda: cut("PNG", 0.25), CUT),
    "png: cut at two thirds": (lambda: cut("PNG", 0.66), CUT),
    "png: no width": (lambda: PNG_MAGIC + ihdr(0, 4) + chunk(b"IEND"), f"0 × 4 .*{NOTHING}"),
    "png: no height": (lambda: PNG_MAGIC + ihdr(4, 0) + chunk(b"IEND"), f"4 × 0 .*{NOTHING}"),
    "png: bomb": (
        bomb_png,
        "has 176.9 megapixels, more than the limit of 50 for a PNG: make it sma",
    ),
    "png: claims 2³¹": (
        lambda: PNG_MAGIC + ihdr(2**31 - 1, 2**31 - 1),
        "megapixels, more than the limit of 50",
    ),
    "png: second header": (
        lambda: (
            PNG_MAGIC + ihdr(4, 4) + ihdr(30_000, 30_000) + chunk(b"IDAT", b"") + chunk(b"IEND")
        ),
        "has 900 megapixels, more than the limit of 50",
    ),
    "png: text bomb": (text_bomb, DAMAGED),
    "png: tiny chunks": (
        lambda: PNG_MAGIC + ihdr(4, 4) + chunk(b"abCd") * 100_001,
        "is a PNG with over 100,000 chunks",
    ),
    "png: wrong checksum": (bad_crc, DAMAGED),
    "png: no zlib": (
        lambda: PNG_MAGIC + ihdr(4, 4) + chunk(b"IDAT", b"\xff" * 50) + chunk(b"IEND"),
        DAMAGED,
    ),
    "png: 3 bits": (lambda: png(4, 4, [bytes(4)] * 4, 3, 0), DAMAGED),
    "png: colour type 9": (lambda: png(4, 4, [bytes(4)] * 4, 8, 9), DAMAGED),
    "png: no pixels": (lambda: PNG_MAGIC + ihdr(4, 4) + chunk(b"IEND"), DAMAGED),
    "jpeg: only the magic": (lambda: b"\xff\xd8\xff", CUT),
    "jpeg: start and end": (lambda: b"\xff\xd8\xff\xd9", DAMAGED),
    "jpeg: cut at a quarter": (lambda: cut("JPEG", 0.25), CUT),
    "jpeg: cut near the end": (lambda: cut("JPEG", 0.95), CUT),
    "jpeg: no width": (lambda: jpeg_resized(jpeg_with(b""), 0, 32), f"0 × 32 .*{NOTHING}"),
    "jpeg: no height": (lambda: jpeg_resized(jpeg_with(b""), 48, 0), f"48 × 0 .*{NOTHING}"),
    "jpeg: huge": (lambda: jpeg_resized(jpeg_with(b""), 65_000, 65_000), "4225 megapixels, more"),
    "jpeg: huge progressive": (
        lambda: jpeg_resized(jpeg_with(b"", progressive=True), 10_000, 8_000),
        "has 80 megapixels, more than the limit of 50 for a progressive JPEG",
    ),
    "jpeg: lossless": (lambda: jpeg_with(segment(0xC3, bytes(17))), "is a rare kind of JPEG"),
    "jpeg: arithmetic": (lambda: jpeg_with(segment(0xC9, bytes(17))), "is a rare kind of JPEG"),
    "jpeg: junk": (
        lambda: jpeg_with(segment(0xFE, b"") + b"\x00" * 70_000),
        "JPEG with long runs of junk",
    ),
    "jpeg: filling": (lambda: jpeg_with(b"\xff" * 70_000), "JPEG with long runs of junk"),
    "jpeg: segments": (
        lambda: jpeg_with(segment(0xFE, b"") * 10_001),
        "JPEG with over 10,000 segm",
    ),
    "jpeg: scans": (repeated_scans, r"is a JPEG with 3,0\d\d scans, too many for its size"),
    "jpeg: component scans": (split_components, "is a JPEG with 3,000 scans, too many"),
    "jpeg: exif numbers": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + tiff([(282, 5, 5_000, 26)], bytes(40_100)))),
        METADATA,
    ),
    "jpeg: exif segments": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 21),
        METADATA,
    ),
    "jpeg: exif tags": (
        lambda: jpeg_with(
            segment(0xE1, b"Exif\0\0" + tiff([(tag, 3, 1, 1) for tag in range(4_100)]))
        ),
        "carries 4,100 tags of metadata",
    ),
    "gif: only the magic": (lambda: b"GIF89a", CUT),
    "gif: cut": (lambda: cut("GIF", 0.6), CUT),
    "gif: no frame": (lambda: gif(4, 4, b";"), DAMAGED),
    "gif: empty frame": (lambda: gif(4, 4, gif_frame(0, 0, 0, 0)), f"0 × 0 .*{NOTHING}"),
    "gif: huge canvas": (lambda: gif(60_000, 60_000, gif_frame(0, 0, 1, 1)), "3600 megapixels"),
    "gif: frame far outside": (
        lambda: gif(4, 4, gif_frame(60_000, 60_000, 9, 9)),
        "3601.1 megapix",
    ),
    "gif: blocks": (
        lambda: gif(4, 4, b"!\xfe" + b"\x01x" * 20_001 + b"\0" + gif_frame(0, 0, 1, 1)),
        "is a GIF with over 20,000 blocks",
    ),
    "webp: cut": (lambda: cut("WEBP", 0.5), CUT),
    "webp: only the magic": (lambda: b"RIFF\x04\0\0\0WEBP", DAMAGED),
    "webp: huge canvas": (
        lambda: webp_canvas(16_000, 16_000),
        "256 megapixels, more than the limit of 25",
    ),
    "webp: canvas alone": (lambda: webp_canvas(20, 20), DAMAGED),
    "webp: scribbled": (webp_scribbled, DAMAGED),
    "bmp: only the magic": (lambda: b"BM", CUT),
    "bmp: cut": (lambda: cut("BMP", 0.5), CUT),
    "bmp: no width": (lambda: bmp(0, 4, bytes(16)), f"0 × 4 .*{NOTHING}"),
    "bmp: negative width": (lambda: bmp(-4, 4, bytes(16)), NOTHING),
    "bmp: huge": (
        lambda: bmp(40_000, -40_000, bytes(16)),
        "1600 megapixels, more than the limit of 50",
    ),
    "bmp: run-length, large": (
        lambda: bmp(3_000, 3_000, b"\0\1", 1),
        "more than the limit of 4 for a run-",
    ),
    "bmp: run-length, long": (
        lambda: bmp(100, 100, b"\0\2\0\0" * 1_100_000, 1),
        "is a run-length BMP over 4 MB",
    ),
    "bmp: compression 9": (lambda: bmp(4, 4, bytes(16), 9), DAMAGED),
    "tiff: only the magic": (lambda: b"II*\0", CUT),
    "tiff: directory outside": (lambda: b"II*\0\xff\xff\xff\x7f" + bytes(20), CUT),
    "tiff: cut": (lambda: cut("TIFF", 0.5), CUT),
    "tiff: cut lzw": (lambda: cut("TIFF", 0.5, compression="tiff_lzw"), CUT),
    "tiff: no tags": (lambda: tiff([], bytes(20)), "is (damaged|cut)"),
    "tiff: no width": (lambda: grey_tiff(0, 4, bytes(16), {}), f"0 × 4 .*{NOTHING}"),
    "tiff: huge": (lambda: grey_tiff(50_000, 50_000, bytes(16), {}), "2500 megapixels, more t"),
    "tiff: tags": (
        lambda: tiff([(tag, 3, 1, 1) for tag in range(5_000)]),
        "carries 5,000 tags of metadata",
    ),
    "tiff: overlapping tags": (overlapping_tags, METADATA),
    "tiff: strips": (lambda: many_numbers(273, 4, 100_001, 4), METADATA),
    "tiff: colour map": (lambda: many_numbers(320, 3, 200_001, 2), METADATA),
    "tiff: exif directory": (
        lambda: grey_tiff(
            4,
            4,
            bytes(16) + struct.pack("<HHHII", 1, 37_000, 4, 300_000, 0) + bytes(1_200_100),
            {34_665: (4, 1, 8 + 2 + 12 * 10 + 4 + 16)},
        ),
        METADATA,
    ),
    "tiff: huge tiles": (
        lambda: grey_tiff(
            16, 16, bytes(256), {322: (4, 1, 40_000), 323: (4, 1, 40_000), 324: (4, 1, 150)}
        ),
        "is a TIFF with tiles far larger",
    ),
    "tiff: foreign packing": (
        lambda: encode(scene(), "TIFF", compression="zstd"),
        "is a TIFF packed with zstd, which is not read",
    ),
    "tiff: nan": (lambda: floats(float("inf")), "holds pixels that are not numbers"),
    "too many bytes": (lambda: bytes(MAX_BYTES + 1), "is over 100 MB: make it smaller"),
}


def test_there_are_at_least_forty() -> None:
    assert len(REFUSED) >= 40


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(ImageError, match=sentence) as caught:
        parse_picture(make(), "/some/where/barn.dat")
    message = str(caught.value)
    assert message.startswith("barn.dat ")
    assert "\n" not in message and len(message) < 200
    assert capfd.readouterr() == ("", ""), "a decoder wrote on the person's screen"


def test_a_picture_ending_on_something_else_is_mentioned() -> None:
    with pytest.raises(
        ImageError, match=r"^notes.png is not a picture, whatever its extension says: "
    ):
        parse_picture(b"Milk, eggs, bread", "notes.png")


def gif_animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


ACCEPTED: dict[str, tuple[Callable[[], bytes], str, tuple[int, int]]] = {
    "jpeg: junk after its end": (lambda: jpeg_with(b"") + b"PK\3\4" * 50, "image/jpeg", (48, 32)),
    "jpeg: broken exif": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
        "image/jpeg",
        (48, 32),
    ),
    "jpeg: orientation 77": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + exif(77))),
        "image/jpeg",
        (48, 32),
    ),
    "jpeg: one wide row": (
        lambda: encode(scene(size=(30_000, 1)), "JPEG"),
        "image/jpeg",
        (30_000, 1),
    ),
    "jpeg: several pictures": (
        lambda: encode(scene(), "MPO", save_all=True, append_images=[scene(size=(8, 8))]),
        "image/jpeg",
        (48, 32),
    ),
    "png: without its last chunk": (lambda: encode(scene(), "PNG")[:-12], "image/png", (48, 32)),
    # Its stream ends in order, only early: Pillow takes the missing rows as black.
    "png: too few rows": (lambda: png(4, 400, [bytes(12)] * 3, 8, 2), "image/png", (4, 400)),
    "png: one pixel": (lambda: png(1, 1, [b"\0"], 8, 0), "image/png", (1, 1)),
    "png: interlaced bits": (lambda: encode(scene("1"), "PNG"), "image/png", (48, 32)),
    "png: animated": (lambda: gif_animation("PNG"), "image/png", (8, 8)),
    "gif: animated": (lambda: gif_animation("GIF"), "image/gif", (8, 8)),
    "webp: animated": (lambda: gif_animation("WEBP"), "image/webp", (8, 8)),
    "tiff: several pages": (
        lambda: encode(scene(), "TIFF", save_all=True, append_images=[scene(size=(8, 8))]),
        "image/tiff",
        (48, 32),
    ),
    "tiff: directory that leads to itself": (
        lambda: grey_tiff(4, 4, bytes(16), {})[:118] + struct.pack("<I", 8) + bytes(16),
        "image/tiff",
        (4, 4),
    ),
    "bmp: top down": (lambda: bmp(4, -4, bytes(16)), "image/bmp", (4, 4)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_strange_and_harmless_is_accepted(case: str) -> None:
    make, mime, size = ACCEPTED[case]
    picture = parse_picture(make(), "misnamed.txt")
    assert (picture.mime, picture.width, picture.height) == (mime, *size)
    assert picture.rgb().mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    assert parse_picture(gif_animation(kind)).rgb().getpixel((4, 4)) == (255, 0, 0)


def test_the_name_is_made_safe() -> None:
    picture = parse_picture(encode(scene(), "PNG"), "C:\\pics\\a\x1b]52;c;eA==\x07\u202egnp.png\n")
    assert picture.name == "a]52;c;eA==gnp.png"
    assert parse_picture(picture.data, "/").name == "picture"
    long = parse_picture(picture.data, "x" * 5_000 + ".png").name
    assert len(long) == 120 and re.fullmatch(r"x+…x+\.png", long)
