"""Samples scenes: things that do not overlap, sometimes a writing, and a background.

A scene is sampled from one `random.Random`, so its seed defines it. Coordinates are pixels of the
picture at its native size, with y downwards. `paint.py` paints a scene, `questions.py` asks about it, and
`cells` makes its dense labels.
"""

import colorsys
import hashlib
import math
import random
from dataclasses import dataclass, field

import numpy as np
import writing as writings
from PIL import Image, ImageDraw
from writing import Writing

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring", "moon")
COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
    "black",
)
SIZES = ("small", "large")
CHARACTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")

# One pair per shape, in different colours. No training scene or training question has one.
UNSEEN_PAIRS = frozenset(
    {
        ("green", "circle"),
        ("pink", "square"),
        ("brown", "triangle"),
        ("blue", "star"),
        ("yellow", "heart"),
        ("white", "cross"),
        ("red", "diamond"),
        ("black", "ring"),
        ("orange", "moon"),
    }
)

RADII = {"small": (0.07, 0.095), "large": (0.14, 0.19)}  # of the picture's shorter side

# Hue in degrees, saturation, value. The gaps between neighbours make each name unambiguous.
REGIONS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-10, 6), (0.78, 1.0), (0.72, 1.0)),
    "orange": ((23, 38), (0.82, 1.0), (0.92, 1.0)),
    "yellow": ((50, 61), (0.7, 1.0), (0.88, 1.0)),
    "green": ((92, 150), (0.5, 1.0), (0.42, 0.95)),
    "blue": ((204, 240), (0.62, 1.0), (0.55, 1.0)),
    "purple": ((267, 300), (0.5, 1.0), (0.42, 0.85)),
    "pink": ((320, 348), (0.28, 0.6), (0.94, 1.0)),
    "brown": ((16, 30), (0.55, 0.9), (0.32, 0.56)),
    "white": ((0, 360), (0.0, 0.04), (0.95, 1.0)),
    "black": ((0, 360), (0.0, 0.4), (0.0, 0.11)),
}

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(slots=True)
class Thing:
    """One object. `contours` are in units of its radius around its centre: the outline, then any hole."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    rgb: Colour
    contours: list[list[Point]]


@dataclass(slots=True)
class Scene:
    """The content of a picture, and how it is painted."""

    width: int
    height: int
    background: str
    ground: list[Colour]
    things: list[Thing] = field(default_factory=list)
    writing: Writing | None = None
    frame: tuple[float, Colour] | None = None
    outline: Colour | None = None
    outline_width: float = 0.0
    drawing_seed: int = 0


def generator(split: str, seed: int, index: int) -> random.Random:
    """The random generator of one sample: different for every split, seed and index."""
    name = int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "big")
    state = np.random.SeedSequence([name, seed, index]).generate_state(4)
    return random.Random(int.from_bytes(state.tobytes(), "little"))


def from_hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def named_colour(name: str, rng: random.Random) -> Colour:
    """A random colour that clearly has this name."""
    hue, saturation, value = REGIONS[name]
    return from_hsv(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))


def lab(colour: Colour) -> tuple[float, float, float]:
    """CIE L*a*b* (D65), in which distances match perception approximately."""
    r, g, b = ((c / 255) ** 2.2 for c in colour)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(colour: Colour, ground: list[Colour]) -> float:
    """The smallest distance to any of the background's colours."""
    own = lab(colour)
    return min(math.dist(own, lab(other)) for other in ground)


def _turn(points: list[Point], degrees: float) -> list[Point]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def _arc(radius: float, start: float, end: float, steps: int, x: float = 0.0) -> list[Point]:
    return [
        (x + radius * math.cos(a), radius * math.sin(a))
        for a in (start + (end - start) * i / steps for i in range(steps + 1))
    ]


def contours(shape: str, rng: random.Random) -> list[list[Point]]:
    """The outline of a shape within about 1.1 of the origin, and its hole if it has one."""
    tilt = rng.uniform(-12, 12) if rng.random() < 0.6 else 0.0
    full = 2 * math.pi
    if shape == "circle":
        return [_arc(1.0, 0, full, 44)]
    if shape == "ring":
        return [_arc(1.02, 0, full, 44), _arc(rng.uniform(0.48, 0.66), 0, full, 36)]
    if shape == "square":
        h = rng.uniform(0.8, 0.9)
        return [_turn([(-h, -h), (h, -h), (h, h), (-h, h)], 0.75 * tilt)]
    if shape == "diamond":
        # If it is as wide as high, it is a square on its corner; little tilt keeps them apart.
        slim = rng.random() < 0.7
        w, h = rng.uniform(0.62, 0.85) if slim else rng.uniform(0.85, 1.0), rng.uniform(1.0, 1.1)
        return [_turn([(0, -h), (w, 0), (0, h), (-w, 0)], tilt * (0.7 if slim else 0.4))]
    if shape == "triangle":
        w, h = rng.uniform(0.88, 1.05), rng.uniform(0.95, 1.1)
        points = [(0.0, -h), (w, 0.75 * h), (-w, 0.75 * h)]
        return [_turn(points, tilt + (180 if rng.random() < 0.08 else 0))]
    if shape == "star":
        inner = rng.uniform(0.4, 0.52)
        spokes = [
            (1.12 if i % 2 == 0 else 1.12 * inner, math.pi * (i / 5 - 0.5)) for i in range(10)
        ]
        return [_turn([(r * math.cos(a), r * math.sin(a)) for r, a in spokes], tilt)]
    if shape == "cross":
        a, r = rng.uniform(0.26, 0.38), 1.02
        corner = [(-a, -r), (a, -r), (a, -a)]
        points = [p for quarter in range(4) for p in _turn(corner, 90 * quarter)]
        return [_turn(points, tilt)]
    if shape == "heart":
        turns = [full * i / 40 for i in range(40)]
        curve = [
            (
                16 * math.sin(t) ** 3 / 16,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
                / 16
                - 0.12,
            )
            for t in turns
        ]
        return [_turn(curve, tilt)]
    # A moon is a disc minus another disc that is offset to one side.
    radius, offset = rng.uniform(0.78, 0.9), rng.uniform(0.38, 0.5)
    x0 = (offset * offset + 1 - radius * radius) / (2 * offset)
    y0 = math.sqrt(1 - x0 * x0)
    outer = math.atan2(y0, x0)
    inner_angle = math.atan2(y0, x0 - offset)
    points = _arc(1.0, outer, full - outer, 30)
    points += _arc(radius, full - inner_angle, inner_angle, 24, x=offset)
    shift = (1 - x0) / 2
    points = [((x + shift) * 1.08, y * 1.08) for x, y in points]
    return [_turn(points, rng.uniform(-35, 35) + (180 if rng.random() < 0.5 else 0))]


def picture_size(rng: random.Random, evaluation: bool) -> tuple[int, int]:
    if evaluation and rng.random() < 0.4:
        sizes = ((640, 480), (480, 640), (800, 600), (512, 512), (320, 240), (600, 400), (256, 256))
        return rng.choice(sizes)
    side = rng.uniform(110, 260) if rng.random() < 0.9 else rng.uniform(96, 400)
    draw = rng.random()
    bound = math.log(1.0 if draw < 0.2 else 1.35 if draw < 0.88 else 2.0)
    ratio = math.exp(rng.uniform(-bound, bound) / 2)
    width, height = side * ratio, side / ratio
    return max(96, min(420, round(width))), max(96, min(420, round(height)))


def _ground(rng: random.Random) -> tuple[str, list[Colour]]:
    """(the kind of background, its colours, with which things must contrast)"""

    def light() -> Colour:
        return from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.14), rng.uniform(0.86, 1.0))

    def dark() -> Colour:
        return from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.45), rng.uniform(0.03, 0.26))

    def middle() -> Colour:
        strong = rng.uniform(0, 0.55) if rng.random() < 0.6 else rng.uniform(0, 0.12)
        return from_hsv(rng.uniform(0, 360), strong, rng.uniform(0.35, 0.85))

    draw = rng.random()
    if draw < 0.34:
        return "plain", [(255, 255, 255) if rng.random() < 0.3 else light()]
    if draw < 0.53:
        return "plain", [(0, 0, 0) if rng.random() < 0.15 else dark()]
    if draw < 0.67:
        return "plain", [middle()]
    kind = rng.choice((light, light, dark, middle))
    first = kind()
    if draw < 0.84:
        return "gradient", [first, tuple(max(0, min(255, c + rng.randint(-45, 45))) for c in first)]
    return ("grain" if rng.random() < 0.6 else "clouds"), [first]


def _palette(rng: random.Random) -> tuple[list[str], list[str]]:
    """(colours, shapes) to choose from: often few, so that kinds repeat, which counting needs."""
    draw = rng.random()
    colours = rng.sample(COLOURS, rng.randint(2, 3)) if draw < 0.5 else list(COLOURS)
    shapes = rng.sample(SHAPES, rng.randint(1, 3)) if 0.3 < draw < 0.8 else list(SHAPES)
    return colours, shapes


def _number(rng: random.Random, weights: tuple[int, ...], first: int) -> int:
    return rng.choices(range(first, first + len(weights)), weights)[0]


def _free(scene: Scene, x: float, y: float, reach: float) -> bool:
    gap = 0.015 * min(scene.width, scene.height)
    for other in scene.things:
        if math.hypot(x - other.x, y - other.y) < reach + 1.16 * other.radius + gap:
            return False
    if scene.writing is not None:
        left, top, right, bottom = scene.writing.box
        dx = max(left - x, 0, x - right)
        dy = max(top - y, 0, y - bottom)
        if math.hypot(dx, dy) < reach + 2 * gap:
            return False
    return True


def _place(scene: Scene, size: str, rng: random.Random) -> tuple[float, float, float] | None:
    side = min(scene.width, scene.height)
    border = (scene.frame[0] if scene.frame else 0.0) + 0.012 * side
    for attempt in range(40):
        low, high = RADII[size]
        radius = side * (rng.uniform(low, high) if attempt < 20 else low)
        reach = 1.16 * radius
        x = rng.uniform(border + reach, scene.width - border - reach)
        y = rng.uniform(border + reach, scene.height - border - reach)
        if _free(scene, x, y, reach):
            return x, y, radius
    return None


def _add_thing(
    scene: Scene, rng: random.Random, colours: list[str], shapes: list[str], unseen: bool
) -> None:
    """Adds one thing if there is room: one of an unseen pair if `unseen`, otherwise never."""
    for _ in range(12):
        if unseen:
            colour, shape = rng.choice(sorted(UNSEEN_PAIRS))
        else:
            colour, shape = rng.choice(colours), rng.choice(shapes)
            if (colour, shape) in UNSEEN_PAIRS:
                continue
        rgb = named_colour(colour, rng)
        if contrast(rgb, scene.ground) < 32:
            if not unseen and rng.random() < 0.3:
                colours = list(COLOURS)
            continue
        size = rng.choice(SIZES)
        spot = _place(scene, size, rng) or _place(scene, "small", rng)
        if spot is None:
            return
        size = "small" if spot[2] < 0.12 * min(scene.width, scene.height) else "large"
        scene.things.append(Thing(colour, shape, size, *spot, rgb, contours(shape, rng)))
        return


def make_scene(rng: random.Random, unseen: bool = False, evaluation: bool = False) -> Scene:
    """Samples a scene. unseen: its first thing is of an unseen pair; otherwise none is."""
    width, height = picture_size(rng, evaluation)
    side = min(width, height)
    background, ground = _ground(rng)
    scene = Scene(width, height, background, ground, drawing_seed=rng.getrandbits(62))
    if rng.random() < 0.14:
        shade = from_hsv(rng.uniform(0, 360), rng.uniform(0, 0.5), rng.uniform(0.05, 1.0))
        scene.frame = (side * rng.uniform(0.015, 0.07), shade)
    if rng.random() < 0.25:
        scene.outline = (15, 15, 15) if rng.random() < 0.65 else (245, 245, 245)
        scene.outline_width = rng.uniform(0.05, 0.12)
    if not unseen and rng.random() < 0.02:
        return scene
    colours, shapes = _palette(rng)
    number = _number(rng, (12, 19, 22, 20, 15, 12), 1)
    if rng.random() < (0.1 if unseen else 0.26):
        scene.writing = writings.make_writing(
            rng, width, height, scene.frame[0] if scene.frame else 0.0, lab(ground[0])[0]
        )
        number = _number(rng, (24, 26, 24, 16, 10), 0)
    for turn in range(max(number, 1) if unseen else number):
        _add_thing(scene, rng, colours, shapes, unseen and turn == 0)
    return scene


def is_unseen(scene: Scene) -> bool:
    return any((thing.colour, thing.shape) in UNSEEN_PAIRS for thing in scene.things)


def cells(scene: Scene, grid: int = 16, patch: int = 8) -> np.ndarray:
    """Dense labels, uint8 (grid, grid, 5): colour, shape, size, character, centre.

    0 means nothing; otherwise it is the class's index + 1 (centre: 1). A cell belongs to the thing that
    covers most of it, if it covers at least a quarter; a character covers its box.
    """
    labels = np.zeros((grid, grid, 5), np.uint8)
    side = grid * patch
    sx, sy = side / scene.width, side / scene.height
    if scene.things:
        canvas = Image.new("L", (side, side))
        pen = ImageDraw.Draw(canvas)
        for number, thing in enumerate(scene.things, 1):
            for depth, contour in enumerate(thing.contours):
                points = [
                    ((thing.x + thing.radius * x) * sx, (thing.y + thing.radius * y) * sy)
                    for x, y in contour
                ]
                pen.polygon(points, fill=0 if depth else number)
        owner = np.asarray(canvas).reshape(grid, patch, grid, patch)
        numbers = np.arange(1, len(scene.things) + 1, dtype=np.uint8)[:, None, None, None, None]
        cover = (owner[None] == numbers).sum((2, 4))
        best = cover.argmax(0)
        filled = cover.max(0) >= patch * patch // 4
        table = np.array(
            [
                (COLOURS.index(t.colour), SHAPES.index(t.shape), SIZES.index(t.size))
                for t in scene.things
            ]
        )
        labels[..., :3] = np.where(filled[..., None], table[best] + 1, 0)
        for thing in scene.things:
            labels[int(thing.y * sy / patch), int(thing.x * sx / patch), 4] = 1
    if scene.writing is not None:
        edges = np.arange(grid) * patch
        overlap = np.zeros((grid, grid))
        for character, (left, top, right, bottom) in scene.writing.boxes:
            wide = np.minimum(right * sx, edges + patch) - np.maximum(left * sx, edges)
            high = np.minimum(bottom * sy, edges + patch) - np.maximum(top * sy, edges)
            area = np.maximum(high, 0)[:, None] * np.maximum(wide, 0)[None]
            mine = (area > overlap) & (area >= patch * patch / 4)
            labels[mine, 3] = CHARACTERS.index(character) + 1
            overlap = np.maximum(overlap, area)
    return labels
