"""Build an evaluation set of pictures that the built-in model has to decline.

    python -m tests.acceptance.draw_refusals FOLDER [--each 64] [--seed 5]
    mmchat evaluate FOLDER

Five kinds, from sources that no training script touches: crops of scikit-learn's two photographs,
its handwritten digits drawn larger, pages of text, matplotlib plots, and screens of a terminal app.
The same seed makes the same set.
"""

from __future__ import annotations

import argparse
import json
import random
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from sklearn import datasets

from tests.acceptance.screens import draw_screen

ANSWER = "I can only talk about simple drawn scenes. Load a larger model with: mmchat models add"

ANYTHING = (
    "what is in this picture?",
    "What do you see?",
    "describe this",
    "can you describe the image please",
    "how many objects are there?",
    "how many things do you see",
    "what colour is the circle",
    "What color is the square?",
    "what shape is the red thing",
    "is there a star?",
    "is there a blue circle in the picture",
    "where is the triangle?",
    "which is bigger, the red circle or the blue square?",
    "how many circles are there",
    "is the heart left of the ring?",
    "tell me about this picture",
)
# A page, a screen and a digit do say something; the others are asked this too.
QUESTIONS = {
    "photograph": (*ANYTHING, "what does it say?", "what word is written here"),
    "digit": ANYTHING,
    "page": ANYTHING,
    "plot": (*ANYTHING, "what does it say?"),
    "screen": ANYTHING,
}
FONTS = ("", "DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSerif-Bold.ttf")
STYLES = ("default", "ggplot", "dark_background", "bmh", "grayscale", "Solarize_Light2")


def draw_photograph(rng: random.Random) -> Image.Image:
    """A crop with something in it: a piece of clear sky would be a plain background."""
    photograph = rng.choice(datasets.load_sample_images().images)
    rows, columns = photograph.shape[:2]
    while True:
        width, height = rng.randint(150, columns), rng.randint(150, rows)
        left, top = rng.randint(0, columns - width), rng.randint(0, rows - height)
        crop = photograph[top : top + height, left : left + width]
        if crop.std() > 35:
            break
    picture = Image.fromarray(np.ascontiguousarray(crop))
    if rng.random() < 0.3:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = rng.uniform(0.6, 1.8)
    return picture.resize((round(width * scale), round(height * scale)))


def draw_digit(rng: random.Random) -> Image.Image:
    digits = datasets.load_digits().images
    grey = digits[rng.randrange(len(digits))] * (255 / 16)
    if rng.random() < 0.5:
        grey = 255 - grey
    side = rng.randint(64, 300)
    way = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    return Image.fromarray(grey.astype(np.uint8)).resize((side, side), way).convert("RGB")


def draw_page(rng: random.Random) -> Image.Image:
    """Prose from scikit-learn's descriptions of its data sets, in one to three columns."""
    loader = rng.choice(
        (datasets.load_iris, datasets.load_wine, datasets.load_diabetes, datasets.load_linnerud)
    )
    prose = " ".join((3 * (loader().DESCR + " ")).replace("=", " ").replace(":", " ").split())
    width, height = rng.choice(((600, 800), (800, 600), (480, 640), (1000, 700), (700, 990)))
    ink, paper = rng.choice(
        (
            ((20, 20, 20), (255, 255, 255)),
            ((40, 30, 20), (244, 236, 216)),
            ((225, 225, 225), (28, 28, 32)),
        )
    )
    points, name = rng.randint(12, 26), rng.choice(FONTS)
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    font = ImageFont.truetype(str(path), points) if name else ImageFont.load_default(points)
    columns, margin = rng.randint(1, 3 if points < 18 else 1), round(0.06 * width)
    column = (width - margin) // columns - margin
    letters = max(8, int(column / (font.getlength("etaoin shrdlu") / 13) * 0.95))
    lines = textwrap.wrap(prose[rng.randrange(len(prose) // 6) :], letters)
    step = round(points * rng.uniform(1.25, 1.6))
    picture = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(picture)
    rows = (height - 2 * margin) // step
    for number, line in enumerate(lines[: rows * columns]):
        place = (margin + number // rows * (column + margin), margin + number % rows * step)
        if number % rng.randint(7, 12):  # a line left out now and then makes paragraphs
            pen.text(place, line, fill=ink, font=font)
    return picture


def draw_plot(rng: random.Random) -> Image.Image:
    numbers = np.random.default_rng(rng.randrange(2**32))
    kind = rng.choice(("line", "bar", "scatter", "histogram", "pie"))
    with matplotlib.style.context(rng.choice(STYLES)):
        figure = Figure(
            figsize=(rng.uniform(3.5, 8), rng.uniform(3, 6)), dpi=rng.choice((72, 100, 120))
        )
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if kind == "line":
            for name in range(rng.randint(1, 4)):
                axes.plot(numbers.normal(size=40).cumsum(), label=f"run {name}")
            axes.legend()
        elif kind == "bar":
            count = rng.randint(4, 12)
            axes.bar([f"w{week}" for week in range(count)], numbers.uniform(1, 9, count))
        elif kind == "scatter":
            for _ in range(rng.randint(1, 3)):
                axes.scatter(*numbers.normal(numbers.normal(0, 2), 1, (2, rng.randint(30, 120))))
        elif kind == "histogram":
            axes.hist(numbers.normal(size=500), bins=rng.randint(8, 40))
        else:
            parts = rng.randint(3, 7)
            axes.pie(numbers.uniform(1, 5, parts), labels=[f"part {part}" for part in range(parts)])
        axes.set_title(rng.choice(("Rain by week", "Answers a second", "Loss", "Visitors")))
        if kind != "pie":
            axes.set_xlabel(rng.choice(("time (s)", "week", "x")))
            axes.grid(rng.random() < 0.5)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


SOURCES: dict[str, Callable[[random.Random], Image.Image]] = {
    "photograph": draw_photograph,
    "digit": draw_digit,
    "page": draw_page,
    "plot": draw_plot,
    "screen": draw_screen,
}


def build(folder: Path, each: int, seed: int) -> int:
    """Write `folder`/pictures, questions.jsonl and data.json; the number of questions."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for kind, draw in SOURCES.items():
        for number in range(each):
            rng = random.Random(f"{seed} {kind} {number}")
            name = f"pictures/{kind}-{number:03}.{rng.choice(('png', 'jpg'))}"
            picture = draw(rng)
            if name.endswith("jpg"):
                picture.save(folder / name, quality=rng.randint(70, 92))
            else:
                picture.save(folder / name)
            entry = {
                "id": f"{kind}-{number:03}",
                "type": "refuse_picture",
                "images": [name],
                "messages": [{"role": "user", "content": rng.choice(QUESTIONS[kind])}],
                "answer": ANSWER,
            }
            lines.append(json.dumps(entry))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "data.json").write_text('{"grader": "scenes"}\n', encoding="utf-8")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a set of pictures to decline.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=64, help="pictures of each of the five kinds")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    count = build(options.folder, options.each, options.seed)
    print(f"{count} questions in {options.folder}")


if __name__ == "__main__":
    main()
