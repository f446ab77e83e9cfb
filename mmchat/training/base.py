"""A base model from nothing: tokenizer, processor, random weights."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.errors import RecipeError
from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.training.recipe import Base

PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

# One token opens a turn and one ends it: a short template leaves the row to the words.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, context_length: int) -> Any:
    """A byte-level BPE (any Unicode can be typed) of `vocabulary_size` tokens.

    Capitals and digits are tokens of their own, so that a written word is read
    letter by letter and not guessed whole.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, END, IMAGE, *ROLES.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[IMAGE, *ROLES.values()],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: Any, config: VisualPrefixConfig) -> VisualPrefixProcessor:
    """The processor of a base: pictures are squashed to the tower's square, as SigLIP does."""
    side = config.vision_config.image_size
    return VisualPrefixProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        prefix_tokens=config.image_seq_length,
        image_token=IMAGE,
    )


def build_config(base: Base, tokenizer: Any) -> VisualPrefixConfig:
    """The configuration that the recipe's tables describe. Raises RecipeError for a wrong one."""
    try:
        text = AutoConfig.for_model(
            **{
                "model_type": "llama",
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": None,
                **base.text,
            }
        )
        return VisualPrefixConfig(
            vision_config=GridVisionConfig(**base.vision),
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **base.projector,
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The recipe's [base] cannot be used: {error}") from error


def build_model(config: VisualPrefixConfig, seed: int) -> VisualPrefixForConditionalGeneration:
    """Random weights, float32."""
    torch.manual_seed(seed)
    return VisualPrefixForConditionalGeneration(config)


def save_base(model: Any, processor: VisualPrefixProcessor, folder: Path) -> None:
    """Writes a complete model folder: weights in bfloat16, configuration, processor."""
    folder.mkdir(parents=True, exist_ok=True)
    # A copy of the module, not of its state: tied weights stay one and are written once.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
