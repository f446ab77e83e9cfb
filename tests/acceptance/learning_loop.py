"""The learning loop at its bar: thirty corrected answers about what the base has never seen.

    python -m tests.acceptance.learning_loop draw --home DIR      a history with 30 corrections
    MMCHAT_HOME=DIR mmchat train --from-history --name bolts
    python -m tests.acceptance.learning_loop questions --out DIR  200 fresh questions, to be asked
    MMCHAT_HOME=DIR mmchat evaluate DIR --adapter bolts --against none

A lightning bolt is a shape, and turquoise, maroon and gold are colours, that the base's data does
not have. Pictures are drawn by the base's own script, with one bolt on each.
"""

import argparse
import hashlib
import io
import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "adapters" / "scenes"
COLOURS = {"turquoise": (64, 224, 208), "maroon": (120, 10, 45), "gold": (212, 160, 23)}
QUESTIONS = (
    "what is this?",
    "what do you see?",
    "what is in this picture?",
    "describe the picture.",
    "which thing is this?",
)
BOLT = ((0.25, -1.0), (-0.55, 0.15), (-0.08, 0.1), (-0.3, 1.0), (0.55, -0.25), (0.1, -0.2))


def _scenes() -> tuple[Any, Any]:
    """The modules that draw the base's data."""
    sys.path.insert(0, str(FOLDER))
    try:
        import paint
        import scene
    finally:
        sys.path.remove(str(FOLDER))
    return paint, scene


def make(split: str, number: int) -> tuple[bytes, str, str]:
    """(a PNG, a question about it, its answer); another for each split and number."""
    paint, scenes = _scenes()
    rng = scenes.generator(f"learning-loop/{split}", 3, number)
    scene = scenes.make_scene(rng)
    scene.things, scene.writing = [], None
    colour = list(COLOURS)[number % len(COLOURS)]
    side = min(scene.width, scene.height)
    radius = side * rng.uniform(0.2, 0.36)
    turn = rng.uniform(-0.3, 0.3)
    cosine, sine = math.cos(turn), math.sin(turn)
    outline = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in BOLT]
    reach = 1.2 * radius
    x = rng.uniform(reach, max(scene.width - reach, reach))
    y = rng.uniform(reach, max(scene.height - reach, reach))
    rgb = tuple(min(255, max(0, level + rng.randint(-12, 12))) for level in COLOURS[colour])
    scene.things.append(scenes.Thing(colour, "bolt", "large", x, y, radius, rgb, [outline]))
    file = io.BytesIO()
    picture: Image.Image = paint.paint(scene)
    picture.save(file, "PNG")
    return file.getvalue(), rng.choice(QUESTIONS), f"It is a {colour} bolt."


def draw(home: Path, count: int) -> None:
    """A history in which each picture was asked about, answered wrongly and corrected."""
    os.environ["MMCHAT_HOME"] = str(home)
    from mmchat.history import History, Origin, StoredImage

    with History.open(home / "history.db") as history:
        for number in range(count):
            data, question, answer = make("corrected", number)
            image = StoredImage(
                hashlib.sha256(data).hexdigest(), "image/png", *Image.open(io.BytesIO(data)).size,
                len(data), f"bolt-{number:02d}.png",
            )  # fmt: skip
            _, begun = history.say(
                None, question, images=[(image, data)], origin=Origin(model="scenes")
            )
            begun.append("I see a large yellow star.")
            finished = begun.finish("complete")
            history.correct(finished.id, answer)
    print(f"{count} corrected answers in {home / 'history.db'}")


def questions(out: Path, count: int) -> None:
    """An evaluation folder of fresh pictures."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    with (out / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            data, question, answer = make("asked", number)
            name = f"pictures/{number:03d}.png"
            (out / name).write_bytes(data)
            line = {
                "id": f"bolt-{number:03d}",
                "type": "bolt",
                "images": [name],
                "messages": [{"role": "user", "content": question}],
                "answer": answer,
            }
            file.write(json.dumps(line) + "\n")
    print(f"{count} questions in {out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--home", type=Path, required=True)
    drawing.add_argument("--count", type=int, default=30)
    asking = commands.add_parser("questions")
    asking.add_argument("--out", type=Path, required=True)
    asking.add_argument("--count", type=int, default=200)
    options = parser.parse_args(argv)
    random.seed(0)
    if options.command == "draw":
        options.home.mkdir(parents=True, exist_ok=True)
        draw(options.home, options.count)
    else:
        questions(options.out, options.count)


if __name__ == "__main__":
    main()
