"""The Markdown of an answer, complete or while it is streamed.

It corrects Textual's widget in four places: tables, the tooltips of their cells, rules in lists,
and where parsing begins when more text comes.
"""

from collections.abc import Iterable, Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets._markdown import (
    MarkdownBlock,
    MarkdownHorizontalRule,
    MarkdownTable,
    MarkdownTableCellContents,
    MarkdownTableContent,
)

from mmchat.sanitize import clean

Row = Sequence[Content]

_RULE = "rule"
"""Our name for the token of a rule. Textual shows an "hr" within a list or a quote before that
list, and once more with each piece of text."""
_LINE_SEPARATORS = str.maketrans("\u2028\u2029", "  ")
"""Textual would count them as line ends, the parser does not."""


def parser() -> MarkdownIt:
    """GitHub's Markdown, with raw HTML as plain text, and links only where they are written as links."""
    made = MarkdownIt("gfm-like", {"html": False, "linkify": False})
    made.core.ruler.push("clean", _clean_decoded)
    return made


def _clean_decoded(state: StateCore) -> None:
    """Clean the tokens again: entities are decoded by now, and `&#x202e;` was clean as text."""
    _clean_tokens(state.tokens)


def _clean_tokens(tokens: Iterable[Token]) -> None:
    for token in tokens:
        if token.type == "hr":
            token.type = _RULE
        token.content, token.info = clean(token.content), clean(token.info)
        for name, value in token.attrs.items():
            if isinstance(value, str):
                token.attrs[name] = clean(value)
        _clean_tokens(token.children or ())


class TableContent(MarkdownTableContent):
    """The cells of a table.

    Tooltips show the text of a cell as it is. Textual parses it as its own markup, and ends the
    app at a cell such as `[/x]` (Textual issue 6642).
    """

    def compose(self) -> ComposeResult:
        for header in self.headers:
            yield _cell(header, "header")
        for row in self.rows:
            yield from _cells(row)

    async def update_rows(self, rows: Sequence[Row]) -> None:
        """Show `rows`; unchanged rows at the top keep their widgets."""
        kept = 0
        while kept < min(len(rows), len(self.rows)) and _same(rows[kept], self.rows[kept]):
            kept += 1
        self.rows = [list(row) for row in rows]
        # Each row has as many cells as the header: the parser fills up short ones.
        await self.remove_children(self.children[(1 + kept) * len(self.headers) :])
        await self.mount_all(cell for row in rows[kept:] for cell in _cells(row))


class Table(MarkdownTable):
    """A table that may lose a row while it is streamed: `| 1 | 2 |`, then `1`, then `1. a list`.

    Textual ends the app when the last row turns out to be something else.
    """

    def compose(self) -> ComposeResult:
        yield TableContent(*self._get_headers_and_rows())

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, Table):
            shown = self.query_one(TableContent)
            headers, rows = block._get_headers_and_rows()
            if _same(headers, shown.headers):
                await shown.update_rows(rows)
                return
        await MarkdownBlock._update_from_block(self, block)


def _cells(row: Row) -> list[MarkdownTableCellContents]:
    return [_cell(cell, "cell") for cell in row]


def _cell(text: Content, classes: str) -> MarkdownTableCellContents:
    return MarkdownTableCellContents(text, classes=classes).with_tooltip(Content(text.plain))


def _same(one: Row, other: Row) -> bool:
    return len(one) == len(other) and all(map(Content.is_same, one, other))


class AnswerText(Markdown):
    """The Markdown of an answer. The person is asked before a link is opened; no picture is fetched."""

    BLOCKS = {**Markdown.BLOCKS, "table_open": Table}  # noqa: RUF012 (Textual's own)

    def __init__(self, text: str) -> None:
        super().__init__(text, parser_factory=parser, open_links=False)

    def unhandled_token(self, token: Token) -> MarkdownBlock | None:
        return MarkdownHorizontalRule(self, token) if token.type == _RULE else None

    def update(self, markdown: str) -> AwaitComplete:
        """Replace the text."""
        updated = super().update(markdown.translate(_LINE_SEPARATORS))

        async def update() -> None:
            await updated
            # `append` parses from here on and replaces the last block. Textual would begin at the
            # last line: the lines above it in the same paragraph, list or table would be lost.
            blocks = self.query_children(MarkdownBlock)
            self._last_parsed_line = blocks.last().source_range[0] if blocks else 0

        return AwaitComplete(update())

    def append(self, markdown: str) -> AwaitComplete:
        """Add text at the end."""
        return super().append(markdown.translate(_LINE_SEPARATORS))
