"""Makes the built-in model from nothing.

    python adapters/scenes/pretrain.py DATA --out DIR [--recipe FILE] [--set KEY=VALUE]

DATA is what draw.py wrote: `train/` and `held-out/`. First a tokenizer is trained on its texts and a
base of random weights is built (the recipe's [base]). Then the vision tower alone learns the label of
every cell of its grid ([cells]): dense labels make a tower see in minutes what answers would teach it in
hours. The rest is mmchat's own trainer on that base, with the recipe's [[stages]], the same as for any
other base. The finished model is DIR/model. A run that was ended goes on when it is started again.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmchat.data import read_splits
from mmchat.data.types import Example
from mmchat.errors import DataError, MmchatError, RecipeError
from mmchat.model.configuration import GridVisionConfig, VisualPrefixConfig
from mmchat.model.processor import VisualPrefixProcessor
from mmchat.model.quantization import compute_dtype
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)
from mmchat.training.config_table import Table, parse, read_tables, require
from mmchat.training.finetune import Paused, Trainer
from mmchat.training.finetune_config import FinetuneConfig
from mmchat.training.losses import autocast
from mmchat.training.optimizer import build_optimizers
from mmchat.training.prepare import prepare
from mmchat.training.run_folder import RunFolder, Status
from mmchat.training.train_step import schedule_factor

PAD, END, IMAGE = "<|pad|>", "<|end|>", "<image>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TOKENIZER_TEXTS = 200_000
# One token opens a turn and one ends it: a short template leaves the row to the words.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Base(Table, frozen=True):
    """A base of random weights: the fields of `GridVisionConfig`, of the text model's configuration
    (with `model_type`) and the `projector_*` fields of `VisualPrefixConfig`."""

    vocabulary_size: int
    """Size of the byte-level BPE that is trained on the data's texts."""
    vision: dict[str, Any]
    text: dict[str, Any]
    projector: dict[str, Any]


class Cells(Table, frozen=True):
    """The tower's own training, on the label of every cell."""

    steps: int
    pictures: int
    """Of a step."""
    learning_rate: float
    warmup: float = 0.02
    decay: float = 0.4
    weight_decay: float = 0.05
    clip: float = 1.0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for field in ("steps", "pictures", "checkpoint_every"):
            require(f"cells.{field}", getattr(self, field), getattr(self, field) >= 1, "at least 1")


class PretrainConfig(Table, frozen=True):
    """What stands in the recipe beside the trainer's own tables."""

    base: Base
    cells: Cells


def read_recipe(file: Path, overrides: Iterable[str] = ()) -> tuple[PretrainConfig, FinetuneConfig]:
    """Raises RecipeError for what cannot be read or used."""
    tables = read_tables(file)
    own = {name: tables.pop(name, {}) for name in ("base", "cells")}
    first = [one for one in overrides if one.startswith(("base.", "cells."))]
    rest = [one for one in overrides if one not in first]
    return (
        parse(own, PretrainConfig, str(file), first),
        parse(tables, FinetuneConfig, str(file), rest),
    )


def pretrain(
    data: Path, recipe: Path, out: Path, overrides: Iterable[str] = (), say: Any = print
) -> Path:
    """Runs all of it, or what is left of it; -> the finished model's folder.

    Raises MmchatError for what a person can correct, Paused after SIGINT or SIGTERM.
    """
    own, config = read_recipe(recipe, overrides)
    folder = RunFolder(out)
    with folder.working():
        train, held_out = read_splits(data)
        if held_out is None:
            raise DataError(f"{data} has no folder held-out: draw the data again.")
        base = out / "base"
        if not (base / "config.json").is_file():
            build_base(own, config.seed, train.examples, data / "train", out, say)
        config = msgspec.structs.replace(config, model=str(base))
        prepared = prepare(config, train, held_out.examples, say=say)
        status = Status(config.name, config.model, "preparing", started=time.time())
        trainer = Trainer(prepared, train.sha256, folder, status, say=say, show=_show(say))
        model = trainer.run()
        tables = {**msgspec.to_builtins(config), **msgspec.to_builtins(own), "model": ""}
        (model / "recipe.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    return model


def _show(say: Any) -> Any:
    shown = [0]

    def show(status: Status, lines: Any) -> None:
        if status.state == "training" and status.step >= shown[0] + 20:
            shown[0] = status.step
            left = (status.seconds_left or 0) / 60
            say(
                f"{status.stage} {status.step}/{status.steps} loss={status.loss:.3f} {left:.0f} min"
            )

    return show


def build_base(
    own: PretrainConfig,
    seed: int,
    examples: Iterable[Example],
    arrays: Path,
    out: Path,
    say: Any,
) -> None:
    """Writes `out/base`: tokenizer, random text model and projector, the tower that knows the cells."""
    tokenizer_folder = out / "tokenizer"
    if not (tokenizer_folder / "tokenizer.json").is_file():
        context = int(own.base.text.get("max_position_embeddings", 2048))
        tokenizer = train_tokenizer(_texts(examples), own.base.vocabulary_size, context)
        tokenizer.save_pretrained(tokenizer_folder)
    # A run that goes on keeps the tokenizer that its weights know.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    model_config = build_config(own.base, tokenizer)
    torch.manual_seed(seed)
    model = VisualPrefixForConditionalGeneration(model_config)
    train_cells(model, own.cells, seed, arrays, out / "cells", say)
    partial = out / ".base.partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_base(model, build_processor(tokenizer, model_config), partial)
    partial.rename(out / "base")


def _texts(examples: Iterable[Example]) -> list[str]:
    """The words of the first conversations."""
    found = [
        part
        for example, _ in zip(examples, range(TOKENIZER_TEXTS), strict=False)
        for turn in example.turns
        for part in turn.parts
        if isinstance(part, str)
    ]
    if not found:
        raise DataError("The data holds no text to train a tokenizer on: draw it again.")
    return found


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, context_length: int) -> Any:
    """A byte-level BPE (any Unicode can be typed) of `vocabulary_size` tokens.

    Capitals and digits are tokens of their own, so that a written word is read letter by letter and
    not guessed whole.
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
    """Pictures are squashed to the tower's square, as SigLIP does."""
    side = config.vision_config.image_size
    return VisualPrefixProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        prefix_tokens=config.image_seq_length,
        image_token=IMAGE,
    )


def build_config(base: Base, tokenizer: Any) -> VisualPrefixConfig:
    """The configuration that the recipe's tables describe; raises RecipeError for a wrong one."""
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
    except Exception as error:  # each configuration class checks its fields in its own way
        raise RecipeError(
            f"The recipe's [base] cannot be used: {' '.join(str(error).split())[:240]}"
        ) from error


def save_base(model: Any, processor: VisualPrefixProcessor, folder: Path) -> None:
    """Writes a complete model folder, weights in float32."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


class CellHeads(nn.Module):
    """One linear classifier a channel over the tower's features; thrown away afterwards."""

    def __init__(self, width: int, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(names) + 1) for name, names in classes.items()}
        )

    def loss(self, features: Tensor, cells: Tensor) -> Tensor:
        """features (pictures, cells, width), cells (pictures, grid, grid, channels), 0 for nothing -> a scalar.

        Empty and filled cells weigh the same in each channel, however few are filled.
        """
        labels = cells.flatten(1, 2).long()
        total = features.new_zeros((), dtype=torch.float32)
        for channel, head in enumerate(self.heads.values()):
            label = labels[..., channel].flatten()
            logits = head(features).flatten(0, 1).float()
            losses = F.cross_entropy(logits, label, reduction="none")
            for chosen in (label > 0, label == 0):
                if chosen.any():
                    total = total + losses[chosen].mean()
        return total


def train_cells(model: Any, recipe: Cells, seed: int, arrays: Path, folder: Path, say: Any) -> None:
    """Trains the tower of `model` on `images.npy` and `cells.npy`; `folder` has the checkpoints."""
    images, cells = _array(arrays / "images.npy"), _array(arrays / "cells.npy")
    if len(images) != len(cells) or recipe.pictures > len(images):
        raise DataError(
            f"{arrays} holds {len(images)} pictures and labels of {len(cells)}, and a step takes "
            f"{recipe.pictures}: draw the data again, or lower cells.pictures."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(device)
    torch.manual_seed(seed + 1)
    classes = json.loads((arrays / "classes.json").read_text("utf-8"))
    heads = CellHeads(model.config.vision_config.hidden_size, classes)
    trained = nn.ModuleDict({"tower": model.model.vision_tower, "heads": heads}).to(device)
    optimizers = build_optimizers(_groups(trained, recipe), "muon", dtype)
    first = 0
    saved = load_checkpoint(folder)
    if saved is not None:
        tensors, state = saved
        weights = {
            k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")
        }
        try:
            trained.load_state_dict(weights)
            restore_optimizers(optimizers, tensors)
        except (RuntimeError, ValueError) as error:
            raise RecipeError(
                f"The checkpoint in {folder} is of another recipe: choose another --out."
            ) from error
        first = int(state["step"])
    for step in range(first, recipe.steps):
        rng = np.random.default_rng((seed, step))
        chosen = np.sort(rng.choice(len(images), recipe.pictures, replace=False))
        pixels = torch.from_numpy(images[chosen]).to(device).permute(0, 3, 1, 2).float()
        with autocast(device, dtype):
            features = model.encode_images(pixels / 127.5 - 1)  # as the processor does
            loss = heads.loss(features, torch.from_numpy(cells[chosen]).to(device))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained.parameters(), recipe.clip)
        if not bool(torch.isfinite(norm)):
            raise RecipeError(f"Step {step + 1} of cells diverged: lower cells.learning_rate.")
        factor = schedule_factor("wsd", step, recipe.steps, recipe.warmup, recipe.decay)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            say(f"cells {step + 1}/{recipe.steps} loss={float(loss):.3f}")
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            tensors = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
            save_checkpoint(
                folder, step + 1, tensors | optimizer_tensors(optimizers), {"step": step + 1}
            )
    model.to("cpu")


def _groups(trained: nn.Module, recipe: Cells) -> list[dict[str, Any]]:
    """The parameters as `build_optimizers` takes them: vectors without weight decay."""
    linear = {id(m.weight) for m in trained.modules() if isinstance(m, nn.Linear)}
    groups = []
    for decayed in (True, False):
        chosen = [p for p in trained.parameters() if (p.ndim > 1) == decayed]
        groups.append(
            {
                "params": chosen,
                "linear": [id(p) in linear for p in chosen],
                "lr": recipe.learning_rate,
                "rate": recipe.learning_rate,
                "weight_decay": recipe.weight_decay if decayed else 0.0,
            }
        )
    return groups


def _array(file: Path) -> NDArray[np.uint8]:
    try:
        array: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): draw the data again.") from error
    return array


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the built-in model from nothing.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("recipe.toml"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        print(pretrain(options.data, options.recipe, options.out, options.overrides, say))
    except Paused:
        say("Paused: start it again to go on.")
        return 130
    except MmchatError as error:
        say(f"pretrain: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
