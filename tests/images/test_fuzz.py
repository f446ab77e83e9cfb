"""Damaged files of every kind: an RGB picture or an ImageError, never anything else."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmchat.errors import ImageError
from mmchat.images import parse_data_url, parse_picture
from tests.images.builders import encode, exif, scene

SEEDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "png": ("RGB", "PNG", {}),
    "png rgba": ("RGBA", "PNG", {"exif": b"Exif\0\0" + exif(6)}),
    "png palette": ("P", "PNG", {"transparency": 3}),
    "png 16-bit": ("I;16", "PNG", {}),
    "jpeg": ("RGB", "JPEG", {"exif": b"Exif\0\0" + exif(6)}),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True}),
    "jpeg cmyk": ("CMYK", "JPEG", {}),
    "webp": ("RGB", "WEBP", {"exif": b"Exif\0\0" + exif(8)}),
    "webp lossless": ("RGBA", "WEBP", {"lossless": True}),
    "gif": ("P", "GIF", {"transparency": 2, "comment": b"hello"}),
    "bmp": ("RGB", "BMP", {}),
    "bmp palette": ("P", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff lzw": ("RGBA", "TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("P", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff group 4": ("1", "TIFF", {"compression": "group4"}),
    "tiff jpeg": ("RGB", "TIFF", {"compression": "jpeg"}),
    "tiff float": ("F", "TIFF", {}),
}


@cache
def seed(name: str) -> bytes:
    mode, kind, options = SEEDS[name]
    image = scene("L" if mode == "I;16" else mode, (40, 24))
    return encode(image.convert("I;16") if mode == "I;16" else image, kind, **options)


def look(data: bytes) -> None:
    try:
        picture = parse_picture(data, "fuzz.png")
        image = picture.rgb(32)
    except ImageError as error:
        assert str(error).startswith("fuzz.png ") and "\n" not in str(error)
    else:
        assert image.mode == "RGB" and 0 < max(image.size) <= 32
        assert picture.width > 0 and picture.height > 0


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(seed(draw(st.sampled_from(sorted(SEEDS)))))
    early = st.integers(0, min(len(data), 200) - 1)  # headers matter most
    anywhere = st.integers(0, len(data) - 1)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(early | anywhere)
        match draw(st.sampled_from(["flip", "edge", "drop", "insert"])):
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "edge":
                data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
            case "drop":
                del data[place : place + draw(st.integers(1, 8))]
                data = data or bytearray(b"\0")
            case _:
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
        anywhere = early = st.integers(0, len(data) - 1)
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@settings(max_examples=400, deadline=None, suppress_health_check=QUIET)
@given(damaged())
def test_damaged_files(data: bytes) -> None:
    look(data)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=QUIET)
@given(damaged())
def test_damaged_files_at_large(data: bytes) -> None:
    look(data)


@pytest.mark.parametrize("name", SEEDS)
def test_whole_seeds_and_every_kind_of_cut(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = seed(name)
    assert parse_picture(data).rgb().size in ((40, 24), (24, 40))
    for share in range(20):
        look(data[: len(data) * share // 20])
    assert capfd.readouterr() == ("", ""), "a decoder wrote on the person's screen"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    look(data)
    for magic in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"GIF89a", b"BM"):
        look(magic + data)
    look(b"II*\0\x08\0\0\0" + data)
    look(b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10" + data)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100), st.booleans())
def test_any_url(text: str, begun: bool) -> None:
    with pytest.raises(ImageError):
        parse_data_url(("data:image/png;base64," if begun else "") + text)


def test_nothing_is_left_open() -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("the open files of a process are only listed on Linux")
    before = len(list(folder.iterdir()))
    for name in SEEDS:
        look(seed(name))
        look(seed(name)[:60])
    assert len(list(folder.iterdir())) == before
