"""Tiny configurations of every encoder and decoder kind, for the matrix."""

from collections.abc import Callable
from typing import Any

from transformers import (
    CLIPVisionConfig,
    CohereConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    ResNetConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)

from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig, grid_projector_sizes
from mmchat.model.encoders import encoder_for

_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}
_TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE_TOKEN = 5

ENCODERS: dict[str, Callable[[], Any]] = {
    "grid": lambda: GridVisionConfig(
        image_size=32,
        stem_channels=[8, 16, 16],
        hidden_size=24,
        conv_channels=8,
        num_conv_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.1,
    ),
    "clip": lambda: CLIPVisionConfig(**_VIT, intermediate_size=48),
    "siglip": lambda: SiglipVisionConfig(**_VIT, intermediate_size=48, vision_use_head=False),
    "siglip2": lambda: Siglip2VisionConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        patch_size=8,
        num_patches=16,
        vision_use_head=False,
    ),
    "dinov2": lambda: Dinov2Config(**_VIT, mlp_ratio=2),
    "dinov2_registers": lambda: Dinov2WithRegistersConfig(
        **_VIT, mlp_ratio=2, num_register_tokens=3
    ),
    "convnext": lambda: ConvNextConfig(
        hidden_sizes=[8, 16, 24, 24], depths=[1, 1, 1, 1], image_size=128, initializer_range=0.3
    ),
    "resnet": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24, 24, 24], depths=[1, 1, 1, 1], layer_type="basic"
    ),
}
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_TEXT),
    "llama_tied": lambda: LlamaConfig(**_TEXT, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_TEXT),
    "qwen3": lambda: Qwen3Config(**_TEXT),
    "mistral": lambda: MistralConfig(**_TEXT, sliding_window=64),
    "gemma2": lambda: Gemma2Config(**_TEXT, query_pre_attn_scalar=16, sliding_window=64),
    "gemma3": lambda: Gemma3TextConfig(
        **_TEXT, query_pre_attn_scalar=16, sliding_window=64, final_logit_softcapping=7.0
    ),
    "granite": lambda: GraniteConfig(**_TEXT, logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere": lambda: CohereConfig(**_TEXT, logit_scale=0.25),
    "phi": lambda: PhiConfig(**_TEXT, partial_rotary_factor=0.5),
}
PROJECTORS = ("linear", "mlp", "shuffle_linear", "shuffle_mlp", "perceiver", "attention_pool")


def config(
    projector: str = "mlp", encoder: str = "grid", decoder: str = "llama", **more: Any
) -> VisualPrefixConfig:
    """A tiny visual-prefix configuration. CNN kinds get 128-pixel pictures for their stride of 32."""
    side = 128 if encoder in ("convnext", "resnet") else 0
    return VisualPrefixConfig(
        **{
            "vision_config": ENCODERS[encoder](),
            "text_config": DECODERS[decoder](),
            "projector_type": projector,
            "projector_tokens": 3,
            "projector_heads": 4,
            "image_size": side,
            "image_token_index": IMAGE_TOKEN,
            **more,
        }
    )


def parameter_count(config: VisualPrefixConfig) -> int:
    """The number of parameters of the projector that `config` names."""
    encoder = encoder_for(config.vision_config, config.image_size)
    vision, text = encoder.width, config.text_config.hidden_size
    if config.projector_type in ("perceiver", "attention_pool"):
        perceiver = config.projector_type == "perceiver"
        attention = 2 * text * text + 2 * vision * text + 2 * (text + vision)
        feed_forward = 8 * text * text + 2 * text if perceiver else 0
        rounds = config.projector_layers if perceiver else 1
        positions = 2 * encoder.grid * vision if config.projector_positions else 0
        queries = config.projector_tokens * text
        return rounds * (attention + feed_forward) + positions + queries + 2 * text
    factor, hidden = grid_projector_sizes(config)
    bias = int(config.multimodal_projector_bias)
    joined = vision * factor * factor
    count = (joined + bias) * (hidden or text)
    if hidden:
        count += (hidden + bias) * text
    if config.projector_positions:
        count += 2 * (encoder.grid // factor) * text
    return count
