"""Pictures as data names them: what the checked header says is what decoding says."""

from pathlib import Path
from typing import Any

import pytest

from mmchat.data.pictures import PictureResolver
from mmchat.data.types import SampleError
from mmchat.images import MAX_BYTES, parse_picture
from tests.data.making import data_url, picture
from tests.images.builders import PNG_MAGIC, encode, exif, ihdr, scene

KINDS: list[tuple[str, str, dict[str, Any]]] = [
    *((kind, kind, {}) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
    ("JPEG turned", "JPEG", {"exif": b"Exif\0\0" + exif(6)}),
    ("PNG turned", "PNG", {"exif": exif(8)}),
    ("WEBP turned", "WEBP", {"exif": exif(5)}),
    ("JPEG upside down", "JPEG", {"exif": b"Exif\0\0" + exif(3)}),
    ("JPEG progressive", "JPEG", {"progressive": True}),
]


@pytest.mark.parametrize(
    ("kind", "options"), [one[1:] for one in KINDS], ids=[one[0] for one in KINDS]
)
def test_size_and_type_are_those_of_the_decoded_picture(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    data = encode(scene(size=(48, 32)), kind, **options)
    (tmp_path / "a.bin").write_bytes(data)
    known = parse_picture(data)
    for found in (
        PictureResolver(tmp_path).from_file("a.bin", tmp_path),
        PictureResolver(tmp_path).resolve(data_url(data), tmp_path),
    ):
        assert (found.sha256, found.mime) == (known.sha256, known.mime)
        assert (found.width, found.height) == (known.width, known.height)
        assert found.data == data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_file_whose_end_is_missing_is_broken(tmp_path: Path, kind: str) -> None:
    data = encode(scene(size=(200, 300)), kind)
    (tmp_path / "a.bin").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(SampleError) as why:
        PictureResolver(tmp_path).from_file("a.bin", tmp_path)
    assert why.value.about == "broken" and str(why.value).startswith("the picture a.bin ")


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    data = bytearray(encode(scene(size=(200, 300)), "PNG"))
    data[60] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SampleError, match=r"a.png"):
        PictureResolver(tmp_path).from_file("a.png", tmp_path)


def test_a_file_is_read_once_however_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture(1))
    (tmp_path / "link.png").symlink_to("in/a.png")
    pictures = PictureResolver(tmp_path)
    first = pictures.from_file("in/a.png", tmp_path)
    (tmp_path / "in" / "a.png").write_bytes(picture(2))
    for name in ("in/../in/a.png", "link.png", str(tmp_path / "in" / "a.png"), "a.png"):
        assert pictures.from_file(name, tmp_path / "in" if name == "a.png" else tmp_path) is first


def test_what_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(PNG_MAGIC + ihdr(60_000, 60_000))
    with pytest.raises(SampleError, match=r"the picture bomb.png has 3600 megapixels"):
        PictureResolver(tmp_path).from_file("bomb.png", tmp_path)
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(SampleError, match=r"large.png is over 100 MB"):
        PictureResolver(tmp_path).from_file("large.png", tmp_path)


@pytest.mark.parametrize(
    "url", ["data:,x", "data:image/png;base64", "data:image/png;base64,!", "data:x"]
)
def test_data_urls_that_are_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(SampleError):
        PictureResolver(tmp_path).resolve(url, tmp_path)


def test_bytes_that_nothing_can_read_again_are_held_once(tmp_path: Path) -> None:
    pictures = PictureResolver(tmp_path)
    first, second = (pictures.from_bytes(bytes(bytearray(picture(3))), "", None) for _ in range(2))
    assert first.held is second.held and first.data == picture(3)
