"""A tiny base on the disk and a few pictures to learn, for the tests of tuning."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from mmchat.data.types import Dataset, Example, Picture, Turn
from mmchat.training.base import (
    build_config,
    build_model,
    build_processor,
    save_base,
    train_tokenizer,
)
from mmchat.training.dataset import PreparedData
from mmchat.training.recipe import read_recipe
from tests.training.prepared import RECIPE, write_prepared

WORDS = ("red", "blue", "green", "grey")


def write_base(folder: Path) -> Path:
    """A whole tiny visual-prefix model with random weights, a few thousand of them."""
    write_prepared(folder / "prepared")
    file = folder / "recipe.toml"
    file.write_text(RECIPE)
    recipe = read_recipe(file)
    texts = PreparedData(folder / "prepared" / "train").texts(100)
    tokenizer = train_tokenizer(texts, recipe.base.vocabulary_size, 512)
    config = build_config(recipe.base, tokenizer)
    model = build_model(config, 1)
    save_base(model, build_processor(tokenizer, config), folder / "base")
    return folder / "base"


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
