"""Evaluation folders for tests."""

import json
from pathlib import Path
from typing import Any

from tests.client.asking import png


def line(
    id_: str,
    text: str | list[dict[str, str]],
    answer: str,
    kind: str = "colour",
    images: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    """A question of one message, as questions.jsonl holds it."""
    return {
        "id": id_,
        "type": kind,
        "images": list(images),
        "messages": [{"role": "user", "content": text}],
        "answer": answer,
        **more,
    }


def write(folder: Path, lines: list[dict[str, Any]], grader: str = "") -> Path:
    """questions.jsonl, a grey picture for every name that a line uses, and a data.json if `grader`
    is given."""
    names = sorted({name for one in lines for name in one.get("images", [])})
    for colour, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(colour))
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    if grader:
        (folder / "data.json").write_text(json.dumps({"grader": grader}), encoding="utf-8")
    return folder
