"""One message of the conversation."""

from collections.abc import Callable
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message as Post
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from mmchat.chat.events import PendingAnswer
from mmchat.display.messages import RATINGS, author, clock, is_too_long, notes, picture_label
from mmchat.history import Message, StoredImage
from mmchat.images import Picture
from mmchat.sanitize import Cleaner, clean
from mmchat.tui.labels import origin_summary, queue_position
from mmchat.tui.widgets.answer_text import AnswerText
from mmchat.tui.widgets.picture import PictureGrid, PictureView


class Siblings(Static):
    """`‹ 2/3 ›`: a click on an end shows the answer before or after."""

    class Moved(Post):
        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    def __init__(self) -> None:
        super().__init__("", markup=False, classes="siblings")

    def show(self, message: Message) -> None:
        self.display = message.siblings > 1
        self.update(f"‹ {message.sibling}/{message.siblings} ›")

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Moved(-1 if event.x < self.size.width / 2 else 1))


class MessageView(Vertical, can_focus=True, can_focus_children=False):
    """A message: its author, its pictures, its text, and a note about its state."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "sibling(-1)", "Previous answer", id="message.previous"),
        Binding("right", "sibling(1)", "Next answer", id="message.next"),
        Binding(
            "enter", "continue", "Continue with this answer", id="message.continue", show=False
        ),
        Binding("up", "app.focus_previous", "Previous message", show=False),
        Binding("down", "app.focus_next", "Next message", show=False),
    ]

    class SiblingRequested(Post):
        """The person wants to see another answer to the same question."""

        def __init__(self, message: Message, step: int) -> None:
            super().__init__()
            self.message, self.step = message, step

    def __init__(
        self,
        message: Message,
        *,
        now: float,
        load: Callable[[StoredImage], Picture],
        box: tuple[int, int],
        pending: PendingAnswer | None = None,
        compared: bool = False,
    ) -> None:
        """compared: it is shown beside another answer to the same question."""
        super().__init__(classes=message.role)
        self.message = message
        self.pending = pending
        self._now = now
        self._load = load
        self._box = box
        self._compared = compared
        self._cleaner = Cleaner()
        self._stream: MarkdownStream | None = None
        self._drawn = 0

    def compose(self) -> ComposeResult:
        message = self.message
        with Horizontal(classes="head"):
            yield Static(author(message), markup=False, classes="who")
            yield Siblings()
            yield Static("", markup=False, classes="rating")
            yield Static("", markup=False, classes="figures")
        if message.images:
            several = len(message.images) > 1
            pictures = [
                self._picture(image, number if several else 0)
                for number, image in enumerate(message.images, 1)
            ]
            yield PictureGrid(*pictures) if several else Horizontal(*pictures, classes="pictures")
        if message.role == "user":
            yield Static(clean(message.text), markup=False, classes="text")
        else:
            self._drawn = len(self.text)
            yield AnswerText(self._cleaner.feed(self.text))
        yield Static("", markup=False, classes="note")

    def _picture(self, image: StoredImage, number: int) -> PictureView:
        caption = picture_label(image.name, image.width, image.height)
        return PictureView(
            image.sha256,
            image.width,
            image.height,
            f"[{number}] {caption}" if number else caption,
            lambda: self._load(image),
            columns=self._box[0],
            rows=self._box[1],
        )

    def on_mount(self) -> None:
        self.show_state()

    @property
    def text(self) -> str:
        """The text so far, not cleaned."""
        return self.pending.text if self.pending else self.message.text

    async def show_more(self) -> None:
        """Draw the text that the answer has got since the last call."""
        if self.pending is None:
            return
        more = self.pending.text[self._drawn :]
        self._drawn += len(more)
        await self._draw(self._cleaner.feed(more))

    async def _draw(self, text: str) -> None:
        # Not created before there is text: a stream that is stopped before its first write ends
        # the app, because its task is cancelled before it began, and so is the task that awaits it.
        if not text:
            return
        if self._stream is None:
            body = self.query_one(AnswerText)
            body.display = True
            self._stream = Markdown.get_stream(body)
        await self._stream.write(text)

    async def finish(self, message: Message | None, error: str = "") -> None:
        """Show `message` as the history has it: the answer is finished, or another window changed it."""
        await self.show_more()
        await self.stop_stream()
        self.pending = None
        if message is not None:
            self.message = message
            if message.role == "assistant" and len(message.text) != self._drawn:
                self._drawn = len(message.text)
                await self.query_one(AnswerText).update(clean(message.text))
        self.show_state(error)

    async def stop_stream(self) -> None:
        """Draw the text so far and stop drawing."""
        await self._draw(self._cleaner.rest())
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.stop()

    def show_state(self, error: str = "") -> None:
        """Update the line above the text and the note under it."""
        message = self.message
        self.query_one(Siblings).show(message)
        figures = origin_summary(message.origin, self._compared)
        if message.role == "user":
            figures = clock(message.created, self._now)
        self.query_one(".figures", Static).update(figures)
        rating = self.query_one(".rating", Static)
        rating.update(RATINGS[message.rating] if message.rating else "")
        rating.display = message.rating is not None
        rating.set_class(message.rating == "bad", "bad")
        note = self.query_one(".note", Static)
        text, kind = self._note(error)
        note.update(text)
        note.set_class(kind == "error", "error")
        note.display = bool(text)
        body = self.query(AnswerText)
        if body:
            body.first().display = self._drawn > 0

    def _note(self, error: str) -> tuple[str, str]:
        """The note under the text, and its kind: "note" or "error"."""
        pending = self.pending
        if error:
            return clean(error), "error"
        if pending is not None and pending.save_error:
            return clean(f"{pending.save_error} mmchat will try again."), "error"
        if pending is not None and pending.stop_requested:
            return "stopping…", "note"
        if pending is not None:
            position = pending.queue_position
            phases = {
                "queued": "waiting for its turn…",
                "waiting": f"{queue_position(position)}…" if position else "asking…",
                "loading": "waiting for the model to load…",
                "reading": "looking…" if pending.origin.image_tokens else "reading…",
                "writing": "",
            }
            return phases[pending.phase], "note"
        if self.message.role == "user":
            return "", "note"
        if self.message.state == "streaming":
            return "Being written in another window.", "note"
        sentences = [sentence for _, sentence in notes(self.message)]
        failed = self.message.state in ("failed", "interrupted")
        text = "\n".join(sentences)
        again = "  Ctrl+R asks again." if failed and not is_too_long(self.message) else ""
        return text + again, "error" if failed else "note"

    def action_sibling(self, step: int) -> None:
        self.post_message(self.SiblingRequested(self.message, step))

    def action_continue(self) -> None:
        if self._compared:
            self.action_sibling(0)

    @on(Siblings.Moved)
    def _moved(self, event: Siblings.Moved) -> None:
        event.stop()
        self.action_sibling(event.step)
