"""The built-in vision tower.

Convolutions first, then attention: Xiao et al. 2021, "Early Convolutions Help Transformers See Better". It
learns from a few thousand drawn scenes, while a patch embedding would need millions. A few cells are enough
to recognize an object, so most of the depth is convolution, which on a CPU costs a seventh of attention over
the same 256 cells.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mmchat.model.configuration import GridVisionConfig


class Stem(nn.Module):
    """Strided convolutions from pixels to one feature for each grid cell."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = config.num_channels
        for channels in config.stem_channels:
            layers += [
                nn.Conv2d(width, channels, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, channels),
                nn.GELU(),
            ]
            width = channels
        layers.append(nn.Conv2d(width, config.hidden_size, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, side, side) -> a feature map (images, hidden, grid, grid)."""
        grid: Tensor = self.layers(pixel_values)
        return grid


class ConvBlock(nn.Module):
    """A residual pair of 3 x 3 convolutions (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, config.hidden_size)
        self.conv1 = nn.Conv2d(config.hidden_size, config.conv_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, config.conv_channels)
        self.conv2 = nn.Conv2d(config.conv_channels, config.hidden_size, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        """(images, hidden, grid, grid) -> the same shape."""
        inner = self.conv1(F.gelu(self.norm1(grid)))
        return grid + self.conv2(F.gelu(self.norm2(inner)))


class Attention(nn.Module):
    """Bidirectional multi-head self-attention over the cells."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(images, cells, hidden) -> the same shape."""
        images, cells, width = hidden.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(images, cells, self.heads, width // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.q_proj(hidden)), split(self.k_proj(hidden)), split(self.v_proj(hidden))
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(images, cells, width))
        return out


class Block(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words")."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(images, cells, hidden) -> the same shape."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.fc2(F.gelu(self.fc1(self.mlp_norm(hidden))))


class GridVisionModel(PreTrainedModel):
    """Pixels -> one feature for each cell of a square grid."""

    config: GridVisionConfig
    config_class = GridVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads a plain class attribute)

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__(config)
        self.stem = Stem(config)
        self.row_embedding = nn.Parameter(torch.zeros(config.grid_size, config.hidden_size))
        self.column_embedding = nn.Parameter(torch.zeros(config.grid_size, config.hidden_size))
        self.conv_blocks = nn.ModuleList(ConvBlock(config) for _ in range(config.num_conv_layers))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GridVisionModel):
            for embedding in (module.row_embedding, module.column_embedding):
                nn.init.normal_(embedding, std=self.config.initializer_range)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """(images, channels, side, side), normalised -> last_hidden_state (images, cells, hidden)."""
        grid = self.stem(pixel_values.to(self.dtype))
        for conv_block in self.conv_blocks:
            grid = conv_block(grid)
        positions = self.row_embedding[:, None] + self.column_embedding[None]
        hidden = grid.flatten(2).transpose(1, 2) + positions.flatten(0, 1)
        for block in self.blocks:
            hidden = block(hidden)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))
