"""Pictures of terminal apps: a small Textual app in many states, drawn from its own SVG export.

The export is Textual's public door; it holds one rectangle a background run and one text a style
run, which Pillow draws here, so that no SVG renderer is needed.
"""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import (
    Button,
    Checkbox,
    DataTable,
    Footer,
    Header,
    Input,
    Label,
    ListItem,
    ListView,
    Markdown,
    ProgressBar,
    Static,
)

SVG = "{http://www.w3.org/2000/svg}"
THEMES = (
    "textual-dark",
    "textual-light",
    "nord",
    "gruvbox",
    "dracula",
    "monokai",
    "solarized-light",
)
SUBJECTS = (
    "Holiday in the hills",
    "Invoice for March",
    "Bird at the feeder",
    "Bread that did not rise",
    "Old bicycle",
    "Map of the harbour",
    "Garden in June",
    "A letter from Ada",
)
REPLIES = (
    "The bird on the left is a **great tit**: the black stripe down its breast shows it.",
    "1. Warm the oven\n2. Fold the dough twice\n3. Wait for an hour\n",
    "The total is `418.20`, due on the last day of the month.",
    "> It looks as if the chain came off.\n\nTurn the pedal backwards while you lift it.",
    "| day | walked |\n|---|---|\n| Monday | 11 km |\n| Tuesday | 7 km |\n",
)


class DeskApp(App[None]):
    """A chat, a table or a form, by `kind`, filled by a seeded random source."""

    CSS = """
    ListView { width: 26; border-right: solid $primary; }
    .said { padding: 1 2; }
    .mine { background: $boost; }
    DataTable { height: 1fr; }
    Input { dock: bottom; margin: 0 1 1 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("f1", "help", "Help"),
        ("ctrl+n", "new", "New"),
        ("ctrl+f", "find", "Find"),
    ]

    def __init__(self, kind: str, rng: random.Random) -> None:
        super().__init__()
        self.kind = kind
        self.rng = rng
        self.theme = rng.choice(THEMES)
        self.title = rng.choice(SUBJECTS)

    def compose(self) -> ComposeResult:
        yield Header()
        if self.kind == "chat":
            yield from self._chat()
        elif self.kind == "table":
            yield DataTable()
        else:
            yield from self._form()
        yield Footer()

    def _chat(self) -> ComposeResult:
        chosen = self.rng.sample(SUBJECTS, self.rng.randint(3, 7))
        with Horizontal():
            yield ListView(*(ListItem(Label(name)) for name in chosen))
            with Vertical():
                for _ in range(self.rng.randint(1, 3)):
                    yield Static(f"And this one? {self.rng.choice(SUBJECTS)}", classes="said mine")
                    yield Markdown(self.rng.choice(REPLIES), classes="said")
                yield Input(placeholder="Ask about a picture")

    def _form(self) -> ComposeResult:
        with Vertical():
            yield Static("Settings", classes="said")
            for name in self.rng.sample(SUBJECTS, 3):
                yield Checkbox(name, value=self.rng.random() < 0.5)
            yield ProgressBar(total=100)
            with Horizontal():
                yield Button("Save", variant="primary")
                yield Button("Cancel", variant="error")

    def on_mount(self) -> None:
        # A blinking cursor and a moving bar would make each export another picture.
        for field in self.query(Input):
            field.cursor_blink = False
        for bar in self.query(ProgressBar):
            bar.update(progress=self.rng.randint(5, 95))
        for table in self.query(DataTable):
            table.add_columns("name", "kind", "size", "seen")
            for _ in range(self.rng.randint(4, 16)):
                table.add_row(
                    self.rng.choice(SUBJECTS),
                    self.rng.choice(("letter", "photo", "list", "map")),
                    f"{self.rng.randint(1, 900)} KB",
                    f"{self.rng.randint(1, 28)} March",
                )


def _fill(element: ElementTree.Element, styles: dict[str, str]) -> str:
    name = element.get("class", "").rsplit("-", 1)[-1]
    return element.get("fill") or styles.get(name, "#c5c8c6")


def rasterise(svg: str, width: int) -> Image.Image:
    """Textual's SVG export as a picture of about `width` pixels."""
    root = ElementTree.fromstring(svg)
    styles = dict(re.findall(r"-(r\d+) \{[^}]*?fill: (#[0-9a-fA-F]{6})", svg))
    box = [float(number) for number in root.attrib["viewBox"].split()]
    scale = width / box[2]
    picture = Image.new("RGB", (width, round(box[3] * scale)), "white")
    pen = ImageDraw.Draw(picture)
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")
    # The export's cell is 12.2 units wide and 20 high; this font's advance is 0.602 of its size.
    font = ImageFont.truetype(str(path), max(4.0, 12.2 / 0.602 * scale))

    def walk(element: ElementTree.Element, dx: float, dy: float) -> None:
        shift = re.match(r"translate\(([-\d.]+), *([-\d.]+)\)", element.get("transform", ""))
        if shift:
            dx, dy = dx + float(shift[1]), dy + float(shift[2])
        if element.tag == f"{SVG}defs":
            return
        x, y = (float(element.get(axis, 0)) + move for axis, move in (("x", dx), ("y", dy)))
        if element.tag == f"{SVG}rect":
            right = x + float(element.attrib["width"])
            bottom = y + float(element.attrib["height"])
            corners = [round(value * scale) for value in (x, y, right, bottom)]
            pen.rectangle(tuple(corners), fill=_fill(element, styles))
        elif element.tag == f"{SVG}circle":
            cx, cy = float(element.attrib["cx"]) + dx, float(element.attrib["cy"]) + dy
            radius = float(element.attrib["r"])
            edges = (cx - radius, cy - radius, cx + radius, cy + radius)
            pen.ellipse(tuple(edge * scale for edge in edges), fill=_fill(element, styles))
        elif element.tag == f"{SVG}text" and element.text:
            middle = element.get("text-anchor") == "middle"
            text = element.text.replace("\xa0", " ")
            where = (x * scale, y * scale)
            anchor = "ms" if middle else "ls"
            pen.text(where, text, fill=_fill(element, styles), font=font, anchor=anchor)
        for child in element:
            walk(child, dx, dy)

    walk(root, 0.0, 0.0)
    return picture


async def _export(app: DeskApp, size: tuple[int, int]) -> str:
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        return app.export_screenshot()


def draw_screen(rng: random.Random) -> Image.Image:
    app = DeskApp(rng.choice(("chat", "chat", "table", "form")), rng)
    size = rng.choice(((80, 24), (100, 30), (64, 32), (120, 36)))
    svg = asyncio.run(_export(app, size))
    return rasterise(svg, rng.choice((480, 640, 800, 1024)))
