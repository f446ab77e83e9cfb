"""Draw the forty acceptance pictures and their questions, from nothing but this file.

The pictures judge the built-in model, so they share no code with the script that drew what it
learned from: every shape here is an inequality in the plane (numpy, 4 samples a pixel side), every
scene was laid out by hand in `forty/scenes.toml`, and the questions are worded by hand. Run it to
write the pictures and `forty/questions.jsonl` again:

    python tests/acceptance/draw_forty.py
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

FOLDER = Path(__file__).with_name("forty")
SAMPLES = 4

RGB: dict[str, Colour] = {
    "red": (216, 38, 40),
    "orange": (246, 138, 28),
    "yellow": (246, 216, 44),
    "green": (46, 158, 70),
    "blue": (38, 96, 210),
    "purple": (126, 58, 172),
    "pink": (246, 146, 192),
    "brown": (124, 76, 38),
    "white": (250, 250, 250),
    "black": (18, 18, 20),
}
RADIUS = {"small": 0.086, "large": 0.165}


@dataclass(frozen=True)
class Background:
    """Plain, or a gradient from `colour` to `to`; `noise` is a standard deviation of 255."""

    colour: Colour
    to: Colour | None = None
    angle: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Item:
    """One object; x and y are its centre as shares of the picture's width and height."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    tilt: float


@dataclass(frozen=True)
class Writing:
    """`height` is that of a capital letter, as a share of the picture's shorter side."""

    text: str
    colour: str
    font: str
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    background: Background
    items: tuple[Item, ...]
    outline: Colour | None
    frame: Colour | None
    blur: float
    quality: int
    writing: Writing | None


def read_item(line: str) -> Item:
    size, colour, shape, x, y, tilt = line.split()
    return Item(size, colour, shape, float(x), float(y), float(tilt))


def read_scene(table: dict[str, Any]) -> Scene:
    width, height = table["size"]
    return Scene(
        width=width,
        height=height,
        background=Background(**table["background"]),
        items=tuple(read_item(line) for line in table["objects"]),
        outline=table.get("outline"),
        frame=table.get("frame"),
        blur=table.get("blur", 0.0),
        quality=table.get("quality", 80),
        writing=Writing(**table["writing"]) if "writing" in table else None,
    )


def _wedges(u: Array, v: Array, points: int, outer: float, inner: float) -> Mask:
    """A star with a point at the top: fold the plane into one half-wedge, test its one edge."""
    half = math.pi / points
    angle = np.abs((np.arctan2(u, -v) + half) % (2 * half) - half)
    distance = np.hypot(u, v)
    x, y = distance * np.cos(angle), distance * np.sin(angle)
    tip, notch = (outer, 0.0), (inner * math.cos(half), inner * math.sin(half))
    edge = (notch[0] - tip[0]) * (y - tip[1]) - (notch[1] - tip[1]) * (x - tip[0])
    return edge >= 0


def _heart(u: Array, v: Array) -> Mask:
    x, y = 1.2 * u, 0.12 - 1.2 * v
    return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0


# Coordinates: the object's centre is 0, its radius 1, v grows downwards.
SHAPES: dict[str, Callable[[Array, Array], Mask]] = {
    "circle": lambda u, v: np.hypot(u, v) <= 0.95,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.82,
    "triangle": lambda u, v: (v <= 0.68) & (1.9 * np.abs(u) - v <= 1.02),
    "star": lambda u, v: _wedges(u, v, 5, 1.06, 0.44),
    "heart": _heart,
    "cross": lambda u, v: (
        (np.minimum(np.abs(u), np.abs(v)) <= 0.3) & (np.maximum(np.abs(u), np.abs(v)) <= 0.95)
    ),
    "diamond": lambda u, v: np.abs(u) / 0.74 + np.abs(v) / 1.02 <= 1,
    "ring": lambda u, v: (np.hypot(u, v) <= 0.98) & (np.hypot(u, v) >= 0.57),
    "moon": lambda u, v: (np.hypot(u, v) <= 1) & (np.hypot(u - 0.5, v) >= 0.84),
}


def paint_background(background: Background, width: int, height: int) -> Array:
    """(height, width, 3), 0 to 255."""
    start = np.array(background.colour, np.float32)
    end = np.array(background.to or background.colour, np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = math.radians(background.angle)
    along = x / width * math.cos(turn) + y / height * math.sin(turn)
    span = float(along.max() - along.min()) or 1.0
    share = ((along - along.min()) / span)[..., None]
    return np.asarray(start * (1 - share) + end * share, np.float32)


def _coverage(fine: Mask) -> Array:
    """Supersampled truth values to the covered share of each pixel."""
    rows, columns = (length // SAMPLES for length in fine.shape)
    blocks = fine.reshape(rows, SAMPLES, columns, SAMPLES)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def _blend(canvas: Array, top: int, left: int, share: Array, colour: Colour) -> None:
    """Paint with an opacity a pixel; what hangs over the picture's edge is cut off."""
    share = share[max(0, -top) :, max(0, -left) :]
    top, left = max(0, top), max(0, left)
    view = canvas[top : top + share.shape[0], left : left + share.shape[1]]
    weight = share[: view.shape[0], : view.shape[1], None]
    view += weight * (np.array(colour, np.float32) - view)


def paint_item(canvas: Array, item: Item, outline: Colour | None) -> None:
    height, width = canvas.shape[:2]
    radius = RADIUS[item.size] * min(width, height)
    column, row = item.x * width, item.y * height
    reach = math.ceil(radius * 1.3) + 3
    left, top = int(column) - reach, int(row) - reach
    edges = (column, row, width - column, height - row)
    if min(edges) < 1.12 * radius:
        raise ValueError(f"{item} leaves the picture")
    offsets = (np.arange(2 * reach * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES
    dx, dy = np.meshgrid(left + offsets - column, top + offsets - row)
    turn = math.radians(item.tilt)
    u = (dx * math.cos(turn) + dy * math.sin(turn)) / radius
    v = (dy * math.cos(turn) - dx * math.sin(turn)) / radius
    inside = SHAPES[item.shape](u, v)
    if outline is not None:
        # A blurred mask's low level line runs at an even distance outside the shape.
        soft = Image.fromarray(inside.astype(np.uint8) * 255).filter(
            ImageFilter.GaussianBlur(max(1.2, radius * 0.035) * SAMPLES)
        )
        _blend(canvas, top, left, _coverage(np.asarray(soft) > 20), outline)
    _blend(canvas, top, left, _coverage(inside), RGB[item.colour])


def paint_writing(canvas: Array, writing: Writing) -> None:
    """Capitals as high as `writing.height` of the shorter side, their middle at (x, y)."""
    height, width = canvas.shape[:2]
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", writing.font)
    wanted = writing.height * min(width, height)
    trial = ImageFont.truetype(str(path), 200).getbbox("H", anchor="ls")
    font = ImageFont.truetype(str(path), round(200 * wanted / (trial[3] - trial[1])))
    sheet = Image.new("L", (width, height), 0)
    box = font.getbbox(writing.text)
    where = (writing.x * width - (box[0] + box[2]) / 2, writing.y * height - (box[1] + box[3]) / 2)
    ImageDraw.Draw(sheet).text(where, writing.text, fill=255, font=font)
    _blend(canvas, 0, 0, np.asarray(sheet, np.float32) / 255, RGB[writing.colour])


def check_scene(name: str, scene: Scene, canvas: Array) -> None:
    """Refuse objects that touch, or that a person could not tell from what lies behind them."""
    height, width = canvas.shape[:2]
    short = min(width, height)
    for number, item in enumerate(scene.items):
        behind = canvas[int(item.y * height), int(item.x * width)]
        if float(np.abs(behind - np.array(RGB[item.colour])).sum()) < 110:
            raise ValueError(f"{name}: {item} is too near to its background {behind}")
        for other in scene.items[number + 1 :]:
            gap = math.hypot((item.x - other.x) * width, (item.y - other.y) * height)
            radii = RADIUS[item.size] + RADIUS[other.size]
            if gap < 1.12 * radii * short:
                raise ValueError(f"{name}: {item} touches {other}")


def draw(name: str, scene: Scene) -> Image.Image:
    width, height = scene.width, scene.height
    canvas = paint_background(scene.background, width, height)
    check_scene(name, scene, canvas)
    for item in scene.items:
        paint_item(canvas, item, scene.outline)
    if scene.writing is not None:
        paint_writing(canvas, scene.writing)
    if scene.frame is not None:
        edge = round(0.035 * min(width, height))
        framed = np.empty_like(canvas)
        framed[:] = np.array(scene.frame, np.float32)
        framed[edge:-edge, edge:-edge] = canvas[edge:-edge, edge:-edge]
        canvas = framed
    if scene.background.noise:
        noise = np.random.default_rng(width * 7919 + len(scene.items)).normal(
            0, scene.background.noise, canvas.shape
        )
        canvas = canvas + noise.astype(np.float32)
    picture = Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(scene.blur)) if scene.blur else picture


def save(picture: Image.Image, name: str, quality: int) -> None:
    path = FOLDER / name
    if path.suffix == ".png":
        picture.save(path, optimize=True)
    else:
        picture.save(path, quality=quality)


def main() -> None:
    table = tomllib.loads((FOLDER / "scenes.toml").read_text(encoding="utf-8"))
    lines = []
    for question in table["question"]:
        pictures = question.pop("picture")
        for picture in pictures:
            scene = read_scene(picture)
            save(draw(picture["name"], scene), picture["name"], scene.quality)
        question["images"] = [picture["name"] for picture in pictures]
        lines.append(json.dumps(question, ensure_ascii=False))
    (FOLDER / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
