"""Colours, noise and wandering lines for pictures that are not scenes."""

import math
import random

import numpy as np
from PIL import Image
from scene import Colour, from_hsv

SIDE = 160  # pixels a side; the model sees 128


def any_colour(rng: random.Random) -> Colour:
    return from_hsv(rng.uniform(0, 360), rng.random() ** 1.3, rng.uniform(0.05, 1.0))


def palette(rng: random.Random, number: int) -> list[Colour]:
    """Colours as in real pictures, with few hues and many lightnesses; sometimes any colours."""
    if rng.random() < 0.35:
        return [any_colour(rng) for _ in range(number)]
    hue, width, saturation = rng.uniform(0, 360), rng.uniform(5, 60), rng.uniform(0, 0.9)
    return [
        from_hsv(hue + rng.uniform(-width, width), saturation * rng.uniform(0.5, 1), rng.random())
        for _ in range(number)
    ]


def field(noise: np.random.Generator, cells: int, smooth: bool = True) -> np.ndarray:
    """Random values between 0 and 1 on a grid, enlarged: float32 (SIDE, SIDE)."""
    small = Image.fromarray(noise.random((cells, cells), np.float32))
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(small.resize((SIDE, SIDE), way))


def fractal(rng: random.Random, noise: np.random.Generator) -> np.ndarray:
    first, total, weight = rng.choice((2, 3, 4, 6, 9)), np.zeros((SIDE, SIDE), np.float32), 1.0
    fade = rng.uniform(0.4, 0.8)
    for octave in range(rng.randint(2, 5)):
        total += weight * field(noise, min(SIDE, first * 2**octave))
        weight *= fade
    total -= total.min()
    return total / (total.max() + 1e-6)


def coloured(values: np.ndarray, rng: random.Random) -> Image.Image:
    """Maps values between 0 and 1 to a colour gradient."""
    stops = np.array(palette(rng, rng.randint(2, 5)), np.float32)
    table = np.stack(
        [np.interp(np.linspace(0, len(stops) - 1, 256), np.arange(len(stops)), s) for s in stops.T],
        axis=1,
    ).astype(np.uint8)
    return Image.fromarray(table[np.clip(values * 255, 0, 255).astype(np.uint8)])


def wander(
    rng: random.Random, x: float, y: float, steps: int, step: float, bend: float
) -> list[tuple[float, float]]:
    angle, turn, points = rng.uniform(0, 2 * math.pi), 0.0, [(x, y)]
    for _ in range(steps):
        turn = 0.85 * turn + rng.gauss(0, bend)
        angle += turn
        x, y = x + step * math.cos(angle), y + step * math.sin(angle)
        if not (8 < x < SIDE - 8 and 8 < y < SIDE - 8):
            angle += math.pi / 2
            x, y = min(max(x, 8), SIDE - 8), min(max(y, 8), SIDE - 8)
        points.append((x, y))
    return points


def ground(rng: random.Random, noise: np.random.Generator) -> tuple[Image.Image, bool]:
    """(a quiet background, whether it is dark)"""
    dark = rng.random() < 0.45
    level = rng.uniform(0, 0.2) if dark else rng.uniform(0.8, 1.0)
    base = from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.15), level)
    return Image.new("RGB", (SIDE, SIDE), base), dark


def ink_colour(rng: random.Random, dark: bool) -> Colour:
    if rng.random() < 0.6:
        level = rng.uniform(0.75, 1.0) if dark else rng.uniform(0, 0.35)
        return from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.2), level)
    return from_hsv(
        rng.uniform(0, 360), rng.uniform(0.4, 1), 0.9 if dark else rng.uniform(0.2, 0.6)
    )
