"""The search over all conversations."""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from mmchat.display.messages import UNTITLED, clock
from mmchat.display.text import one_line
from mmchat.errors import HistoryError
from mmchat.history import Hit
from mmchat.sanitize import clean
from mmchat.tui.labels import MUTED, snippet_parts


class Result(Option):
    """A row with its hit: the list may change before the row is opened."""

    def __init__(self, hit: Hit, row: Content) -> None:
        super().__init__(row)
        self.hit = hit


class SearchScreen(ModalScreen[Hit | None]):
    """Finds messages while a person types; the chosen one is the result, None after Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("down", "move(1)", "Down", show=False),
        Binding("up", "move(-1)", "Up", show=False),
    ]

    def __init__(
        self, search: Callable[[str], Awaitable[Sequence[Hit]]], now: float, words: str = ""
    ) -> None:
        super().__init__()
        self._search, self._now, self._words = search, now, words

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide tall"):
            yield Input(self._words, placeholder="Search all conversations", compact=True)
            yield OptionList(compact=True, markup=False)
            yield Static("", classes="keys", markup=False)

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        if not self._words:
            self._show("", ())

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._find(event.value)

    @work(exclusive=True, group="search")
    async def _find(self, words: str) -> None:
        hits: Sequence[Hit] = ()
        error = ""
        if words.strip():
            try:
                hits = await self._search(words)
            except HistoryError as caught:
                error = str(caught)
        self._show(words, hits, error)

    def _show(self, words: str, hits: Sequence[Hit], error: str = "") -> None:
        if not self.is_mounted or words != self.query_one(Input).value:
            return  # more was typed since then
        shown = self.query_one(OptionList)
        shown.clear_options()
        shown.add_options(self._row(hit) for hit in hits)
        shown.highlighted = 0 if hits else None
        hint = "Type a word or its beginning."
        if error:
            hint = clean(error)
        elif hits:
            hint = "Enter opens it   Esc goes back"
        elif words.strip():
            hint = "No matches."
        self.query_one(".keys", Static).update(hint)

    def _row(self, hit: Hit) -> Result:
        who = "you" if hit.role == "user" else "mmchat"
        row = Content.assemble(
            (one_line(hit.title, 60) or UNTITLED, "bold"),
            (f"  {who} · {clock(hit.created, self._now)}\n", MUTED),
            "  ",
            *(
                (text, "bold $primary") if marked else (text, "")
                for text, marked in snippet_parts(hit.snippet, hit.marks)
            ),
        )
        return Result(hit, row)

    def action_move(self, step: int) -> None:
        shown = self.query_one(OptionList)
        if step > 0:
            shown.action_cursor_down()
        else:
            shown.action_cursor_up()

    @on(Input.Submitted)
    def _entered(self) -> None:
        shown = self.query_one(OptionList)
        if shown.highlighted is not None:
            shown.action_select()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        assert isinstance(event.option, Result)
        self.dismiss(event.option.hit)
