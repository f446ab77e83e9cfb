"""The search over all conversations."""

from collections.abc import Callable, Sequence
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
from mmchat.tui.formatting import MUTED, snippet_parts


class Result(Option):
    """A row, which knows its message also when the list has changed before it is opened."""

    def __init__(self, hit: Hit, row: Content) -> None:
        super().__init__(row)
        self.hit = hit


class SearchScreen(ModalScreen[Hit | None]):
    """Finds messages while one types; the chosen one is the screen's result."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close"),
        Binding("down", "move(1)", "Down", show=False),
        Binding("up", "move(-1)", "Up", show=False),
    ]

    def __init__(self, search: Callable[[str], Sequence[Hit]], now: float, words: str = "") -> None:
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

    @work(thread=True, exclusive=True, group="search")
    def _find(self, words: str) -> None:
        hits: Sequence[Hit] = ()
        problem = ""
        if words.strip():
            try:
                hits = self._search(words)
            except HistoryError as error:
                problem = str(error)
        self.app.call_from_thread(self._show, words, hits, problem)

    def _show(self, words: str, hits: Sequence[Hit], problem: str = "") -> None:
        if not self.is_mounted or words != self.query_one(Input).value:
            return  # an answer to what was typed before
        shown = self.query_one(OptionList)
        shown.clear_options()
        shown.add_options(self._row(hit) for hit in hits)
        shown.highlighted = 0 if hits else None
        said = "Type a word or its beginning."
        if problem:
            said = clean(problem)
        elif hits:
            said = "Enter opens it   Esc goes back"
        elif words.strip():
            said = "No matches."
        self.query_one(".keys", Static).update(said)

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
    def _taken(self) -> None:
        shown = self.query_one(OptionList)
        if shown.highlighted is not None:
            shown.action_select()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        assert isinstance(event.option, Result)
        self.dismiss(event.option.hit)
