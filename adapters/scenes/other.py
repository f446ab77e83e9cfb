"""Draws many kinds of pictures that are not scenes, so that the model learns to decline them.

The model must decline photographs, handwriting, documents, plots and screenshots, none of which is drawn
here. What generalizes is that scenes are a few clean shapes on a quiet background, and that these
pictures are not.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import paint
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from texture import SIDE, any_colour, coloured, field, fractal, ground, ink_colour, palette, wander

Maker = Callable[[random.Random, np.random.Generator], Image.Image]


def clouds(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    return coloured(fractal(rng, noise), rng)


def pixels(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Very few random pixels, enlarged: smooth or in blocks, grey or coloured."""
    rows, columns = rng.randint(3, 24), rng.randint(3, 24)
    values = noise.random((rows, columns, 1 if rng.random() < 0.6 else 3), np.float32)
    values = values ** rng.choice((0.5, 1.0, 2.0, 4.0))
    small = Image.fromarray((np.broadcast_to(values, (rows, columns, 3)) * 255).astype(np.uint8))
    ways = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
    return small.resize((SIDE, SIDE), rng.choice(ways))


def blob(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """A low-resolution blot in the middle, light on dark or dark on light."""
    cells = rng.randint(6, 16)
    grid = np.zeros((cells, cells), np.float32)
    x, y = rng.uniform(0.25, 0.75) * cells, rng.uniform(0.1, 0.4) * cells
    dx, dy = rng.uniform(-1, 1), rng.uniform(-0.2, 1)
    bend = rng.uniform(-0.9, 0.9)
    for _ in range(rng.randint(cells, 4 * cells)):
        if 0.08 * cells <= x < 0.92 * cells and 0.04 * cells <= y < 0.96 * cells:
            grid[int(y), int(x)] = min(1.0, grid[int(y), int(x)] + rng.uniform(0.3, 1))
        else:
            x, y = rng.uniform(0.25, 0.75) * cells, rng.uniform(0.2, 0.8) * cells
        angle = math.atan2(dy, dx) + bend * rng.uniform(-0.3, 1)
        if rng.random() < 0.1:
            bend = rng.uniform(-0.9, 0.9)
        dx, dy = math.cos(angle), math.sin(angle)
        x, y = x + 0.7 * dx, y + 0.7 * dy
    small = Image.fromarray(grid)
    ways = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
    values = np.clip(np.asarray(small.resize((SIDE, SIDE), rng.choice(ways))), 0, 1)
    if rng.random() < 0.35:
        values = 1 - values
    if rng.random() < 0.75:
        return Image.fromarray((values * 255).astype(np.uint8)).convert("RGB")
    return coloured(values, rng)


def pattern(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Stripes, checks, weaves, waves and rings."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(3, 40)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    if rng.random() < 0.4:
        u = u + rng.uniform(2, 25) * fractal(rng, noise)
    a = np.sin(2 * math.pi * u / period)
    b = np.sin(2 * math.pi * v / (period * rng.uniform(0.4, 2.5)))
    kind = rng.randrange(5)
    if kind == 4:
        a = np.sin(np.hypot(x - rng.uniform(0, SIDE), y - rng.uniform(0, SIDE)) * 6 / period)
    values = (a, a * b, np.maximum(a, b), a + b, a)[kind]
    if rng.random() < 0.5:
        values = np.sign(values)
    if rng.random() < 0.4:
        values = values + rng.uniform(0.2, 1.5) * noise.standard_normal(values.shape, np.float32)
    values = values - values.min()
    return coloured(values / (values.max() + 1e-6), rng)


def mosaic(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Tiles around random points, coloured individually or by position."""
    number = rng.randint(12, 70)
    points = noise.random((number, 2), np.float32) * SIDE
    y, x = np.mgrid[0:SIDE:2, 0:SIDE:2].astype(np.float32)
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    if rng.random() < 0.3:
        nearest = np.sqrt(distance.min(-1))
        return coloured(nearest / nearest.max(), rng).resize((SIDE, SIDE))
    table = np.array(palette(rng, number), np.uint8)
    return Image.fromarray(table[distance.argmin(-1)]).resize((SIDE, SIDE))


def polygons(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Many shapes on top of each other."""
    number = rng.randint(14, 60)
    colours = palette(rng, number)
    picture = Image.new("RGB", (SIDE, SIDE), any_colour(rng))
    pen = ImageDraw.Draw(picture)
    reach = rng.uniform(0.12, 0.5) * SIDE
    for colour in colours:
        x, y = rng.uniform(0, SIDE), rng.uniform(0, SIDE)
        if rng.random() < 0.2:
            w, h = rng.uniform(0.2, 1) * reach, rng.uniform(0.2, 1) * reach
            pen.ellipse((x - w, y - h, x + w, y + h), fill=colour)
            continue
        corners = rng.randint(3, 7)
        points = [
            (x + rng.uniform(-reach, reach), y + rng.uniform(-reach, reach)) for _ in range(corners)
        ]
        pen.polygon(points, fill=colour)
    return picture


def scribble(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """One or many wandering lines, thick or thin."""
    picture, dark = ground(rng, noise)
    pen = ImageDraw.Draw(picture)
    one = rng.random() < 0.5
    ink = ink_colour(rng, dark)
    for _ in range(1 if one else rng.randint(3, 30)):
        width = rng.randint(8, 22) if one else rng.randint(1, 7)
        x, y = rng.uniform(0.25, 0.75) * SIDE, rng.uniform(0.15, 0.85) * SIDE
        steps = rng.randint(18, 45) if one else rng.randint(10, 60)
        points = wander(rng, x, y, steps, 6, rng.uniform(0.05, 0.35))
        pen.line(points, fill=ink, width=width, joint="curve")
        if rng.random() < 0.3:
            ink = ink_colour(rng, dark)
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4)))
    return picture


def marks(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Very many small strokes, in rows, in columns or anywhere."""
    picture, dark = ground(rng, noise)
    pen = ImageDraw.Draw(picture)
    ink, row = ink_colour(rng, dark), rng.uniform(4, 14)
    size = row * rng.uniform(0.3, 0.8)
    y = rng.uniform(2, 20)
    rows = rng.random() < 0.75
    margin, lead = rng.uniform(2, 24), rng.uniform(1.15, 2)
    while y < SIDE - rng.uniform(2, 30):
        x, end = margin, SIDE - rng.uniform(2, 40)
        while x < end:
            at = (x, y) if rows else (rng.uniform(0, SIDE), rng.uniform(0, SIDE))
            for _ in range(rng.randint(1, 2)):
                points = [
                    (at[0] + rng.uniform(0, 0.8) * size, at[1] + rng.uniform(0, 1) * size)
                    for _ in range(rng.randint(2, 3))
                ]
                pen.line(points, fill=ink, width=1 if size < 6 else rng.randint(1, 2))
            x += size * rng.uniform(0.8, 1.1) * (2.4 if rng.random() < 0.15 else 1)
        y += row * lead * (2 if rng.random() < 0.1 else 1)
        if rng.random() < 0.1:
            ink = ink_colour(rng, dark)
    if rng.random() < 0.3:
        picture = picture.rotate(rng.choice((90, rng.uniform(-8, 8))), Image.Resampling.BILINEAR)
    return picture


def boxes(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Nested rectangles and ruled lines, some with strokes inside."""
    picture, dark = ground(rng, noise)
    pen = ImageDraw.Draw(picture)
    colours = palette(rng, 10)

    def split(left: float, top: float, right: float, bottom: float, depth: int) -> None:
        if rng.random() < 0.8:
            fill = rng.choice(colours) if rng.random() < 0.5 else None
            pen.rectangle((left, top, right, bottom), fill=fill, outline=ink_colour(rng, dark))
        if depth == 0 or min(right - left, bottom - top) < 14:
            ink = ink_colour(rng, dark)
            if rng.random() < 0.6:
                y = top + 3
                while y < bottom - 3 and right - left > 8:
                    pen.line((left + 3, y, rng.uniform(left + 5, right - 2), y), fill=ink)
                    y += rng.uniform(3, 8)
            return
        part = rng.uniform(0.15, 0.85)
        if rng.random() < 0.5:
            middle = left + part * (right - left)
            split(left, top, middle, bottom, depth - 1)
            split(middle, top, right, bottom, depth - 1)
        else:
            middle = top + part * (bottom - top)
            split(left, top, right, middle, depth - 1)
            split(left, middle, right, bottom, depth - 1)

    split(0, 0, SIDE - 1, SIDE - 1, rng.randint(2, 6))
    if rng.random() < 0.25:
        step, ink = rng.uniform(6, 30), ink_colour(rng, dark)
        for i in range(int(SIDE / step) + 1):
            pen.line((i * step, 0, i * step, SIDE), fill=ink)
            pen.line((0, i * step, SIDE, i * step), fill=ink)
    return picture


def traces(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Jagged or wavy lines and clusters of dots on a quiet background."""
    picture, dark = ground(rng, noise)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 5)):
        ink, base = ink_colour(rng, dark), rng.uniform(0.2, 0.8) * SIDE
        kind, number = rng.randrange(3), rng.randint(8, 90)
        ys = base + np.cumsum(noise.normal(0, rng.uniform(1, 9), number))
        if kind == 0:
            ys = base + rng.uniform(5, 50) * np.sin(np.linspace(0, rng.uniform(2, 30), number))
        xs = np.linspace(rng.uniform(0, 30), SIDE - rng.uniform(0, 30), number)
        points = list(zip(xs.tolist(), ys.tolist(), strict=True))
        if kind < 2:
            pen.line(points, fill=ink, width=rng.randint(1, 4))
        else:
            size = rng.uniform(1, 4)
            for x, y in points:
                y += rng.gauss(0, 12)
                pen.ellipse((x - size, y - size, x + size, y + size), fill=ink)
    if rng.random() < 0.6:
        picture = picture.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR)
    return picture


def collage(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Pieces of other kinds side by side."""
    picture = rng.choice((clouds, fields, pattern))(rng, noise)
    for _ in range(rng.randint(2, 5)):
        piece = rng.choice((clouds, pattern, mosaic, fields, ridges, pixels))(rng, noise)
        w, h = rng.randint(30, 120), rng.randint(30, 120)
        at = rng.randint(-20, SIDE - 30), rng.randint(-20, SIDE - 30)
        picture.paste(piece.crop((0, 0, w, h)), at)
    return picture


def balls(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Lit ellipsoids in front of a noisy background."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    canvas = np.asarray(clouds(rng, noise) if rng.random() < 0.7 else fields(rng, noise)).astype(
        np.float32
    )
    light = math.radians(rng.uniform(0, 360))
    rough = fractal(rng, noise)
    for _ in range(rng.randint(1, 5)):
        cx, cy = rng.uniform(0.1, 0.9) * SIDE, rng.uniform(0.1, 0.9) * SIDE
        a, b = rng.uniform(12, 60), rng.uniform(12, 60)
        u, v = (x - cx) / a, (y - cy) / b
        inside = u * u + v * v
        height = np.sqrt(np.clip(1 - inside, 0, 1))
        lit = 0.25 + 0.75 * np.clip(
            0.6 * height + 0.7 * (u * math.cos(light) + v * math.sin(light)), 0, 1
        )
        lit *= 0.7 + 0.6 * rough
        edge = np.clip((1 - inside) * rng.uniform(2, 12), 0, 1)[..., None]
        body = np.array(any_colour(rng), np.float32) * lit[..., None]
        canvas = canvas * (1 - edge) + body * edge
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def ridges(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Layers with rough upper edges, like mountain ridges."""
    sky = coloured(np.linspace(0, 1, SIDE, dtype=np.float32)[:, None].repeat(SIDE, 1), rng)
    canvas = np.asarray(sky).astype(np.float32)
    y = np.arange(SIDE, dtype=np.float32)[:, None]
    level = rng.uniform(0.2, 0.5) * SIDE
    for colour in palette(rng, rng.randint(2, 6)):
        size = rng.choice((4, 8, 20, 60))
        line = np.interp(np.arange(SIDE), np.linspace(0, SIDE, size), noise.random(size))
        inside = (y > level + rng.uniform(5, 60) * line[None])[..., None]
        shade = np.array(colour, np.float32) * (0.6 + 0.7 * fractal(rng, noise)[..., None])
        canvas = np.where(inside, shade, canvas)
        level += rng.uniform(8, 35)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def fur(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Thousands of hairs that follow a slow field."""
    picture = clouds(rng, noise)
    pen = ImageDraw.Draw(picture)
    colours, turn = palette(rng, 12), field(noise, rng.randint(2, 5)) * rng.uniform(1, 7)
    length, width = rng.uniform(4, 20), rng.choice((1, 1, 2, 3))
    for _ in range(rng.randint(250, 900)):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        angle = float(turn[y, x]) + rng.gauss(0, 0.2)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        pen.line((x, y, *end), fill=rng.choice(colours), width=width)
    return picture


def fields(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Large soft patches of colour, like a picture out of focus."""
    size = rng.randint(3, 7)
    small = Image.new("RGB", (size, size))
    small.putdata(palette(rng, size * size))
    return small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


MAKERS: tuple[Maker, ...] = (
    clouds, pixels, blob, blob, pattern, mosaic, polygons, scribble, scribble, marks, marks, boxes,
    boxes, traces, traces, collage, balls, ridges, ridges, fur, fields,
)  # fmt: skip


def make_picture(rng: random.Random) -> Image.Image:
    """A random picture of some kind, RGB at a random size."""
    noise = np.random.default_rng(rng.getrandbits(62))
    picture = rng.choice(MAKERS)(rng, noise)
    draw = rng.random()
    if draw < 0.18:
        second = rng.choice(MAKERS)(rng, noise)
        picture = Image.blend(picture, second, rng.uniform(0.25, 0.6))
    elif draw < 0.3:
        mask = Image.fromarray((np.clip(fractal(rng, noise) * 3 - 1, 0, 1) * 255).astype(np.uint8))
        picture = Image.composite(picture, rng.choice(MAKERS)(rng, noise), mask)
    if rng.random() < 0.3:
        dots = noise.normal(0, rng.uniform(3, 20), (SIDE, SIDE, 1)).astype(np.int16)
        picture = Image.fromarray(np.clip(np.asarray(picture) + dots, 0, 255).astype(np.uint8))
    draw = rng.random()
    if draw < 0.2:
        picture = picture.convert("L").convert("RGB")
    elif draw < 0.26:
        sepia = ImageOps.colorize(picture.convert("L"), (40, 25, 10), (250, 235, 200))
        picture = sepia
    if rng.random() < 0.25:
        picture = ImageOps.autocontrast(picture, cutoff=rng.uniform(0, 4))
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3)))
    if rng.random() < 0.4:
        w, h = rng.randint(SIDE // 2, SIDE), rng.randint(SIDE // 2, SIDE)
        x, y = rng.randint(0, SIDE - w), rng.randint(0, SIDE - h)
        picture = picture.crop((x, y, x + w, y + h))
    return paint.degrade(picture, rng)
