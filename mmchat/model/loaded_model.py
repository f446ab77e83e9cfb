"""A model in memory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmchat.memory.machine import WeightFormat
from mmchat.memory.model_dims import ModelKind
from mmchat.model.quantization import PartReport
from mmchat.model_files import FileStamps, file_stamps
from mmchat.prompt.pixel_values import PixelCache


@dataclass
class LoadedModel:
    """A base in memory, without any adapter, and what the engine needs to know about it.

    `processor` is None for a text model. `tokenizer` has the chat template. `folder` has the files.
    """

    name: str
    kind: ModelKind
    model: Any
    processor: Any
    tokenizer: Any
    device: torch.device
    compute_dtype: torch.dtype
    quantization: WeightFormat
    context_length: int
    """The longest conversation in tokens."""
    eos_token_ids: frozenset[int]
    """Every token that ends an answer."""
    vision: bool
    """Whether it takes pictures."""
    weights_hash: str
    folder: Path
    parts: list[PartReport] = field(default_factory=list)
    files: FileStamps = field(default_factory=dict, repr=False)
    """Of the files when they were read; `is_current` compares."""
    pixels: PixelCache = field(default_factory=PixelCache, repr=False)
    """Pictures of earlier turns, prepared for the visual-prefix model."""

    @property
    def memory_bytes(self) -> int:
        """The bytes of the weights."""
        return sum(part.bytes for part in self.parts)

    def is_current(self) -> bool:
        """Whether the files on the disk are still those that were loaded."""
        return file_stamps(self.folder) == self.files
