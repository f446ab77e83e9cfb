"""Pictures on the screen: half blocks, made in a thread and cached."""

from collections import OrderedDict
from collections.abc import Callable

from rich.segment import Segment
from textual import work
from textual.app import ComposeResult
from textual.containers import Container, ItemGrid
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from mmchat.errors import MmchatError
from mmchat.images import Picture
from mmchat.sanitize import clean
from mmchat.tui.halfblocks import Preview, fit, lines, preview

Load = Callable[[], Picture]
"""Returns the picture, called in a thread. Raises ImageError or HistoryError."""

GRID_COLUMNS = 26
"""How wide each of several pictures is, with its caption and the gap to the next one."""

_CACHE_SIZE = 256
_cache: OrderedDict[tuple[str, int, int], Preview] = OrderedDict()


class Thumbnail(Widget):
    """A picture in half blocks, in a box of `columns` × `rows` cells; its size is known at once."""

    DEFAULT_CSS = "Thumbnail { width: auto; height: auto; }"
    can_focus = False

    def __init__(
        self, sha256: str, width: int, height: int, load: Load, columns: int, rows: int
    ) -> None:
        super().__init__()
        self._key = (sha256, columns, rows)
        self._load = load
        self._picture = max(width, 1), max(height, 1)
        self._cells = fit(*self._picture, columns, rows)
        self._strips: list[Strip] = []

    def refit(self, columns: int, rows: int) -> None:
        """Fit the picture into another box: the terminal's size has changed."""
        if self._key[1:] != (columns, rows):
            self._key = (self._key[0], columns, rows)
            self._cells = fit(*self._picture, columns, rows)
            self._strips = []
            self.refresh(layout=True)
            self.on_mount()

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return self._cells[0]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self._cells[1]

    def on_mount(self) -> None:
        known = _cache.get(self._key)
        if known is None:
            self._make()
        else:
            _cache.move_to_end(self._key)
            self._show(known)

    @work(thread=True, group="thumbnail")
    def _make(self) -> None:
        key = self._key
        try:
            made = preview(self._load(), key[1], key[2])
        except MmchatError as error:
            self.app.call_from_thread(self._show_error, str(error))
            return
        self.app.call_from_thread(self._store, key, made)

    def _store(self, key: tuple[str, int, int], made: Preview) -> None:
        _cache[key] = made
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
        if key == self._key:
            self._show(made)

    def _show(self, made: Preview) -> None:
        self._strips = [Strip(row, made.columns) for row in lines(made)]
        if self._cells != (made.columns, made.rows):
            self._cells = (made.columns, made.rows)
            self.refresh(layout=True)
        else:
            self.refresh()

    def _show_error(self, sentence: str) -> None:
        self.tooltip = Content(clean(sentence))  # a plain string would be parsed as markup

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y < len(self._strips):
            return self._strips[y].adjust_cell_length(width, self.rich_style)
        if self._strips:  # the box is taller than the picture
            return Strip.blank(width, self.rich_style)
        return Strip([Segment("░" * width, self.rich_style)], width)


class PictureView(Container):
    """A picture of a message with its caption: beside it or, if there are several, under it."""

    def __init__(
        self,
        sha256: str,
        width: int,
        height: int,
        caption: str,
        load: Load,
        *,
        columns: int,
        rows: int,
    ) -> None:
        super().__init__()
        self._caption = caption
        self._thumbnail = Thumbnail(sha256, width, height, load, columns, rows)

    def compose(self) -> ComposeResult:
        yield self._thumbnail
        yield Static(clean(self._caption, False), classes="caption", markup=False)


class PictureGrid(ItemGrid):
    """The pictures of a message that has several: as many in a row as there is room for."""

    def __init__(self, *pictures: PictureView) -> None:
        super().__init__(
            *pictures,
            classes="pictures several",
            min_column_width=GRID_COLUMNS,
            max_column_width=GRID_COLUMNS,
            stretch_height=False,
        )
