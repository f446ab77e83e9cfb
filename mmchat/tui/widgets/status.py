"""The title line at the top and the status line at the bottom."""

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from mmchat.chat.events import LoadProgress
from mmchat.display.numbers import format_percent
from mmchat.display.text import bar, cut, one_line
from mmchat.history import Origin
from mmchat.sanitize import clean
from mmchat.tui.labels import MUTED, speed, tokens


class TitleLine(Widget):
    """The conversation's title and tags and, on the right, the model that answers."""

    title: reactive[str] = reactive("")
    tags: reactive[str] = reactive("")
    model: reactive[str] = reactive("")

    def __init__(self, title: str = "", id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.set_reactive(TitleLine.title, title)

    def validate_title(self, title: str) -> str:
        return one_line(title)

    def validate_tags(self, tags: str) -> str:
        return one_line(tags)

    def validate_model(self, model: str) -> str:
        return one_line(model)

    def render(self) -> RenderResult:
        width = self.size.width
        model = one_line(self.model, max(width // 2, 1))
        room = max(width - len(model) - 2, 1)
        tags = one_line(self.tags, room // 2) if self.tags else ""
        room -= len(tags) + 2 if tags else 0
        return _ends(
            Content.assemble(
                (cut(self.title, max(room, 1)), "bold"),
                (f"  {tags}" if tags else "", MUTED),
            ),
            Content.styled(model, MUTED),
            width,
        )


class StatusLine(Widget):
    """Left: loading, an error, or the figures of the last answer. Right: training, and two keys."""

    progress: reactive[LoadProgress | None] = reactive(None)
    """How far the load of a model is; None if nothing is being loaded."""
    error: reactive[str] = reactive("", layout=True)
    """Why there is no model; empty if there is one."""
    origin: reactive[Origin | None] = reactive(None)
    """How the last answer was made."""
    context_length: reactive[int] = reactive(0)
    """Of the loaded model, in tokens, for answers that do not tell; 0 if it is not known."""
    training: reactive[str] = reactive("")
    """What is being trained, in a few words; empty for nothing."""

    def validate_error(self, error: str) -> str:
        return clean(error, keep_newlines=False)

    @property
    def text(self) -> str:
        """What is shown on the left, as plain text."""
        return str(self._left(max(self.size.width, 200)))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        if self.error:
            return Content(self.error).get_height({}, max(width, 1))
        return 1

    def on_click(self, event: events.Click) -> None:
        event.stop()

    def render(self) -> RenderResult:
        width = self.size.width
        if self.error:
            return Content.styled(self.error, "$text-error")
        right = Content.styled("F1 help  Ctrl+P palette", MUTED)
        if self.training:
            # If there is too little room, a key is left out before the figures are.
            keys = "F1 help" if width < 100 else "F1 help  Ctrl+P palette"
            right = Content.assemble((self.training, "$text-primary"), (f"   {keys}", MUTED))
        left = self._left(width - len(right) - 2)
        return _ends(left, right, width)

    def _left(self, room: int) -> Content:
        if self.error:
            return Content(self.error)
        if self.progress is not None:
            label = f"loading {one_line(self.progress.model, 24)} "
            percent = f" {format_percent(self.progress.fraction)}"
            width = max(6, min(24, room - len(label) - len(percent)))
            done, left = bar(self.progress.fraction, width)
            rest = room - len(label) - width - len(percent) - 2
            stage = self.progress.stage
            more = f"  {one_line(stage, rest)}" if stage and rest > 8 else ""
            return Content.assemble(
                (label, MUTED),
                (done, "$primary"),
                (left, "$foreground 20%"),
                (percent + more, MUTED),
            )
        known = self.origin.parameters.get("context_length") if self.origin else None
        context = known if isinstance(known, int) else self.context_length
        figures = tokens(self.origin, context)
        rate = speed(self.origin)
        for text in (
            "   ".join(part for part in (figures, rate) if part),
            figures,
            tokens(self.origin, context, short=True),
        ):
            if len(text) <= room:
                return Content.styled(text, MUTED)
        return Content("")


def _ends(left: Content, right: Content, width: int) -> Content:
    """Two texts at the ends of a line; the left one is cut if there is too little room."""
    gap = width - left.cell_length - right.cell_length
    if gap < 1:
        return left.truncate(width, ellipsis=True)
    return Content.assemble(left, " " * gap, right)
