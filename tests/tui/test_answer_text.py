"""Model output as Markdown: the same on the screen in pieces as whole, and never markup."""

from collections.abc import Callable

import pytest
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static
from textual.widgets._markdown import (
    MarkdownBullet,
    MarkdownHorizontalRule,
    MarkdownTableCellContents,
)
from textual.widgets._tooltip import Tooltip

from mmchat.history import History, Origin
from mmchat.tui.app import ChatApp
from mmchat.tui.widgets.answer_text import AnswerText
from tests.engine.scripted import open_gate
from tests.tui.conftest import answered, drawn, say, shown, until

NewApp = Callable[..., ChatApp]

TABLE = "|a|b|\n|-|-|\n|1|2|\n|3|4|\n"
TEXTS = {
    "list after a table": f"{TABLE}1. a\n2. b\n",
    "list with brackets after a table": f"{TABLE}2) a\n",
    "bullets after a table": f"{TABLE}- a\n- b\n",
    "code after a table": f"{TABLE}```python\nx\n```\n",
    "rule after a table": f"{TABLE}---\nend\n",
    "quote after a table": f"{TABLE}> a\n",
    "heading after a table": f"{TABLE}# a\n",
    "list after a table without rows": "x\n-\n1) a\n",
    "list after a table of one row": "|x|\n|-|\n|1|\n1. a\n",
    "text between two tables": f"{TABLE}\n\nand\n\n{TABLE}",
    "markup in a table": "|[/b]|`[/]`|\n|-|-|\n|[/I]|[a=b c]|\n",
    "rows too short and too long": "|a|b|\n|-|-|\n|1\n|1|2|3|\nend\n",
    "lines of a paragraph": "".join(f"line {n}\n" for n in range(1, 6)),
    "line separators": "one\u2028two\u2029three\n\nfour\n\n- a\n- b\n",
    "bullets": "- one\n- two\n\n  of two\n- three\n",
    "nested": "1. a\n   - b\n\n     ```sh\n     ls\n     ```\n2. c\n\n   > d\n   > e\n",
    "code": "a\n\n```python\nx = 1\n\ny = 2\n```\n\nb\n",
    "rule in a list": "- a\n\n  ---\n\n  b\n- c\n",
    "rule in a quote": "> a\n>\n> ***\n> b\n",
}
CELLS = {
    "[/INST]": "[/INST]",
    "[/b]": "[/b]",
    "[/]": "[/]",
    "`[/b]`": "[/b]",
    "[a=b c=d]": "[a=b c=d]",
    "arr[i]": "arr[i]",
    "[OK]": "[OK]",
    r"\[x](y": "[x](y",
    "*[@click=app.quit]bold*": "[@click=app.quit]bold",
}
"""Cells of a table, and what their tooltips say."""


class Page(App[None]):
    def compose(self) -> ComposeResult:
        yield VerticalScroll()


async def show(app: App[None], text: str) -> AnswerText:
    answer = AnswerText(text)
    page = app.query_one(VerticalScroll)
    await page.remove_children()
    await page.mount(answer)
    return answer


def outline(answer: Widget) -> list[str]:
    """What stands there, from top to bottom."""
    lines: list[str] = []
    for one in answer.walk_children(method="depth"):
        if isinstance(one, MarkdownHorizontalRule):
            lines.append("---")
        elif isinstance(one, MarkdownBullet):
            lines.append(one.symbol.strip())
        elif isinstance(one, Static) and str(one.content):
            lines.append(str(one.content).rstrip())
    return lines


@pytest.mark.parametrize("name", TEXTS)
async def test_pieces_show_what_the_whole_shows(name: str) -> None:
    text = TEXTS[name]
    app = Page()
    async with app.run_test():
        expected = outline(await show(app, text))
        answer = await show(app, "")
        size = 1 if "table" in name else 4
        for at in range(0, len(text), size):
            await answer.append(text[at : at + size])
        assert outline(answer) == expected
        for cut in range(4, len(text), 11):  # as when its conversation is opened in mid-answer
            answer = await show(app, text[:cut])
            await answer.append(text[cut : cut + 3])
            await answer.append(text[cut + 3 :])
            assert outline(answer) == expected, text[:cut]


async def test_a_table_keeps_the_widgets_of_rows_that_stay() -> None:
    app = Page()
    async with app.run_test():
        answer = await show(app, TABLE)
        before = list(answer.query(".cell"))
        await answer.append("|5")
        await answer.append("|6|\n")
        assert list(answer.query(".cell"))[:-2] == before


async def test_a_tooltip_has_the_words_of_its_cell(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the rows of an answer that is opened, and in those that are streamed."""
    monkeypatch.setattr(ChatApp, "TOOLTIP_DELAY", 0.01)
    rows = "".join(f"| {cell} | x |\n" for cell in CELLS)
    with History.open() as history:
        conversation = history.new_conversation("[/]").id
        history.add_message(conversation, "user", "[/b]")
        text = f"| [/head] | x |\n|---|---|\n{rows}"
        history.add_message(conversation, "assistant", text, origin=Origin("m"))
    app = new_app()
    async with app.run_test(size=(100, 50), tooltips=True) as pilot:
        answer = app.chat.query_one(AnswerText)
        await answer.append("| [/st")
        await answer.append("reamed] | x |\n")
        await pilot.pause()
        cells = list(answer.query(MarkdownTableCellContents))
        expected = ["[/head]", *CELLS.values(), "[/streamed]"]
        for cell, words in zip(cells[::2], expected, strict=True):
            await pilot.hover("#title")  # away from the last tooltip, which covers the next cell
            await pilot.hover(cell)
            tooltip = app.screen.get_child_by_type(Tooltip)
            await until(pilot, lambda: tooltip.display and str(tooltip.content) == words)  # noqa: B023


async def test_the_whole_answer_is_there_after_a_look_elsewhere(new_app: NewApp) -> None:
    """Its conversation is left and opened again while it is written."""
    app = new_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await say(pilot, "lines away")
        await until(pilot, lambda: "line 9" in shown(app)[-1])
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not shown(app))
        app.chat.conversation_list.focus_rows()
        await pilot.press("home", "enter")
        await until(pilot, lambda: "line 9" in "".join(shown(app)))
        open_gate("away")
        await answered(pilot)
        lines = [f"line {number}" for number in range(1, 19)]
        assert outline(app.chat.query_one(AnswerText)) == [" ".join(lines)]
        assert all(line in drawn(app) for line in ("line 1 line 2", "line 18"))
