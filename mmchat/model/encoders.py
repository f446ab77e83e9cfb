"""One small adapter for each kind of vision encoder.

The encoders of transformers differ in their inputs (NaFlex patches), in their outputs (a class token,
registers, a feature map) and in how their configuration states their size. An adapter hides that: it takes
a square picture and returns one feature for each cell of a grid, whose size is known from the configuration
alone.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmchat.errors import ModelError


@dataclass(frozen=True, slots=True)
class Encoder(ABC):
    """What a projector needs to know about an encoder, and how to get its features.

    image_size: side of the square picture, pixels.
    grid: cells along one side; there are `grid ** 2` features, row by row.
    width: size of one feature.
    """

    image_size: int
    grid: int
    width: int

    @abstractmethod
    def features(self, tower: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
        """pixel_values (images, 3, side, side) -> (images, grid * grid, width).

        `layer` selects the hidden state, like LLaVA's `vision_feature_layer`; kinds
        without a list of equal hidden states return their last one.
        """

    def blocks_used(self, blocks: int, layer: int) -> int:
        """The number of the tower's `blocks`, counted from its input, on which `features` depends."""
        return blocks


class LayeredEncoder(Encoder):
    """An encoder whose hidden states are a list: the input of the first block, then each one's output."""

    def blocks_used(self, blocks: int, layer: int) -> int:
        return layer if layer >= 0 else blocks + 1 + layer


class TokenEncoder(LayeredEncoder):
    """CLIP, DINOv2 and any ViT: extra tokens (class, registers) come first."""

    def features(self, tower: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
        states = tower(pixel_values, output_hidden_states=True).hidden_states
        return states[layer][:, -self.grid * self.grid :]


class FlexibleEncoder(LayeredEncoder):
    """SigLIP 2 in its NaFlex form: its inputs are patches, a mask and the grid's shape."""

    def features(self, tower: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
        images, channels, side, _ = pixel_values.shape
        patch = side // self.grid
        patches = (
            pixel_values.view(images, channels, self.grid, patch, self.grid, patch)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(images, self.grid * self.grid, patch * patch * channels)
        )
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        shapes = torch.full((images, 2), self.grid, dtype=torch.long, device=patches.device)
        out = tower(patches, mask, shapes, output_hidden_states=True)
        return out.hidden_states[layer]


class MapEncoder(Encoder):
    """ConvNeXt, ResNet: the last feature map, (images, width, grid, grid)."""

    def features(self, tower: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
        feature_map: Tensor = tower(pixel_values).last_hidden_state
        return feature_map.flatten(2).transpose(1, 2)


class GridEncoder(Encoder):
    """The built-in tower, whose output is already the grid."""

    def features(self, tower: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
        features: Tensor = tower(pixel_values).last_hidden_state
        return features


_TOKEN_KINDS = {
    "clip_vision_model",
    "siglip_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "vit",
}
_MAP_KINDS = {"convnext", "convnextv2", "resnet"}


def encoder_for(vision_config: Any, image_size: int = 0) -> Encoder:
    """The adapter for `vision_config`, an encoder's configuration from transformers.

    `image_size` overrides the configuration's own (CNN kinds have none). Raises ModelError if there is
    no adapter for the kind of encoder.
    """
    kind = vision_config.model_type
    if kind == "grid_vision":
        return GridEncoder(
            vision_config.image_size, vision_config.grid_size, vision_config.hidden_size
        )
    if kind in _MAP_KINDS:
        side = image_size or getattr(vision_config, "image_size", 0) or 224
        width = int(vision_config.hidden_sizes[-1])
        return MapEncoder(side, math.ceil(side / _stride(vision_config)), width)
    if kind in _TOKEN_KINDS:
        side = image_size or vision_config.image_size
        return TokenEncoder(side, side // vision_config.patch_size, vision_config.hidden_size)
    if kind == "siglip2_vision_model":
        grid = math.isqrt(vision_config.num_patches)
        if image_size:
            grid = image_size // vision_config.patch_size
        return FlexibleEncoder(grid * vision_config.patch_size, grid, vision_config.hidden_size)
    raise ModelError(
        f"A vision encoder of the kind {kind} cannot be used: choose one of "
        f"{', '.join(sorted(_TOKEN_KINDS | _MAP_KINDS | {'siglip2_vision_model', 'grid_vision'}))}."
    )


def _stride(vision_config: Any) -> int:
    """Pixels along the side of one cell of a CNN's last feature map."""
    later = len(vision_config.hidden_sizes) - 1
    if vision_config.model_type == "resnet":
        # The embedder halves the side twice (convolution, pooling), the first stage optionally.
        return int(4 * 2 ** (later + vision_config.downsample_in_first_stage))
    return int(vision_config.patch_size * 2**later)
