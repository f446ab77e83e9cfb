"""Small data of every format, made by the tests themselves."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmchat.data import Dataset, Example, Picture, read_data
from tests.images.builders import png

ASKED = ("user", "<a.png>", "what is it?")
ANSWERED = ("assistant", "a kite")


def picture(number: int, size: tuple[int, int] = (6, 4)) -> bytes:
    """A picture of one colour, each number another."""
    colour = bytes((number * 37 % 256, number * 91 % 256, number // 256 % 256))
    return png(*size, [colour * size[0]] * size[1], 8, 2)


def write_pictures(folder: Path, names: Iterable[str]) -> Path:
    """A picture for each name, numbered in order."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def write_lines(file: Path, values: Iterable[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    file.write_text(text, encoding="utf-8")
    return file


def write_json(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return file


def chat(*texts: str) -> list[dict[str, str]]:
    """Messages of the person and the model in turn, as OpenAI and LLaMA-Factory write them."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


def llava(*texts: str) -> list[dict[str, str]]:
    """The same as LLaVA and ShareGPT write them."""
    roles = ("human", "gpt")
    return [{"from": roles[at % 2], "value": text} for at, text in enumerate(texts)]


def plain(example: Example) -> list[tuple[str, ...]]:
    """An example as (role, parts …), a picture as its file's name in angle brackets."""
    return [
        (
            turn.role,
            *(f"<{part.name}>" if isinstance(part, Picture) else part for part in turn.parts),
        )
        for turn in example.turns
    ]


def only(dataset: Dataset) -> list[tuple[str, ...]]:
    """The one example of data that has no problem."""
    assert list(dataset.problems) == []
    (example,) = dataset.examples
    return plain(example)


def one(folder: Path, value: Any) -> list[tuple[str, ...]]:
    """The turns of the only example of a JSONL file that holds `value` alone."""
    return only(read_data(write_lines(folder / "d.jsonl", [value])))


def problem(folder: Path, value: Any) -> str:
    """Why `value` is left out, beside a sample that is fine."""
    good = {"messages": chat("fine?", "yes")}
    data = read_data(write_lines(folder / "d.jsonl", [good, value]), allow_bad=True)
    (found,) = data.problems
    return found.why
