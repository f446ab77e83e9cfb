"""Caches the frozen vision encoder's features on the disk: computed once, then memory-mapped.

    cache/vision/KEY/SHA256.npy      (patches, vision_width), one file per picture

KEY is a hash of the base's weights, its image processor and the dtype, so features are never used with
an encoder that would give others. Each file is written under a temporary name and renamed: an
interrupted run leaves only complete files, and two runs may fill the same folder. The folder may be
removed at any time.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmchat.data.types import Picture
from mmchat.errors import DataError, ImageError
from mmchat.files import partial_file
from mmchat.images import decode
from mmchat.model.loaded_model import LoadedModel
from mmchat.settings import paths, private_dir
from mmchat.training.run_folder import writing

ENCODE_BATCH = 8


class FeatureCache:
    """The cached features of one loaded model's vision encoder."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.dtype: torch.dtype = loaded.model.model.vision_tower.dtype
        key = (
            loaded.weights_hash,
            str(self.dtype),
            loaded.processor.image_processor.to_json_string(),
        )
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()
        self.folder = paths().vision_cache / digest[:24]

    def file(self, picture: Picture) -> Path:
        return self.folder / f"{picture.sha256}.npy"

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """The pictures whose features are not cached yet."""
        return [picture for picture in pictures if not self.file(picture).is_file()]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def fill(
        self,
        pictures: Sequence[Picture],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> int:
        """Encodes the missing pictures; -> how many there were.

        progress: called with the number of pictures that are done, and of all missing ones. Raises DataError if a picture cannot be decoded, RecipeError if the disk is full.
        """
        missing = self.missing(pictures)
        with writing(self.folder):
            private_dir(self.folder)
        for start in range(0, len(missing), ENCODE_BATCH):
            batch = missing[start : start + ENCODE_BATCH]
            pixels = torch.cat([pixel_values(self._loaded.processor, picture) for picture in batch])
            pixels = pixels.to(self._loaded.device, self.dtype)
            features = self._loaded.model.encode_images(pixels).to(self.dtype)
            for picture, one in zip(batch, features, strict=True):
                file = self.file(picture)
                with writing(file), partial_file(file, private=False) as partial:
                    with partial.open("wb") as stream:
                        np.save(stream, _to_numpy(one), allow_pickle=False)
                    partial.replace(file)
            progress(start + len(batch), len(missing))
        return len(missing)


class FeatureReader:
    """Reads cached features; small enough to be sent to a worker process."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype

    def read(self, pictures: Sequence[Picture]) -> Tensor:
        """The features (pictures, patches, vision_width) in the encoder's dtype.

        Raises DataError if a file is missing or damaged.
        """
        return torch.stack([self._read_one(picture) for picture in pictures])

    def _read_one(self, picture: Picture) -> Tensor:
        file = self.folder / f"{picture.sha256}.npy"
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            features = torch.from_numpy(np.array(array))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} is damaged or was removed while it was in use ({error}): remove it, then "
                "continue with --resume."
            ) from error
        return features.view(self.dtype) if features.dtype != self.dtype else features


def pixel_values(processor: Any, picture: Picture) -> Tensor:
    """The pixels of a picture, float32 (1, 3, side, side); raises DataError if it cannot be decoded."""
    try:
        image = decode(picture.data)
    except ImageError as error:
        raise DataError(f"The picture {picture.name} cannot be used: {error}") from error
    pixels: Tensor = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    return pixels


def _to_numpy(features: Tensor) -> NDArray[Any]:
    """numpy has no bfloat16, so its bits are stored as 16-bit integers."""
    features = features.cpu().contiguous()
    if features.dtype is torch.bfloat16:
        features = features.view(torch.int16)
    array: NDArray[Any] = features.numpy()
    return array
