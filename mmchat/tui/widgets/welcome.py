"""What an empty conversation shows: a greeting and examples."""

import asyncio
import contextlib
from pathlib import Path

from textual import events, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Static

from mmchat.errors import ImageError
from mmchat.images import PICTURE_SUFFIXES, Picture, read_picture
from mmchat.settings import builtin_adapters
from mmchat.tui.widgets.input import NavigationKey
from mmchat.tui.widgets.picture import Thumbnail

QUESTIONS = {
    "crosses": "How many crosses are there?",
    "moon": "What is written here?",
    "rings": "How many rings are there?",
}
"""What is asked about an example, by the name of its file."""
QUESTION = "What is in this picture?"
_SHOWN = 4


def examples() -> list[Path]:
    """A few pictures that come with mmchat; empty if there are none."""
    folder = builtin_adapters() / "scenes" / "examples"
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return []
    return [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES][:_SHOWN]


class Card(Vertical):
    """One example: a thumbnail and a question about it."""

    class Clicked(Message):
        def __init__(self, card: "Card") -> None:
            super().__init__()
            self.card = card

    def __init__(self, path: Path, picture: Picture, question: str) -> None:
        super().__init__()
        self.path, self.question = path, question
        self._picture = picture

    def compose(self) -> ComposeResult:
        one = self._picture
        yield Thumbnail(one.sha256, one.width, one.height, lambda: one, columns=12, rows=5)
        yield Static(self.question, classes="question", markup=False)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Clicked(self))


class Welcome(Vertical):
    """A greeting and, if the history is empty, the examples."""

    class Chosen(Message):
        """The person chose an example: `question` about the picture at `path`."""

        def __init__(self, path: Path, question: str) -> None:
            super().__init__()
            self.path, self.question = path, question

    def __init__(self, pictures: list[Path], first: bool) -> None:
        super().__init__()
        self._pictures = pictures
        self._first = first
        self._chosen = 0

    def compose(self) -> ComposeResult:
        greeting = "Hello. Show me a picture and ask about it."
        with Vertical(classes="lines"):
            yield Static(
                greeting if self._first else "A new conversation.",
                classes="greeting",
                markup=False,
            )
            yield Static(
                "Drop a file here, paste its path, or type @ and its name.",
                classes="how",
                markup=False,
            )
            if self._pictures:
                yield Static(
                    "No picture at hand? Choose one with ← → and press Enter:",
                    classes="how",
                    markup=False,
                )
                yield Horizontal(classes="cards")

    def on_mount(self) -> None:
        if self._pictures:  # after the first paint, because reading pictures imports Pillow
            self.call_after_refresh(self._show_cards)

    @work(exclusive=True)
    async def _show_cards(self) -> None:
        cards: list[Card] = []
        for path in self._pictures:
            question = QUESTIONS.get(path.stem, QUESTION)
            with contextlib.suppress(ImageError):  # a broken example is left out
                cards.append(Card(path, await asyncio.to_thread(read_picture, path), question))
        await self.query_one(".cards").mount_all(cards)
        self._mark()

    @property
    def has_examples(self) -> bool:
        """Whether there are examples to choose from."""
        return bool(self._pictures)

    def navigate(self, key: NavigationKey) -> None:
        """Handle a key of the empty input: up (left), down (right), or enter."""
        cards = list(self.query(Card))
        if not cards:
            return
        if key == "enter":
            self._choose(cards[self._chosen])
        else:
            self._chosen = (self._chosen + (-1 if key == "up" else 1)) % len(cards)
            self._mark()

    def _mark(self) -> None:
        for place, card in enumerate(self.query(Card)):
            card.set_class(place == self._chosen, "chosen")

    def on_card_clicked(self, event: Card.Clicked) -> None:
        event.stop()
        self._choose(event.card)

    def _choose(self, card: Card) -> None:
        self.post_message(self.Chosen(card.path, card.question))
