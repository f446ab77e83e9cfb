"""The line at the bottom and the line at the top: what is there, what goes on, what it cost."""

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from mmchat.display.numbers import format_percent
from mmchat.display.text import bar, cut, one_line
from mmchat.history import Origin
from mmchat.sanitize import clean
from mmchat.tui.formatting import MUTED, speed, tokens


class TitleLine(Widget):
    """The conversation's title, and at the right what answers."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._title, self._model, self._tags = "", "", ""

    def show(self, title: str, model: str, tags: str = "") -> None:
        shown = one_line(title), one_line(model), one_line(tags)
        if shown != (self._title, self._model, self._tags):
            self._title, self._model, self._tags = shown
            self.refresh()

    def render(self) -> RenderResult:
        width = self.size.width
        model = one_line(self._model, max(width // 2, 1))
        room = max(width - len(model) - 2, 1)
        tags = one_line(self._tags, room // 2) if self._tags else ""
        room -= len(tags) + 2 if tags else 0
        return _ends(
            Content.assemble(
                (cut(self._title, max(room, 1)), "bold"),
                (f"  {tags}" if tags else "", MUTED),
            ),
            Content.styled(model, MUTED),
            width,
        )


class StatusLine(Widget):
    """Left: loading, a problem, or the figures of the last answer. Right: two keys."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._loading: tuple[str, str, float] | None = None
        self._origin: Origin | None = None
        self._window = 0
        self._problem = ""
        self._training = ""

    def show_loading(self, model: str, stage: str, fraction: float) -> None:
        self._loading, self._problem = (clean(model, False), clean(stage, False), fraction), ""
        self.refresh()

    def show_problem(self, sentence: str) -> None:
        """Why there is no model; stays until one is there."""
        self._loading, self._problem = None, clean(sentence, keep_newlines=False)
        self.styles.height = None
        self.refresh(layout=True)

    def show_ready(self) -> None:
        self._loading, self._problem = None, ""
        self.refresh(layout=True)

    def show_figures(self, origin: Origin | None, context: int) -> None:
        self._origin, self._window = origin, context
        self.refresh()

    def show_training(self, words: str) -> None:
        """What is being trained; empty for nothing."""
        if words != self._training:
            self._training = words
            self.refresh()

    @property
    def text(self) -> str:
        """What the line says, for whoever cannot see it."""
        return str(self._left(max(self.size.width, 200)))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        if self._problem:
            return Content(self._problem).get_height({}, max(width, 1))
        return 1

    def on_click(self, event: events.Click) -> None:
        event.stop()

    def render(self) -> RenderResult:
        width = self.size.width
        if self._problem:
            return Content.styled(self._problem, "$text-error")
        right = Content.styled("F1 help  Ctrl+P palette", MUTED)
        if self._training:
            # Beside it the keys give way before the figures do.
            keys = "F1 help" if width < 100 else "F1 help  Ctrl+P palette"
            right = Content.assemble((self._training, "$text-primary"), (f"   {keys}", MUTED))
        left = self._left(width - len(right) - 2)
        return _ends(left, right, width)

    def _left(self, room: int) -> Content:
        if self._problem:
            return Content(self._problem)
        if self._loading is not None:
            model, stage, fraction = self._loading
            words = f"loading {one_line(model, 24)} "
            share = f" {format_percent(fraction)}"
            width = max(6, min(24, room - len(words) - len(share)))
            done, left = bar(fraction, width)
            rest = room - len(words) - width - len(share) - 2
            more = f"  {one_line(stage, rest)}" if stage and rest > 8 else ""
            return Content.assemble(
                (words, MUTED),
                (done, "$primary"),
                (left, "$foreground 20%"),
                (share + more, MUTED),
            )
        figures = tokens(self._origin, self._window)
        rate = speed(self._origin)
        for text in (
            "   ".join(part for part in (figures, rate) if part),
            figures,
            tokens(self._origin, self._window, short=True),
        ):
            if len(text) <= room:
                return Content.styled(text, MUTED)
        return Content("")


def _ends(left: Content, right: Content, width: int) -> Content:
    """Two texts at the ends of a line; the left one gives way."""
    gap = width - left.cell_length - right.cell_length
    if gap < 1:
        return left.truncate(width, ellipsis=True)
    return Content.assemble(left, " " * gap, right)
