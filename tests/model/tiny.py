"""Tiny random checkpoints of real architectures, with the same files as published ones.

Each builder writes a whole folder (config, safetensors, tokenizer with a chat
template, image processor) and returns it; `build(kind, folder)` chooses by name.
Weights are drawn with a large standard deviation: with the usual 0.02 every
token is the same, and a test of decoding would test nothing.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mmchat.turns import ImagePart

WORDS = (
    "what colour is the circle? it is red. the square is blue and big. "
    "user assistant system look at this picture and that one: how many are there? "
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = CHATML.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
LLAVA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% elif m.role == 'assistant' %}"
    "ASSISTANT: {% endif %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}"
    "{{ '</s>' if m.role == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}"
    "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% elif p.type == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = (messages[0].content if messages[0].content is string "
    "else messages[0].content[0].text) + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first else '' }}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<start_of_image>{% else %}{{ p.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def tokenizer(
    template: str | None, specials: Sequence[str], *, eos: str, bos: str | None = None, **names: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with `specials` as special tokens; `names` are further named tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [WORDS] * 3,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[AddedToken(word, special=True, normalized=False) for word in specials],
        ),
    )
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        bos_token=bos,
        pad_token=specials[0],
        extra_special_tokens=names,
    )
    built.chat_template = template
    return built


def spread(model: PreTrainedModel, std: float = 0.3, seed: int = 0) -> PreTrainedModel:
    """Draws every matrix again, with standard deviation `std`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, std, generator=generator)
    return model.eval()


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture of random colours."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB")


def shown(seed: int = 0, size: tuple[int, int] = (48, 40)) -> ImagePart:
    """`picture` as PNG bytes in a turn."""
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    data = buffer.getvalue()
    return ImagePart(hashlib.sha256(data).hexdigest(), "image/png", data)


def _text(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tok),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        **more,
    }


def _save(
    folder: Path,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerFast,
    image_processor: Any = None,
    processor: dict[str, Any] | None = None,
) -> Path:
    model.generation_config.eos_token_id = tok.eos_token_id
    model.generation_config.bos_token_id = tok.bos_token_id
    model.generation_config.pad_token_id = tok.pad_token_id
    spread(model).save_pretrained(folder)
    template, tok.chat_template = tok.chat_template, None
    if processor is None:
        tok.chat_template = template
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tok.save_pretrained(folder)
    if image_processor is not None:
        image_processor.save_pretrained(folder)
        file = folder / "preprocessor_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        # Published folders name the class without its backend.
        settings["image_processor_type"] = settings["image_processor_type"].removesuffix("Pil")
        file.write_text(json.dumps(settings), encoding="utf-8")
    if processor is not None:
        file = folder / "processor_config.json"
        file.write_text(json.dumps(processor), encoding="utf-8")
    return folder


def llama(folder: Path, *, template: str | None = LLAMA3, tied: bool = False) -> Path:
    """Text only, as in Llama 3."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tok = tokenizer(
        template,
        [
            "<|end_of_text|>",
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
    )
    return _save(folder, LlamaForCausalLM(LlamaConfig(**_text(tok), tie_word_embeddings=tied)), tok)


def llava(folder: Path, *, template: str | None = LLAVA) -> Path:
    """As LLaVA 1.5: CLIP tower, MLP, Llama; 16 tokens per picture."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Model
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tok = tokenizer(template, ["<pad>", "<s>", "</s>", "<image>"], eos="</s>", bos="<s>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_vision(), projection_dim=64),
        text_config=LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": 8,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
        "image_token": "<image>",
    }
    return _save(folder, Model(config), tok, CLIPImageProcessorPil(**sizes), processor)


def smolvlm(folder: Path, *, template: str | None = SMOLVLM) -> Path:
    """As SmolVLM (Idefics3): SigLIP-like tower, pixel shuffle, Llama; pictures in tiles."""
    from transformers import LlamaConfig, SmolVLMConfig
    from transformers import SmolVLMForConditionalGeneration as Model
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tok = _idefics_tokenizer(template)
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**_vision()),
        text_config=LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    return _save(folder, Model(config), tok, SmolVLMImageProcessorPil(**sizes), processor)


def idefics3(folder: Path, *, template: str | None = SMOLVLM) -> Path:
    """As Idefics3, the architecture of SmolVLM-256M-Instruct."""
    from transformers import Idefics3Config, LlamaConfig
    from transformers import Idefics3ForConditionalGeneration as Model
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    tok = _idefics_tokenizer(template)
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**_vision()),
        text_config=LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    return _save(folder, Model(config), tok, Idefics3ImageProcessorPil(**sizes), processor)


def _idefics_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    around = ["<fake_token_around_image>", "<image>", "<global-img>"]
    return tokenizer(
        template,
        ["<pad>", "<|im_start|>", "<end_of_utterance>", *around, *tiles],
        eos="<end_of_utterance>",
        bos="<|im_start|>",
    )


def qwen2_vl(folder: Path, *, template: str | None = QWEN) -> Path:
    """As Qwen2-VL: pictures of any size, 3-D positions."""
    from transformers import Qwen2VLConfig
    from transformers import Qwen2VLForConditionalGeneration as Model

    return _qwen(folder, template, Qwen2VLConfig, Model, "Qwen2VLProcessor")


def qwen2_5_vl(folder: Path, *, template: str | None = QWEN) -> Path:
    """As Qwen2.5-VL: like Qwen2-VL, with windows in the tower."""
    from transformers import Qwen2_5_VLConfig
    from transformers import Qwen2_5_VLForConditionalGeneration as Model

    return _qwen(folder, template, Qwen2_5_VLConfig, Model, "Qwen2_5_VLProcessor")


def _qwen(folder: Path, template: str | None, config_class: Any, model: Any, name: str) -> Path:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tok = tokenizer(
        template, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *vision], eos="<|im_end|>"
    )
    tower = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2}
    if "5" in name:
        tower |= {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128}
        tower |= {"window_size": 16, "fullatt_block_indexes": [1]}
    else:
        tower |= {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = config_class(
        text_config=_text(tok, rope_parameters=rope),
        vision_config=tower,
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    pictures = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=16 * 16, max_pixels=48 * 48)
    return _save(folder, model(config), tok, pictures, {"processor_class": name})


def gemma3(folder: Path, *, template: str | None = GEMMA) -> Path:
    """As Gemma 3: SigLIP tower, 4 tokens per picture, full attention inside a picture."""
    from transformers import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig
    from transformers import Gemma3ForConditionalGeneration as Model
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    around = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tok = tokenizer(
        template,
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *around],
        eos="<end_of_turn>",
        bos="<bos>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            **_text(tok, head_dim=16, sliding_window=64, query_pre_attn_scalar=16)
        ),
        vision_config=SiglipVisionConfig(**_vision(vision_use_head=False)),
        mm_tokens_per_image=4,
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tok.convert_tokens_to_ids("<image_soft_token>"),
    )
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    return _save(folder, Model(config), tok, pictures, processor)


def visual_prefix(folder: Path, *, template: str | None = CHATML) -> Path:
    """The visual-prefix model: grid tower, shuffling projector, Llama; 4 tokens per picture."""
    from transformers import LlamaConfig
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig
    from mmchat.model.processor import VisualPrefixProcessor
    from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration as Model

    tok = tokenizer(template, ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"], eos="<|im_end|>")
    config = VisualPrefixConfig(
        vision_config=GridVisionConfig(
            image_size=32,
            stem_channels=[16, 32, 64],
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
        ),
        text_config=LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        projector_type="shuffle_mlp",
        projector_positions=True,
    )
    processor = VisualPrefixProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tok,
        chat_template=template,
        prefix_tokens=config.image_seq_length,
    )
    _save(folder, Model(config), tok)
    processor.save_pretrained(folder)
    return folder


SEEING: dict[str, Callable[[Path], Path]] = {
    "visual_prefix": visual_prefix,
    "llava": llava,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "gemma3": gemma3,
}
KINDS: dict[str, Callable[[Path], Path]] = {**SEEING, "llama": llama}


def build(kind: str, folder: Path) -> Path:
    """Writes the tiny checkpoint `kind` (a key of `KINDS`) into `folder`."""
    return KINDS[kind](folder)
