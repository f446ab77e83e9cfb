"""The configuration of a visual-prefix model: a tower, a projector, a decoder.

`VisualPrefixConfig` is LLaVA's configuration with our projector in the place of
its own, so that the built-in model and a 7B one differ in a file only.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig, PreTrainedConfig

ProjectorType = Literal[
    "linear", "mlp", "shuffle_linear", "shuffle_mlp", "perceiver", "attention_pool"
]


@strict
class GridVisionConfig(PreTrainedConfig):
    """The built-in vision tower: a convolution stem, then a small ViT over its grid.

    `stem_channels` names the width after each stride-2 convolution, so the stem
    reduces a picture's side by `2 ** len(stem_channels)`. `num_conv_layers` residual
    convolution blocks of width `conv_channels` inside look at each cell's
    neighbours, `num_hidden_layers` transformer blocks at the whole picture.
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
    """Any vision encoder + one of our projectors + any decoder-only text model.

    projector_type: the kind (see `projectors`).
    projector_hidden_size: width inside an `mlp`; 0 means the text model's width.
    projector_factor: how many cells along a side the `shuffle_*` kinds merge.
    projector_tokens: prefix tokens per picture of `perceiver` and `attention_pool`.
    projector_layers, projector_heads: depth and heads of the attention kinds.
    projector_positions: learned row and column embeddings, on the prefix tokens of
        a grid kind and on the keys of an attention kind.
    projector_position_scale: standard deviation of these embeddings before training;
        they have to be heard beside the tokens they are added to.
    image_size: side of the square picture in pixels; 0 means what `vision_config`
        says (CNN configurations say nothing).
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
        from mmchat.model.projectors import prefix_tokens  # it reads this configuration

        self.image_seq_length = prefix_tokens(self)
