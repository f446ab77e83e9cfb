"""Published models without their weights: the configuration of each, and files that are only a header.

The configurations are those of the models in `mmchat.model.catalogue`, without what transformers fills
in. `python -m tests.memory.published` writes the sizes of all of them to
`mmchat/model/offered_models.json`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mmchat.memory.model_dims import ModelDims, model_dims
from mmchat.model import catalogue
from mmchat.model_files import TensorInfo

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by its name."""


def _smol_text(**sizes: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49280,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        **sizes,
    }


_SMOL_VISION = {
    "model_type": "idefics3_vision",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN25_VISION = {
    "depth": 32,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}

CONFIGS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": {
        "model_type": "idefics3",
        "scale_factor": 4,
        "image_token_id": 49190,
        "tie_word_embeddings": False,
        "text_config": _smol_text(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        ),
        "vision_config": _SMOL_VISION,
    },
    "HuggingFaceTB/SmolVLM-500M-Instruct": {
        "model_type": "idefics3",
        "scale_factor": 4,
        "image_token_id": 49190,
        "tie_word_embeddings": False,
        "text_config": _smol_text(
            hidden_size=960,
            intermediate_size=2560,
            num_hidden_layers=32,
            num_attention_heads=15,
            num_key_value_heads=5,
        ),
        "vision_config": _SMOL_VISION,
    },
    "HuggingFaceTB/SmolVLM-Instruct": {
        "model_type": "idefics3",
        "scale_factor": 3,
        "image_token_id": 49153,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 49155,
            "max_position_embeddings": 16384,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "idefics3_vision",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
    },
    "Qwen/Qwen2-VL-2B-Instruct": {
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 1536,
            "mlp_ratio": 4,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
    },
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "tie_word_embeddings": True,
        "vision_config": {**_QWEN25_VISION, "out_hidden_size": 2048},
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 128000,
        "tie_word_embeddings": False,
        "vision_config": {**_QWEN25_VISION, "out_hidden_size": 3584},
    },
    "google/gemma-3-4b-it": {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
        "vision_config": {**_SIGLIP, "num_hidden_layers": 27, "image_size": 896},
    },
    "llava-hf/llava-1.5-7b-hf": {
        "model_type": "llava",
        "torch_dtype": "float16",
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
    },
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": {
        "model_type": "llava_onevision",
        "torch_dtype": "float16",
        "image_token_index": 151646,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 152000,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
        "vision_config": {**_SIGLIP, "num_hidden_layers": 26, "image_size": 384},
    },
}
PARAMETERS = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": 256_484_928,
    "HuggingFaceTB/SmolVLM-500M-Instruct": 507_482_304,
    "HuggingFaceTB/SmolVLM-Instruct": 2_246_272_880,
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "google/gemma-3-4b-it": 4_300_079_472,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
}
"""Parameters as stated on the models' pages, if they are; a check of the configurations."""


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a saved model of `config`; nothing is allocated."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    whole = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(whole)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if whole.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def dims(name: str) -> ModelDims:
    """The sizes of a published model."""
    config = CONFIGS[name]
    return model_dims(config, [TensorInfo(n, _dtype(config), s) for n, s in shapes(config).items()])


def _dtype(config: Mapping[str, Any]) -> str:
    return "F16" if config.get("torch_dtype") == "float16" else "BF16"


def write_headers(folder: Path, config: Mapping[str, Any], tensors: Shapes) -> Path:
    """A model folder without data: config.json, a real header, and a sparse file instead of numbers."""
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": _dtype(config), "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def main() -> None:
    """Writes the sizes of all published models, one per line."""
    lines = [
        f"{json.dumps(name)}: {msgspec.json.encode(dims(name)).decode()}"
        for name in sorted(CONFIGS)
    ]
    Path(catalogue.__file__).with_name("offered_models.json").write_text(
        "{\n" + ",\n".join(lines) + "\n}\n", "utf-8"
    )


if __name__ == "__main__":
    main()
