"""Renders the writing of a scene: one short word or number in one of several fonts.

The fonts are Pillow's own and, if it is installed, some of matplotlib's. The others (STIX roman, Computer
Modern roman, the obliques) are left out on purpose: they are for tests of reading in unseen fonts.
"""

import functools
import importlib.util
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT_FILES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneralBol",
    "cmss10",
    "cmtt10",
)
WORDS = tuple(
    re.findall(
        "[A-Z]+",
        "CAT DOG SUN SKY TREE FISH BIRD HOME CAR BUS MAP PEN CUP HAT BOX KEY BED MILK TEA RAIN SNOW "
        "WIND FIRE GOLD BLUE RED GREEN STAR MOON SHIP BOOK DOOR HAND FOOT EYE ARM BALL GAME SHOP SALE "
        "OPEN STOP EXIT PUSH PULL YES NO GO IN OUT UP ON OFF HELLO WORLD PLANT RIVER STONE TABLE CHAIR "
        "HORSE MOUSE TIGER ZEBRA QUEEN KING JAZZ FOX VAN ICE JAM WAX YOGA QUIZ BRICK CLOUD DREAM EARTH "
        "FLAME GRAPE HONEY IVORY JUICE KOALA LEMON MANGO NIGHT OCEAN PIANO QUICK ROBOT SUGAR TRAIN "
        "UNCLE VOICE WATER XRAY YOUNG ZERO MAX BY AT WE ME HE DAY ART LOVE TIME GOOD NEW FREE BANK",
    )
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLEAR = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # no O, 0, I, 1: they look alike side by side

Box = tuple[float, float, float, float]


@dataclass(slots=True)
class Writing:
    """A text, its colour, its box, each character with its box, and its mask as an "L" picture."""

    text: str
    rgb: tuple[int, int, int]
    box: Box
    boxes: list[tuple[str, Box]]
    mask: Image.Image

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()


@functools.cache
def font_names() -> tuple[str, ...]:
    """The available font files; "" is Pillow's own font."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return ("",)
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    files = [folder / f"{name}.ttf" for name in FONT_FILES]
    return ("", *(str(path) for path in files if path.is_file()))


@functools.lru_cache(maxsize=400)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    loaded = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise SystemExit("Pillow was built without FreeType: install the standard Pillow wheel.")
    return loaded


def make_text(rng: random.Random) -> str:
    """1 to 5 characters that are not ambiguous."""
    draw = rng.random()
    if draw < 0.3:
        return rng.choice(WORDS)
    length = rng.choices((1, 2, 3, 4, 5), (8, 18, 28, 26, 20))[0]
    if draw < 0.52:
        alone = length == 1
        return "".join(rng.choice("23456789" if alone else "0123456789") for _ in range(length))
    if draw < 0.64 and length > 1:
        text = "".join(rng.choice(CLEAR) for _ in range(length))
        return text if not text.isdigit() else rng.choice("ABCDEFGH") + text[1:]
    text = "".join(rng.choice(LETTERS) for _ in range(length))
    return text if set(text) - {"O", "I"} else "K" + text[1:]


def _render(
    text: str, name: str, height: float, rng: random.Random
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """(the text with capitals `height` pixels high, tightly cropped; each character with its box)"""
    reference = font(name, 100).getbbox("H")
    face = font(name, max(8, round(100 * height / (reference[3] - reference[1]))))
    spacing = rng.uniform(0, 0.14) * height if rng.random() < 0.4 else 0.04 * height
    stroke = 1 if height > 26 and rng.random() < 0.12 else 0
    x, glyphs = 4.0, []
    for character in text:
        left, top, right, bottom = face.getbbox(character, stroke_width=stroke)
        glyphs.append((character, x, (x + left, top, x + right, bottom)))
        x += face.getlength(character) + spacing
    low = min(box[1] for _, _, box in glyphs)
    high = max(box[3] for _, _, box in glyphs)
    end = max(box[2] for _, _, box in glyphs)
    mask = Image.new("L", (math.ceil(end) + 4, math.ceil(high - low) + 4))
    pen = ImageDraw.Draw(mask)
    for character, at, _ in glyphs:
        pen.text((at, 2 - low), character, fill=255, font=face, stroke_width=stroke)
    boxes = [(c, (b[0], b[1] - low + 2, b[2], b[3] - low + 2)) for c, _, b in glyphs]
    return mask, boxes


def make_writing(
    rng: random.Random, width: int, height: int, frame: float, lightness: float
) -> Writing:
    """A writing at a random place of an empty picture: light on dark backgrounds, dark on light ones."""
    side = min(width, height)
    text = make_text(rng)
    # At least 13 % of the shorter side, and never below 15 rows of the 128 that the model sees.
    least = max(0.13 * side, 15 / 128 * height)
    tall = rng.uniform(least, max(0.26 * side, 1.3 * least))
    stretch = rng.uniform(0.85, 1.25) if rng.random() < 0.5 else 1.0
    tilt = rng.uniform(-6, 6) if rng.random() < 0.25 else 0.0
    room_x = width - 2 * frame - 0.05 * side
    room_y = height - 2 * frame - 0.05 * side
    name = rng.choice(font_names())
    mask, boxes = _render(text, name, tall, rng)
    scale = min(1.0, room_x / (mask.width * stretch + abs(tilt) / 57 * mask.height))
    scale = min(scale, room_y / (mask.height + abs(tilt) / 57 * mask.width))
    if scale < 1 or stretch != 1:
        sx, sy = stretch * scale, max(scale, min(1.0, least / tall)) if tilt == 0 else scale
        size = max(1, round(mask.width * sx)), max(1, round(mask.height * sy))
        sx, sy = size[0] / mask.width, size[1] / mask.height
        mask = mask.resize(size, Image.Resampling.BILINEAR)
        boxes = [(c, (b[0] * sx, b[1] * sy, b[2] * sx, b[3] * sy)) for c, b in boxes]
    if tilt:
        boxes, mask = _tilt(boxes, mask, tilt)
    left = rng.uniform(
        frame + 0.02 * side, max(width - frame - 0.02 * side - mask.width, 0.03 * side)
    )
    top = rng.uniform(
        frame + 0.02 * side, max(height - frame - 0.02 * side - mask.height, 0.03 * side)
    )
    left, top = int(left), int(top)
    grey = rng.randint(215, 255) if lightness < 55 else rng.randint(0, 35)
    rgb = tuple(max(0, min(255, grey + rng.randint(-12, 12))) for _ in range(3))
    placed = [(c, (b[0] + left, b[1] + top, b[2] + left, b[3] + top)) for c, b in boxes]
    box = (left, top, left + mask.width, top + mask.height)
    return Writing(text, (rgb[0], rgb[1], rgb[2]), box, placed, mask)


def _tilt(
    boxes: list[tuple[str, Box]], mask: Image.Image, degrees: float
) -> tuple[list[tuple[str, Box]], Image.Image]:
    """Rotates the mask; every box keeps its size and follows its centre."""
    turned = mask.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved = []
    for character, (left, top, right, bottom) in boxes:
        x = (left + right) / 2 - mask.width / 2
        y = (top + bottom) / 2 - mask.height / 2
        u = x * c + y * s + turned.width / 2
        v = -x * s + y * c + turned.height / 2
        w, h = (right - left) / 2, (bottom - top) / 2
        moved.append((character, (u - w, v - h, u + w, v + h)))
    return moved, turned
