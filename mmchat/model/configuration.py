"""The configuration of a visual-prefix model: a vision tower, a projector, a text model.

`VisualPrefixConfig` is LLaVA's configuration with our projector instead of its own, so the built-in model
and a model of 7B parameters differ in config.json only.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig, PreTrainedConfig

from mmchat.errors import ModelError
from mmchat.model.encoders import encoder_for

ProjectorType = Literal[
    "linear", "mlp", "shuffle_linear", "shuffle_mlp", "perceiver", "attention_pool"
]


@strict
class GridVisionConfig(PreTrainedConfig):
    """The built-in vision tower: a convolution stem, then a small ViT over its grid.

    `stem_channels` are the widths after each stride-2 convolution, so the stem reduces a picture's side by
    a factor of `2 ** len(stem_channels)`. Then follow `num_conv_layers` residual convolution blocks with
    an inner width of `conv_channels`, which see each cell's neighbours, and `num_hidden_layers`
    transformer blocks, which see the whole picture.
    """

    model_type = "grid_vision"
    base_config_key = "vision_config"

    image_size: int = 128
    num_channels: int = 3
    stem_channels: list[int] | tuple[int, ...] = (32, 64, 128)
    hidden_size: int = 192
    num_conv_layers: int = 4
    conv_channels: int = 96
    intermediate_size: int = 576
    num_hidden_layers: int = 1
    num_attention_heads: int = 3
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @property
    def patch_size(self) -> int:
        """Pixels of the picture's side that one grid cell covers."""
        return 2 ** len(self.stem_channels)

    @property
    def grid_size(self) -> int:
        """Cells along one side."""
        return self.image_size // self.patch_size


@strict
class VisualPrefixConfig(LlavaConfig):
    """Any vision encoder, one of our projectors and any decoder-only text model.

    projector_type: the kind of projector (see `projectors`).
    projector_hidden_size: width inside an `mlp`; 0 means the text model's width.
    projector_factor: how many cells along a side the `shuffle_*` kinds merge.
    projector_tokens: prefix tokens per picture of `perceiver` and `attention_pool`.
    projector_layers, projector_heads: depth and heads of the attention kinds.
    projector_positions: learned row and column embeddings, added to the prefix tokens of
        a grid kind and to the keys of an attention kind.
    projector_position_scale: standard deviation of these embeddings before training;
        they must not be negligible beside the tokens to which they are added.
    image_size: side of the square picture in pixels; 0 means the size in
        `vision_config` (CNN configurations have none).
    """

    model_type = "visual_prefix"

    projector_type: ProjectorType = "mlp"
    projector_hidden_size: int = 0
    projector_factor: int = 2
    projector_tokens: int = 64
    projector_layers: int = 2
    projector_heads: int = 8
    projector_positions: bool = False
    projector_position_scale: float = 0.02
    image_size: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.image_seq_length = prefix_tokens(self)


def prefix_tokens(config: VisualPrefixConfig) -> int:
    """The number of visual prefix tokens of a picture.

    Raises ModelError if the projector's sizes do not fit the encoder or the text model.
    """
    encoder = encoder_for(config.vision_config, config.image_size)
    if config.projector_type in ("perceiver", "attention_pool"):
        if config.text_config.hidden_size % config.projector_heads:
            raise ModelError(
                f"projector_heads = {config.projector_heads} does not divide the text model's "
                f"width {config.text_config.hidden_size}: choose a divisor of it."
            )
        return config.projector_tokens
    factor, _ = grid_projector_sizes(config)
    if encoder.grid % factor:
        raise ModelError(
            f"projector_factor = {factor} does not divide the encoder's grid of "
            f"{encoder.grid} x {encoder.grid}: choose a divisor of {encoder.grid}."
        )
    return (encoder.grid // factor) ** 2


def grid_projector_sizes(config: VisualPrefixConfig) -> tuple[int, int]:
    """(cells that are merged along one side, width inside the MLP or 0) of a `linear`, `mlp` or `shuffle_*`."""
    factor = config.projector_factor if config.projector_type.startswith("shuffle") else 1
    hidden = 0
    if config.projector_type.endswith("mlp"):
        hidden = config.projector_hidden_size or config.text_config.hidden_size
    return factor, hidden
