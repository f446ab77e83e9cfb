"""What the frozen vision encoder says of each picture: computed once, then mapped from the disk.

    cache/vision/KEY/SHA256.npy      (patches, vision_width), one file a picture

KEY is a hash over the base's weights, its image processor and the type of number, so that a
feature is never read for an encoder that would give another. Each file is written under a
temporary name and renamed: an interrupted run leaves whole ones only, and two runs may fill the
same folder. The folder may be removed at any time.
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
from mmchat.model.loading import LoadedModel
from mmchat.settings import paths, private_dir
from mmchat.training.run_folder import writing

ENCODED_AT_ONCE = 8
Tell = Callable[[int, int], None]
"""Called with the number of pictures done, and of all."""


class FeatureCache:
    """The features of one loaded model's vision encoder."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.dtype: torch.dtype = loaded.model.model.vision_tower.dtype
        about = (
            loaded.weights_hash,
            str(self.dtype),
            loaded.processor.image_processor.to_json_string(),
        )
        self.folder = (
            paths().vision_cache / hashlib.sha256("\0".join(about).encode()).hexdigest()[:24]
        )

    def file(self, picture: Picture) -> Path:
        return _file(self.folder, picture)

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Those that are not there yet."""
        return [picture for picture in pictures if not self.file(picture).is_file()]

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def fill(self, pictures: Sequence[Picture], tell: Tell = lambda done, of: None) -> int:
        """Encodes what is missing; -> how many that were.

        Raises DataError for a picture that cannot be decoded, RecipeError where the disk is full.
        """
        missing = self.missing(pictures)
        with writing(self.folder):
            private_dir(self.folder)
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            some = missing[start : start + ENCODED_AT_ONCE]
            pixels = torch.cat([pixel_values(self._loaded.processor, picture) for picture in some])
            pixels = pixels.to(self._loaded.device, self.dtype)
            features = self._loaded.model.encode_images(pixels).to(self.dtype)
            for picture, one in zip(some, features, strict=True):
                self._write(self.file(picture), _to_numpy(one))
            tell(start + len(some), len(missing))
        return len(missing)

    def _write(self, file: Path, array: NDArray[Any]) -> None:
        with writing(file), partial_file(file, private=False) as partial:
            with partial.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
            partial.replace(file)


class FeatureReader:
    """Reads what was filled in; small enough for a worker process."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype

    def read(self, pictures: Sequence[Picture]) -> Tensor:
        """(pictures, patches, vision_width) in the encoder's dtype; all have been filled in.

        Raises DataError where one has gone or is damaged.
        """
        return torch.stack([self._one(picture) for picture in pictures])

    def _one(self, picture: Picture) -> Tensor:
        file = _file(self.folder, picture)
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            copied = torch.from_numpy(np.array(array))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} is damaged or was removed while it was in use ({error}): remove it, and go on "
                "with --resume."
            ) from error
        return copied.view(self.dtype) if copied.dtype != self.dtype else copied


def _file(folder: Path, picture: Picture) -> Path:
    return folder / f"{picture.sha256}.npy"


def pixel_values(processor: Any, picture: Picture) -> Tensor:
    """float32 (1, 3, side, side) of a picture; raises DataError where it cannot be decoded."""
    try:
        image = decode(picture.data)
    except ImageError as error:
        raise DataError(f"The picture {picture.name} cannot be used: {error}") from error
    pixels: Tensor = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    return pixels


def _to_numpy(features: Tensor) -> NDArray[Any]:
    """numpy has no bfloat16: its bits are kept as integers of the same size."""
    features = features.cpu().contiguous()
    if features.dtype is torch.bfloat16:
        features = features.view(torch.int16)
    array: NDArray[Any] = features.numpy()
    return array
