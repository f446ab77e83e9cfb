"""Draws the data of the digits adapter: real handwriting as pictures, with questions.

    python adapters/digits/draw.py --out DIR

The 1,797 digits of 8 x 8 grey levels come with scikit-learn (`load_digits`: the test part of
"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, CC BY 4.0; 13 people's handwriting). Each becomes a picture of 128 x 128 pixels, dark
on light, with a metadata.jsonl that `mmchat train` reads. The files are always the same.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE, MARGIN = 128, 16
# Questions and answers are like the base's about writing in a scene, so that training builds on it.
QUESTIONS = (
    "what digit is this?",
    "which digit is this?",
    "what number is written here?",
    "which digit do you see?",
    "read the digit.",
)
ANSWER = 'It says "{}".'


def picture(levels: np.ndarray) -> Image.Image:
    """(8, 8) ink levels from 0 to 16 -> a grey picture, dark on light."""
    small = Image.fromarray((255 - levels * (255 / 16)).astype(np.uint8), "L")
    inner = SIDE - 2 * MARGIN
    whole = Image.new("L", (SIDE, SIDE), 255)
    whole.paste(small.resize((inner, inner), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
    return whole


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    with (options.out / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for number, (levels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            name = f"{number:04d}.png"
            picture(levels).save(options.out / name)
            line = {
                "file_name": name,
                "question": QUESTIONS[number % len(QUESTIONS)],
                "answer": ANSWER.format(digit),
                "label": str(digit),
            }
            file.write(json.dumps(line) + "\n")
    print(f"{len(digits.target)} pictures in {options.out}")


if __name__ == "__main__":
    main()
