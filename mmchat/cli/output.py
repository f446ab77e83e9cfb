"""What a command prints: data on stdout, everything else on stderr; the options that commands share.

All foreign text goes through `mmchat.sanitize.clean`. Nothing is animated or coloured unless it
is on a terminal and NO_COLOR is not set.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from mmchat.display.numbers import format_percent
from mmchat.display.text import columns
from mmchat.sanitize import clean

# Characters that are allowed in JSON but that a terminal may obey, or that UTF-8 does not have.
_UNSAFE = re.compile(
    "[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
json_object_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def say(text: str = "", end: str = "\n") -> None:
    """Writes cleaned text to stdout at once.

    Raises OutputError if it cannot be written, and BrokenPipeError if the reader has left, which
    ends the command quietly (click handles it).
    """
    click.echo(clean(text) + end, nl=False)


def note(text: str) -> None:
    """Writes a remark to stderr."""
    click.echo(clean(text), err=True)


def complain(sentence: str) -> None:
    """Writes the sentence of an error to stderr."""
    click.echo(f"mmchat: {clean(sentence)}", err=True)


def confirm(question: str, lines: Sequence[str] = ()) -> bool:
    """Prints `lines` and asks the question. Raises UsageError if there is no terminal to ask."""
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask for confirmation: give --yes.")
    for line in lines:
        say(line)
    return click.confirm(question, err=True)


def say_json(value: Any) -> None:
    """Writes one JSON object as one line: exact, but with nothing that a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False)
    say(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def say_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Writes left-aligned columns; on a terminal the last one is cut to fit."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in columns([row for row in (header, *rows) if row], width):
        say(line)


class Progress:
    """The progress of something: one line that is rewritten on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._moves = (
            self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self._shown = ""

    def show(self, text: str, fraction: float | None = None) -> None:
        """Shows what is being done, and how much of it is complete (0 to 1)."""
        text = clean(text, keep_newlines=False)
        if not self._moves:
            if self._terminal and text != self._shown:
                note(text)
            self._shown = text
            return
        line = (
            text if fraction is None else f"{text} {format_percent(min(max(fraction, 0.0), 1.0))}"
        )
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._shown:
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
            self._shown = line

    def clear(self) -> None:
        """Removes the line, before anything else is written."""
        if self._moves and self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
        self._shown = ""
