"""Projection adapters: features of the vision encoder -> visual prefix tokens.

All kinds have the same signature. The configuration alone gives the number of prefix tokens.

    linear          one matrix                      Merullo et al. 2023, "Linearly Mapping from Image
                                                    to Text Space"
    mlp             two layers with GELU            Liu et al. 2023, "Improved Baselines with Visual
                                                    Instruction Tuning" (LLaVA-1.5)
    shuffle_linear  neighbours joined, one matrix   Laurençon et al. 2024, "Building and better
                                                    understanding vision-language models" (Idefics3)
    shuffle_mlp     neighbours joined, two layers   Chen et al. 2024, "How Far Are We to GPT-4V?"
                                                    (InternVL 1.5)
    perceiver       learned queries, several rounds Alayrac et al. 2022, "Flamingo" (perceiver
                    of cross-attention              resampler; Jaegle et al. 2021)
    attention_pool  learned queries, one attention  Lee et al. 2019, "Set Transformer" (pooling by
                                                    attention); Yu et al. 2022, "CoCa"
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from mmchat.model.configuration import VisualPrefixConfig, grid_projector_sizes, prefix_tokens
from mmchat.model.encoders import encoder_for


class GridPositions(nn.Module):
    """Learned row and column embeddings.

    A text model counts positions along one line, so it would have to divide to get a token's column.
    These give it row and column directly. They are initialized as waves of a few lengths in random
    directions, so that neighbours are similar and "left of" is a direction from the first step (Vaswani
    et al. 2017, "Attention Is All You Need").
    """

    def __init__(self, grid: int, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.rows = nn.Parameter(torch.zeros(grid, width))
        self.columns = nn.Parameter(torch.zeros(grid, width))

    def initialize(self) -> None:
        """Fills both embeddings with waves of standard deviation `scale`."""
        for embedding in (self.rows, self.columns):
            grid, width = embedding.shape
            place = (torch.arange(grid, dtype=torch.float32) + 0.5) / grid
            lengths = torch.tensor([0.5, 1.0, 2.0, 4.0]) * math.pi
            angles = place[:, None] * lengths
            waves = torch.cat([place[:, None] * 2 - 1, angles.sin(), angles.cos()], dim=1)
            mixed = waves @ torch.randn(waves.shape[1], width)
            mixed = (mixed - mixed.mean(0)) / mixed.std() * self.scale
            with torch.no_grad():
                embedding.copy_(mixed)

    def forward(self, tokens: Tensor) -> Tensor:
        """(images, grid * grid, width) -> the same shape."""
        return tokens + (self.rows[:, None] + self.columns[None]).flatten(0, 1)


def _build_positions(config: VisualPrefixConfig, grid: int, width: int) -> GridPositions | None:
    if not config.projector_positions:
        return None
    return GridPositions(grid, width, config.projector_position_scale)


class Projector(nn.Module):
    """The signature of all kinds. `config` has the sizes; see `VisualPrefixConfig`."""

    def __init__(self, config: VisualPrefixConfig) -> None:
        super().__init__()
        encoder = encoder_for(config.vision_config, config.image_size)
        self.grid = encoder.grid
        self.vision_width = encoder.width
        self.text_width: int = config.text_config.hidden_size

    def forward(self, features: Tensor) -> Tensor:
        """(images, patches, vision_width) -> (images, prefix_tokens, text_width)"""
        raise NotImplementedError


class GridProjector(Projector):
    """One prefix token for each `factor` x `factor` block of cells."""

    def __init__(self, config: VisualPrefixConfig, *, factor: int, hidden: int) -> None:
        super().__init__(config)
        self.factor = factor
        joined = self.vision_width * factor * factor
        bias = config.multimodal_projector_bias
        self.linear_1 = nn.Linear(joined, hidden or self.text_width, bias=bias)
        self.linear_2 = nn.Linear(hidden, self.text_width, bias=bias) if hidden else None
        self.positions = _build_positions(config, self.grid // factor, self.text_width)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.linear_1(pixel_shuffle(features, self.grid, self.factor))
        if self.linear_2 is not None:
            tokens = self.linear_2(F.gelu(tokens))
        return self.positions(tokens) if self.positions is not None else tokens


def pixel_shuffle(features: Tensor, grid: int, factor: int) -> Tensor:
    """Joins blocks of neighbours: (images, grid², width) -> (images, (grid/factor)², factor²·width).

    Inside a joined feature the order is (row, column, width), as Idefics3 has it.
    """
    if factor == 1:
        return features
    images, _, width = features.shape
    side = grid // factor
    blocks = features.view(images, side, factor, side, factor, width).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(images, side * side, factor * factor * width)


class CrossAttention(nn.Module):
    """Multi-head attention of queries (images, queries, width) over keys (images, n, key_width)."""

    def __init__(self, width: int, key_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(key_width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(key_width, width, bias=False)
        self.v_proj = nn.Linear(key_width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        keys = self.key_norm(keys)

        def split(projected: Tensor) -> Tensor:
            images, length, width = projected.shape
            return projected.view(images, length, self.heads, width // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.q_proj(self.query_norm(queries))),
            split(self.k_proj(keys)),
            split(self.v_proj(keys)),
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class QueryProjector(Projector):
    """Learned queries attend to all cells, so the number of prefix tokens does not depend on the grid."""

    def __init__(self, config: VisualPrefixConfig, *, rounds: int, feed_forward: bool) -> None:
        super().__init__(config)
        width = self.text_width
        self.queries = nn.Parameter(torch.zeros(config.projector_tokens, width))
        self.positions = _build_positions(config, self.grid, self.vision_width)
        self.attentions = nn.ModuleList(
            CrossAttention(width, self.vision_width, config.projector_heads) for _ in range(rounds)
        )
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width, bias=False),
                nn.GELU(),
                nn.Linear(4 * width, width, bias=False),
            )
            for _ in range(rounds if feed_forward else 0)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        if self.positions is not None:
            features = self.positions(features)
        tokens = self.queries.expand(features.shape[0], -1, -1)
        for index, attention in enumerate(self.attentions):
            tokens = tokens + attention(tokens, features)
            if self.feed_forwards:
                tokens = tokens + self.feed_forwards[index](tokens)
        normed: Tensor = self.norm(tokens)
        return normed


def build_projector(config: VisualPrefixConfig) -> Projector:
    """The projector that `config` names, with random weights.

    Raises ModelError if its sizes do not fit the encoder or the text model.
    """
    prefix_tokens(config)  # the checks
    if config.projector_type == "perceiver":
        return QueryProjector(config, rounds=config.projector_layers, feed_forward=True)
    if config.projector_type == "attention_pool":
        return QueryProjector(config, rounds=1, feed_forward=False)
    factor, hidden = grid_projector_sizes(config)
    return GridProjector(config, factor=factor, hidden=hidden)
