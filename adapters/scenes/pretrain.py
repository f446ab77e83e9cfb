"""Trains the built-in model from scratch.

    python adapters/scenes/pretrain.py DATA --out DIR [--recipe FILE] [--set KEY=VALUE]

DATA is a folder that draw.py wrote, with `train/` and `held-out/`. First a tokenizer is trained on its
texts and a base of random weights is built ([base] in the recipe). Then the vision tower is trained alone
([cells], tower.py). The rest is mmchat's own trainer on that base, with the recipe's [[stages]], as for
any other base. The finished model is DIR/model. To resume a stopped run, start it again.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tower import CellsConfig, train_tower
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.data import read_splits
from mmchat.data.types import Example
from mmchat.errors import DataError, MmchatError, RecipeError, describe_error
from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.training.config_table import Table, parse, read_tables
from mmchat.training.finetune import Trainer, TrainingPaused
from mmchat.training.finetune_config import FinetuneConfig
from mmchat.training.prepare import prepare
from mmchat.training.run_folder import RunFolder, Status

PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TOKENIZER_TEXTS = 200_000
# One token begins a turn and one ends it, which leaves most of a row to the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class BaseConfig(Table, frozen=True):
    """The [base] table of the recipe: fields of `GridVisionConfig`, of the text model's configuration
    (with `model_type`), and the `projector_*` fields of `VisualPrefixConfig`."""

    vocabulary_size: int
    """Size of the byte-level BPE vocabulary, which is trained on the data's texts."""
    vision: dict[str, Any]
    text: dict[str, Any]
    projector: dict[str, Any]


class PretrainConfig(Table, frozen=True):
    """The tables of the recipe that are not the trainer's."""

    base: BaseConfig
    cells: CellsConfig


def read_recipe(file: Path, overrides: Iterable[str] = ()) -> tuple[PretrainConfig, FinetuneConfig]:
    """Reads a recipe and applies `overrides`; raises RecipeError if it cannot be used."""
    tables = read_tables(file)
    pretrain_tables = {name: tables.pop(name, {}) for name in ("base", "cells")}
    first = [one for one in overrides if one.startswith(("base.", "cells."))]
    rest = [one for one in overrides if one not in first]
    return (
        parse(pretrain_tables, PretrainConfig, str(file), first),
        parse(tables, FinetuneConfig, str(file), rest),
    )


def pretrain(
    data: Path, recipe: Path, out: Path, overrides: Iterable[str] = (), say: Any = print
) -> Path:
    """Trains the model, or resumes the training; -> the finished model's folder.

    Raises MmchatError for errors that the user can correct, TrainingPaused after SIGINT or SIGTERM.
    """
    pretrain_config, config = read_recipe(recipe, overrides)
    folder = RunFolder(out)
    with folder.working():
        train, held_out = read_splits(data)
        if held_out is None:
            raise DataError(f"{data} has no folder held-out/: draw the data again.")
        base = out / "base"
        if not (base / "config.json").is_file():
            build_base(pretrain_config, config.seed, train.examples, data / "train", out, say)
        config = msgspec.structs.replace(config, model=str(base))
        prepared = prepare(config, train, held_out.examples, say=say)
        status = Status(config.name, config.model, "preparing")
        trainer = Trainer(prepared, train.sha256, folder, status, say=say, show=_show(say))
        model = trainer.run()
        tables = {
            **msgspec.to_builtins(config),
            **msgspec.to_builtins(pretrain_config),
            "model": "",
        }
        (model / "recipe.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    return model


def _show(say: Any) -> Any:
    last = 0

    def show(status: Status, lines: Any) -> None:
        nonlocal last
        if status.state == "training" and status.step >= last + 20:
            last = status.step
            left = (status.seconds_left or 0) / 60
            say(
                f"{status.stage} {status.step}/{status.steps} loss={status.loss:.3f} {left:.0f} min"
            )

    return show


def build_base(
    pretrain_config: PretrainConfig,
    seed: int,
    examples: Iterable[Example],
    arrays: Path,
    out: Path,
    say: Any,
) -> None:
    """Writes `out/base`: tokenizer, random text model and projector, and the trained tower."""
    tokenizer_folder = out / "tokenizer"
    if not (tokenizer_folder / "tokenizer.json").is_file():
        context = int(pretrain_config.base.text.get("max_position_embeddings", 2048))
        tokenizer = train_tokenizer(_texts(examples), pretrain_config.base.vocabulary_size, context)
        tokenizer.save_pretrained(tokenizer_folder)
    # A resumed run keeps the tokenizer that its weights were trained with.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    model_config = build_config(pretrain_config.base, tokenizer)
    torch.manual_seed(seed)
    model = VisualPrefixForConditionalGeneration(model_config)
    train_tower(model, pretrain_config.cells, seed, arrays, out / "cells", say)
    partial = out / ".base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_base(model, build_processor(tokenizer, model_config), partial)
    partial.rename(out / "base")


def _texts(examples: Iterable[Example]) -> list[str]:
    """The texts of the first conversations."""
    texts = [
        part
        for example, _ in zip(examples, range(TOKENIZER_TEXTS), strict=False)
        for turn in example.turns
        for part in turn.parts
        if isinstance(part, str)
    ]
    if not texts:
        raise DataError("The data has no text to train a tokenizer on: draw it again.")
    return texts


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, context_length: int) -> Any:
    """Trains a byte-level BPE, which covers all of Unicode, with `vocabulary_size` tokens.

    Capitals and digits are always single tokens, so that the model reads a written word letter by letter
    instead of guessing it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, END, IMAGE, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[IMAGE, *ROLES],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: Any, config: VisualPrefixConfig) -> VisualPrefixProcessor:
    """The processor: pictures are resized to the tower's square, as SigLIP does."""
    side = config.vision_config.image_size
    return VisualPrefixProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        prefix_tokens=config.image_seq_length,
        image_token=IMAGE,
    )


def build_config(base: BaseConfig, tokenizer: Any) -> VisualPrefixConfig:
    """The model configuration; raises RecipeError if the [base] table is wrong."""
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
    except Exception as error:  # each configuration class validates its fields in its own way
        raise RecipeError(
            f"The recipe's [base] cannot be used: {describe_error(error, 240)}"
        ) from error


def save_base(model: Any, processor: VisualPrefixProcessor, folder: Path) -> None:
    """Writes a complete model folder with float32 weights."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("recipe.toml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        print(pretrain(options.data, options.recipe, options.out, options.overrides, say))
    except TrainingPaused:
        say("Paused: run the same command again to continue.")
        return 130
    except MmchatError as error:
        say(f"pretrain: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
