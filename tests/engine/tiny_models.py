"""Tiny random models of every architecture, and prompts for them, without files or tokenizers.

The weights are spread with a deviation of 0.3 and more: at the usual 0.02 every token comes out
the same, and nothing would be tested.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Idefics3Config,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    LlavaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    SiglipVisionConfig,
)

from mmchat.model.configuration import VisualPrefixConfig

VOCABULARY = 120
IMAGE = 119
SIDE = 16
PATCH = 4

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


@dataclass
class TinySpan:
    start: int
    length: int
    sha256: str


@dataclass
class TinyPrompt:
    """What `mmchat.prompt.model_inputs` would prepare."""

    input_ids: Tensor
    model_inputs: dict[str, Tensor] = field(default_factory=dict)
    images: list[TinySpan] = field(default_factory=list)

    @property
    def keys(self) -> list[tuple[int, str | None]]:
        keys: list[tuple[int, str | None]] = [(int(i), None) for i in self.input_ids[0]]
        for span in self.images:
            for place in range(span.start, span.start + span.length):
                keys[place] = (keys[place][0], span.sha256)
        return keys


def spread(model: Any, seed: int = 0) -> Any:
    """`model` with wide random weights, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 0.35 if "embed" in name else 0.8  # else each token mostly repeats itself
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    model.generation_config.eos_token_id = None  # the length is the test's
    return model.eval()


def text_config(name: str) -> Any:
    sliding = {"sliding_window": 8, "head_dim": 8}
    return {
        "llama": lambda: LlamaConfig(**_TEXT),
        "qwen2": lambda: Qwen2Config(**_TEXT),
        "qwen3": lambda: Qwen3Config(**_TEXT, head_dim=8),
        "mistral": lambda: MistralConfig(**_TEXT, sliding_window=8),
        "gemma2": lambda: Gemma2Config(**_TEXT, **sliding, query_pre_attn_scalar=8),
        "gemma3": lambda: Gemma3TextConfig(
            **_TEXT,
            **sliding,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "lfm2": lambda: Lfm2Config(
            **_TEXT, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
        ),
        "jamba": lambda: JambaConfig(
            **_TEXT,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_d_state=8,
            mamba_dt_rank=4,
            num_experts=1,
        ),
        "mamba": lambda: MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8
        ),
    }[name]()


TEXT_NAMES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3"]
SLIDING_NAMES = ["mistral", "gemma2", "gemma3"]
RECURRENT_NAMES = ["lfm2", "jamba", "mamba"]
"""A convolution, a hybrid of attention and Mamba, and nothing but Mamba."""


def text_model(name: str) -> Any:
    return spread(AutoModelForCausalLM.from_config(text_config(name)))


def text_prompt(seed: int = 0, length: int = 13) -> TinyPrompt:
    generator = torch.Generator().manual_seed(seed)
    return TinyPrompt(torch.randint(3, IMAGE, (1, length), generator=generator))


def _picture_prompt(tokens: int, pixels: Callable[[Tensor], dict[str, Tensor]]) -> Any:
    def prompt(
        text_seed: int = 0,
        picture_seeds: tuple[int, ...] = (0,),
        text_length: int = 6,
        more: Sequence[int] = (),
    ) -> TinyPrompt:
        ids = text_prompt(text_seed, text_length).input_ids[0].tolist()
        spans = []
        for seed in picture_seeds:
            ids += [5]
            spans.append(TinySpan(len(ids), tokens, f"{seed:064d}"))
            ids += [IMAGE] * tokens
        ids += [*text_prompt(text_seed + 1, 5).input_ids[0].tolist(), *more]
        pictures = torch.stack(
            [
                torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
                for seed in picture_seeds
            ]
        )
        return TinyPrompt(torch.tensor([ids]), pixels(pictures), spans)

    return prompt


def _qwen_pixels(pictures: Tensor) -> dict[str, Tensor]:
    """Patches in merge order, twice in time; their order does not matter to noise."""
    side = SIDE // PATCH
    patches = pictures.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 1, PATCH, PATCH)
    return {
        "pixel_values": patches.expand(-1, 3, 2, PATCH, PATCH).flatten(1),
        "image_grid_thw": torch.tensor([[1, side, side]] * len(pictures)),
    }


def visual_prefix_model(text: str = "llama") -> Any:
    import mmchat.model.visual_prefix  # noqa: F401 (registers the class)

    config = VisualPrefixConfig(
        vision_config=SiglipVisionConfig(**_VISION),
        text_config=text_config(text),
        projector_type="mlp",
        image_size=SIDE,
        image_token_id=IMAGE,
    )
    # Seeds with which picture and words both show in the answer.
    return spread(AutoModelForImageTextToText.from_config(config), 0 if text == "gemma2" else 2)


def _llava() -> Any:
    return AutoModelForImageTextToText.from_config(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**_VISION),
            text_config=LlamaConfig(**_TEXT),
            image_token_index=IMAGE,
            image_token_id=IMAGE,
            vision_feature_layer=-1,
        )
    )


def _idefics3() -> Any:
    return AutoModelForImageTextToText.from_config(
        Idefics3Config(
            vision_config=_VISION,
            text_config=LlamaConfig(**_TEXT),
            scale_factor=2,
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )


def _qwen2_vl() -> Any:
    return AutoModelForImageTextToText.from_config(
        Qwen2VLConfig(
            text_config={
                **_TEXT,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [1, 1, 2],
                    "rope_theta": 1e4,
                },
            },
            vision_config={
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": PATCH,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
            image_token_id=IMAGE,
            tie_word_embeddings=False,
            video_token_id=118,
            vision_start_token_id=5,
            vision_end_token_id=6,
        )
    )


def _gemma3() -> Any:
    return AutoModelForImageTextToText.from_config(
        Gemma3Config(
            text_config=text_config("gemma3").to_dict(),
            vision_config=SiglipVisionConfig(**_VISION).to_dict(),
            mm_tokens_per_image=4,
            tie_word_embeddings=False,
            image_token_id=IMAGE,
            image_token_index=IMAGE,
        )
    )


@dataclass(frozen=True)
class TinyStock:
    build: Callable[[], Any]
    prompt: Callable[..., TinyPrompt]
    token_types: str = ""

    def make(self) -> Any:
        return spread(self.build(), 2)


def _plain(pictures: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": pictures}


visual_prefix_prompt = _picture_prompt((SIDE // PATCH) ** 2, _plain)

STOCK = {
    "llava": TinyStock(_llava, _picture_prompt(16, _plain)),
    "idefics3": TinyStock(
        _idefics3, _picture_prompt(4, lambda pictures: {"pixel_values": pictures[None]})
    ),
    "qwen2_vl": TinyStock(_qwen2_vl, _picture_prompt(4, _qwen_pixels), "mm_token_type_ids"),
    "gemma3": TinyStock(_gemma3, _picture_prompt(4, _plain), "token_type_ids"),
}
