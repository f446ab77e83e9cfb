"""What the model sees is what a person sees: every mode against known values, every rotation."""

import struct

import pytest
from PIL import Image

from mmchat.images import MAX_SIDE, decode, parse_picture
from tests.images.builders import chunk, encode, exif, grey_tiff, jpeg_with, png, scene, segment

RED, WHITE = (255, 0, 0), (255, 255, 255)


def at(data: bytes, x: int = 1, y: int = 1) -> tuple[int, ...]:
    image = decode(data)
    assert image.mode == "RGB"
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


def flat(mode: str, colour: object, kind: str, **options: object) -> bytes:
    return encode(Image.new(mode, (4, 4), colour), kind, **options)  # type: ignore[arg-type]


def grey(value: int) -> tuple[int, int, int]:
    return (value, value, value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_lossless_rgb(kind: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)]
    image = Image.new("RGB", (6, 1))
    image.putdata(colours)
    assert [at(encode(image, kind), x, 0) for x in range(6)] == colours


def test_lossless_webp_and_close_jpeg() -> None:
    assert at(flat("RGB", (200, 100, 50), "WEBP", lossless=True)) == (200, 100, 50)
    seen = at(flat("RGB", (200, 100, 50), "JPEG", quality=95))
    assert all(abs(a - b) <= 3 for a, b in zip(seen, (200, 100, 50), strict=True))


@pytest.mark.parametrize("value, expected", [(0, 0), (40_000, 156), (65_535, 255), (257, 1)])
def test_16_bit_grey_is_scaled(value: int, expected: int) -> None:
    for kind in ("PNG", "TIFF"):
        assert at(flat("I;16", value, kind)) == grey(expected)
    assert at(flat("I;16B", value, "TIFF")) == grey(expected)


def test_16_bit_colour() -> None:
    pixel = struct.pack(">HHH", 65_535, 40_000, 0)
    assert at(png(4, 4, [pixel * 4] * 4, 16, 2)) == (255, 156, 0)
    half = struct.pack(">HH", 0, 32_768)
    assert at(png(4, 4, [half * 4] * 4, 16, 4)) in (grey(127), grey(128))


def test_12_bit_and_inverted_tiff() -> None:
    full = grey_tiff(2, 2, b"\xff\xff\xff" * 2, {258: (3, 1, 12)})
    assert at(full) == WHITE
    inverted = grey_tiff(2, 2, struct.pack("<4H", *[0] * 4), {258: (3, 1, 16), 262: (3, 1, 0)})
    assert at(inverted) == WHITE


def test_signed_32_bit_and_float() -> None:
    ramp = Image.new("I", (3, 1))
    ramp.putdata([-1_000, 0, 1_000])
    assert [at(encode(ramp, "TIFF"), x, 0) for x in range(3)] == [grey(0), grey(128), grey(255)]
    unit = Image.new("F", (3, 1))
    unit.putdata([0.25, 0.5, 0.75])
    assert [at(encode(unit, "TIFF"), x, 0)[0] for x in range(3)] == [64, 128, 191]
    wide = Image.new("F", (3, 1))
    wide.putdata([-5.0, 0.0, 5.0])
    assert [at(encode(wide, "TIFF"), x, 0)[0] for x in range(3)] == [0, 128, 255]
    assert at(flat("F", 7.0, "TIFF")) == grey(128)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    for ink, colour in [((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), grey(0))]:
        seen = at(flat("CMYK", ink, kind))
        assert all(abs(a - b) <= 2 for a, b in zip(seen, colour, strict=True))


def test_ycbcr_and_lab_tiff() -> None:
    for mode in ("YCbCr", "LAB"):
        colour = (150, 128, 128)
        seen = at(flat(mode, colour, "TIFF"))
        assert max(seen) - min(seen) <= 2 and 130 <= seen[0] <= 160


def test_two_colours_and_small_palettes() -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        assert at(flat("1", 1, kind)) == WHITE
        assert at(flat("1", 0, kind)) == grey(0)
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert at(encode(image, kind)) == RED


def test_transparency_is_white() -> None:
    assert at(flat("RGBA", (255, 0, 0, 0), "PNG")) == WHITE
    assert at(flat("RGBA", (255, 0, 0, 0), "TIFF")) == WHITE
    assert at(flat("RGBA", (255, 0, 0, 0), "WEBP", lossless=True)) == WHITE
    assert at(flat("RGBA", (255, 0, 0, 128), "PNG")) == (255, 127, 127)
    assert at(flat("LA", (0, 0), "PNG")) == WHITE
    assert at(flat("LA", (0, 255), "PNG")) == grey(0)
    assert at(flat("PA", (0, 0), "TIFF")) == WHITE


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    for kind in ("PNG", "GIF"):
        assert at(encode(image, kind, transparency=1)) == WHITE
        assert at(encode(image, kind, transparency=0)) == RED
    assert at(encode(image, "PNG", transparency=bytes([255, 128]))) == (255, 127, 127)


@pytest.mark.parametrize(
    "depth, colour, row, transparent",
    [
        (1, 0, b"\xc0", struct.pack(">H", 1)),
        (2, 0, b"\xa0", struct.pack(">H", 2)),
        (4, 0, b"\x55\x00", struct.pack(">H", 5)),
        (8, 0, b"\x07\x07\x00", struct.pack(">H", 7)),
        (16, 0, b"\x9c\x40" * 2 + b"\0\0", struct.pack(">H", 40_000)),
        (8, 2, b"\1\2\3" * 2 + b"\0\0\0", struct.pack(">3H", 1, 2, 3)),
        (16, 2, b"\1\2\3\4\5\6" * 2 + bytes(6), b"\1\2\3\4\5\6"),
    ],
)
def test_a_transparent_colour_is_white(
    depth: int, colour: int, row: bytes, transparent: bytes
) -> None:
    data = png(3, 2, [row] * 2, depth, colour, extra=chunk(b"tRNS", transparent))
    assert [at(data, x, 1) for x in range(3)] == [WHITE, WHITE, grey(0)]


def test_hidden_text_stays_hidden_when_reduced() -> None:
    image = Image.new("RGBA", (600, 600), (255, 255, 255, 0))
    image.paste((0, 0, 0, 0), (100, 100, 500, 500))
    image.paste((255, 0, 0, 255), (0, 0, 300, 50))
    small = decode(encode(image, "PNG"), max_side=60)
    assert small.size == (60, 60)
    assert small.getpixel((30, 30)) == WHITE
    assert small.getpixel((10, 2)) == RED


def upright() -> Image.Image:
    """48 × 32: blue, red, yellow, green in the four corners, row by row."""
    image = Image.new("RGB", (48, 32), (0, 0, 255))
    image.paste((255, 0, 0), (24, 0, 48, 16))
    image.paste((255, 255, 0), (0, 16, 24, 32))
    image.paste((0, 255, 0), (24, 16, 48, 32))
    return image


# How the stored picture must be turned so that undoing it gives the upright one.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation(kind: str, orientation: int) -> None:
    turn = STORED[orientation]
    stored = upright() if turn is None else upright().transpose(turn)
    if kind == "TIFF":
        data = encode(stored, kind, tiffinfo={274: orientation})
    else:
        block = exif(orientation, "<" if orientation % 2 else ">")
        data = encode(stored, kind, exif=b"Exif\0\0" + block, quality=95)
    picture = parse_picture(data)
    assert (picture.width, picture.height) == (48, 32)
    for image in (picture.rgb(), picture.rgb(24)):
        assert image.size in ((48, 32), (24, 16))
        wide, high = image.size
        corners = [(2, 2), (wide - 3, 2), (2, high - 3), (wide - 3, high - 3)]
        expected = [(0, 0, 255), (255, 0, 0), (255, 255, 0), (0, 255, 0)]
        for corner, colour in zip(corners, expected, strict=True):
            seen = image.getpixel(corner)
            assert isinstance(seen, tuple)
            assert all(abs(a - b) < 40 for a, b in zip(seen, colour, strict=True)), corner


def test_max_side_never_enlarges_and_is_bounded() -> None:
    picture = parse_picture(encode(scene(size=(640, 320)), "JPEG"))
    assert picture.rgb().size == (640, 320)
    assert picture.rgb(10_000).size == (640, 320)
    assert picture.rgb(100).size == (100, 50)
    assert picture.rgb(1).size == (1, 1)
    long = parse_picture(encode(scene("L", (9_000, 10)), "PNG"))
    assert (long.width, long.height) == (9_000, 10)
    assert long.rgb(100_000).size == (MAX_SIDE, 5)
    with pytest.raises(ValueError, match="at least 1"):
        picture.rgb(0)


def test_a_48_megapixel_photograph_is_read() -> None:
    picture = parse_picture(encode(Image.new("RGB", (8_000, 6_000), (9, 99, 199)), "JPEG"))
    assert (picture.width, picture.height) == (8_000, 6_000)
    assert picture.rgb(1_000).size == (1_000, 750)


def test_metadata_do_not_reach_the_result() -> None:
    data = jpeg_with(segment(0xE1, b"Exif\0\0" + exif(1)) + segment(0xFE, b"a comment"))
    assert decode(data).info == {}


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (flat("RGB", "white", "PNG"), "nearly white all over"),
        (flat("LA", (255, 0), "PNG"), "Any transparent parts become white"),
        (encode(Image.new("P", (4, 4)), "GIF", transparency=0), "only the first frame is read"),
        (flat("I;16", 4_000, "TIFF"), "Its 16-bit values are scaled"),
        (flat("RGB", "black", "PNG"), "so there may be nothing to see."),
        (flat("I;16", 4_000, "PNG"), "scaled from their full range of 0 to 65,535"),
        (flat("RGB", (10, 5, 20), "JPEG"), "so there may be nothing to see."),
        (flat("RGB", (200, 30, 30), "PNG"), ""),
        (flat("RGB", (60, 60, 60), "PNG"), ""),
        (encode(scene(), "PNG"), ""),
    ],
)
def test_a_picture_without_anything_to_see_is_remarked_on(data: bytes, remark: str) -> None:
    found = parse_picture(data, "a.png").remark
    assert remark in found and bool(found) == bool(remark)
    assert found == "" or found.startswith("a.png is nearly ")


def test_a_thin_line_is_something_to_see() -> None:
    page = Image.new("L", (2_000, 1_000), 255)
    page.paste(0, (0, 500, 2_000, 503))
    assert parse_picture(encode(page, "PNG")).remark == ""
