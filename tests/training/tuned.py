"""A tiny base on the disk and a few pictures to learn, for the tests of tuning."""

import hashlib
import io
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from mmchat.data import read_data
from mmchat.data.types import Dataset, Example, Picture
from mmchat.model.visual_prefix import VisualPrefixForConditionalGeneration
from mmchat.turns import Turn
from tests.training.prepared import RECIPE, write_prepared
from tests.training.pretraining import pretrain

WORDS = ("red", "blue", "green", "grey")


def write_base(folder: Path) -> Path:
    """A whole tiny visual-prefix model with random weights, a few thousand of them."""
    model, processor = tiny_base(write_prepared(folder / "prepared") / "train")
    model.to(torch.bfloat16).save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    return folder / "base"


def tiny_base(data: Path) -> tuple[Any, Any]:
    """(the model of random float32 weights, its processor) of the tests' recipe; the tokenizer knows `data`."""
    base = msgspec.convert(tomllib.loads(RECIPE)["base"], pretrain.BaseConfig)
    texts = pretrain._texts(read_data(data).examples)
    tokenizer = pretrain.train_tokenizer(texts, base.vocabulary_size, 512)
    config = pretrain.build_config(base, tokenizer)
    torch.manual_seed(1)
    model = VisualPrefixForConditionalGeneration(config)
    return model, pretrain.build_processor(tokenizer, config)


def picture(number: int) -> Picture:
    """A small picture of one colour, each another."""
    shade = np.full(
        (12, 12, 3), (number * 37 % 256, number * 91 % 256, number * 53 % 256), np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(shade).save(file, "PNG")
    data = file.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    return Picture(digest, "image/png", 12, 12, f"{number}.png", held=data)


def examples(count: int = 10) -> list[Example]:
    """One question about each picture, of several lengths; every fifth has two pictures."""
    made = []
    for number in range(count):
        answer = f"It is {WORDS[number % 4]}." + " Yes, it is." * (number % 3)
        shown: tuple[str | Picture, ...] = (picture(number), "what colour is it?")
        if number % 5 == 4:
            shown = ("see ", picture(number), " and ", picture(number + 1), "?")
        turns = (Turn("user", shown), Turn("assistant", (answer,)))
        if number % 4 == 3:
            turns += (Turn("user", ("sure?",)), Turn("assistant", ("Yes.",)))
        made.append(Example(turns, WORDS[number % 4], f"made, sample {number + 1}"))
    return made


def dataset(count: int = 10) -> Dataset:
    made = examples(count)
    return Dataset(
        "made for a test", "here", made, (), hashlib.sha256(str(count).encode()).hexdigest()
    )
