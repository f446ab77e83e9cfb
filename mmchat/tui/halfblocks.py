"""Pictures in half blocks: two pixels for each cell, one above the other. No widgets here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    from mmchat.images import Picture

Pixel = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of `columns` × `rows` cells: `columns` × 2·`rows` pixels, row by row."""

    columns: int
    rows: int
    pixels: bytes
    """RGB, 3 bytes for each pixel."""

    def pixel(self, x: int, y: int) -> Pixel:
        at = (y * self.columns + x) * 3
        return self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]


def fit(width: int, height: int, columns: int, rows: int) -> tuple[int, int]:
    """The columns and rows of a picture of `width` × `height` pixels, in a box of cells.

    Cells are assumed to be twice as tall as wide. The result is never empty, and no pixel takes
    more than one half cell.
    """
    scale = min(columns / width, rows * 2 / height, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale / 2))


def preview(picture: "Picture", columns: int, rows: int) -> Preview:
    """Decode and shrink `picture`; slow for a large one, so call it in a thread.

    Raises ImageError.
    """
    across, down = fit(picture.width, picture.height, columns, rows)
    image = picture.rgb(max(across, down * 2) * 4)
    small = image.resize((across, down * 2))
    return Preview(across, down, small.convert("RGB").tobytes())


def lines(preview: Preview) -> Sequence[list[Segment]]:
    """One list of segments for each row; neighbours of the same colour share a segment."""
    drawn: list[list[Segment]] = []
    for row in range(preview.rows):
        segments: list[Segment] = []
        run, last = 0, None
        for x in range(preview.columns):
            pair = (preview.pixel(x, row * 2), preview.pixel(x, row * 2 + 1))
            if pair != last and last is not None:
                segments.append(Segment("▀" * run, _style(*last)))
                run = 0
            run, last = run + 1, pair
        if last is not None:
            segments.append(Segment("▀" * run, _style(*last)))
        drawn.append(segments)
    return drawn


def _style(upper: Pixel, lower: Pixel) -> Style:
    return Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower))
