"""Paints a scene: background, frame, things, writing, then the artefacts of cameras and files."""

import io
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scene import Scene, Thing

INPUT_SIZE = 128  # the built-in vision tower's input, pixels a side


def _background(scene: Scene, rng: random.Random) -> Image.Image:
    size = scene.width, scene.height
    first = scene.ground[0]
    if scene.background == "gradient":
        corners = Image.new("RGB", (2, 2), first)
        last = scene.ground[1]
        middle = tuple((a + b) // 2 for a, b in zip(first, last, strict=True))
        kind = rng.randrange(4)
        corners.putpixel((1, 1), last)
        corners.putpixel((1, 0), (last, first, middle, middle)[kind])
        corners.putpixel((0, 1), (first, last, middle, middle)[kind])
        if kind == 3:
            corners = corners.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return corners.resize(size, Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))
    if scene.background == "plain":
        return Image.new("RGB", size, first)
    noise = np.random.default_rng(rng.getrandbits(62))
    strength = rng.randint(4, 26)
    if scene.background == "grain":
        channels = 1 if rng.random() < 0.6 else 3
        grain = noise.integers(0, 2 * strength, (scene.height, scene.width, channels), np.uint8)
        base = np.array(first, np.int16) - strength
        return Image.fromarray(np.clip(grain + base, 0, 255).astype(np.uint8))
    rows, columns = rng.randint(2, 12), rng.randint(2, 12)
    coarse = noise.integers(-strength, strength + 1, (rows, columns, 1)) + np.array(first)
    small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def _thing(picture: Image.Image, scene: Scene, thing: Thing) -> None:
    """Draws an enlarged mask of the thing's box and reduces it, for smooth edges."""
    radius = thing.radius
    zoom = 4 if radius < 30 else 3 if radius < 70 else 2
    reach = math.ceil(1.3 * radius) + 2
    left, top = int(thing.x) - reach, int(thing.y) - reach
    side = 2 * reach * zoom
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    outlines = [
        [((thing.x - left + radius * x) * zoom, (thing.y - top + radius * y) * zoom) for x, y in c]
        for c in thing.contours
    ]
    for depth, points in enumerate(outlines):
        pen.polygon(points, fill=0 if depth else 255)
    if scene.outline is not None:
        edge = Image.new("L", (side, side))
        stroke = ImageDraw.Draw(edge)
        width = max(2, round(scene.outline_width * radius * zoom))
        for points in outlines:
            joint = "curve" if len(points) < 16 else None
            stroke.line([*points, points[0], points[1]], fill=255, width=width, joint=joint)
        picture.paste(thing.rgb, (left, top), mask.reduce(zoom))
        picture.paste(scene.outline, (left, top), edge.reduce(zoom))
        return
    picture.paste(thing.rgb, (left, top), mask.reduce(zoom))


def degrade(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Adds slight blur, a change of brightness or JPEG artefacts, each to some pictures."""
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.004 * min(picture.size))))
    if rng.random() < 0.3:
        gain, shift = rng.uniform(0.92, 1.06), rng.uniform(-6, 6)
        table = [max(0, min(255, round(level * gain + shift))) for level in range(256)]
        picture = picture.point(table * 3)
    if rng.random() < 0.35:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(40, 90), subsampling=rng.choice((0, 2)))
        picture = Image.open(file)
        picture.load()
    return picture


def paint(scene: Scene) -> Image.Image:
    """The scene's picture, RGB at its native size; deterministic for a scene."""
    rng = random.Random(scene.drawing_seed)
    picture = _background(scene, rng)
    if scene.frame is not None:
        width, shade = scene.frame
        pen = ImageDraw.Draw(picture)
        pen.rectangle(
            (0, 0, scene.width - 1, scene.height - 1), outline=shade, width=max(1, round(width))
        )
    for thing in scene.things:
        _thing(picture, scene, thing)
    if scene.writing is not None:
        corner = int(scene.writing.box[0]), int(scene.writing.box[1])
        picture.paste(scene.writing.rgb, corner, scene.writing.mask)
    return degrade(picture, rng)


def model_input(picture: Image.Image) -> np.ndarray:
    """The vision tower's input, uint8 (128, 128, 3), resized as its image processor does."""
    size = (INPUT_SIZE, INPUT_SIZE)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
