"""The cache of features: each picture is looked at once, and never for another encoder."""

from pathlib import Path

import pytest
import torch

from mmchat.errors import DataError
from mmchat.model.loading import load_model
from mmchat.training.feature_cache import FeatureCache, FeatureReader, pixel_values
from tests.training.tuned import picture, write_base


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCHAT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("form", ["fp32", "bf16"])
def test_what_is_read_is_what_the_encoder_says(home: Path, form: str) -> None:
    loaded = load_model(str(write_base(home)), quantization=form, device="cpu")  # type: ignore[arg-type]
    pictures = [picture(number) for number in range(10)]
    cache = FeatureCache(loaded)
    told: list[tuple[int, int]] = []
    assert cache.fill(pictures, lambda done, of: told.append((done, of))) == 10
    assert told[-1] == (10, 10)
    assert cache.fill(pictures) == 0
    found = FeatureReader(cache.folder, cache.dtype).read(pictures)
    with torch.no_grad():
        pixels = torch.cat([pixel_values(loaded.processor, one) for one in pictures])
        wanted = loaded.model.encode_images(pixels.to(cache.dtype))
    assert found.dtype == wanted.dtype
    assert torch.allclose(found.float(), wanted.float(), atol=1e-5 if form == "fp32" else 0.05)
    # A second process over the same weights finds them; another form of the weights does not.
    assert not FeatureCache(loaded).missing(pictures)
    other = "bf16" if form == "fp32" else "fp32"
    again = load_model(str(home / "base"), quantization=other, device="cpu")  # type: ignore[arg-type]
    assert len(FeatureCache(again).missing(pictures)) == 10


def test_a_damaged_file_is_told(home: Path) -> None:
    loaded = load_model(str(write_base(home)), quantization="fp32", device="cpu")
    cache = FeatureCache(loaded)
    cache.fill([picture(1)])
    cache.file(picture(1)).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"is damaged or was removed.*--resume"):
        FeatureReader(cache.folder, cache.dtype).read([picture(1)])
