"""Reads the text of a question from the argument, from stdin, or from both."""

import codecs
import os
import re
import select
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from mmchat.cli.output import note
from mmchat.images import PICTURE_SUFFIXES

_MAX_TEXT = 10_000_000  # bytes from stdin
_STDIN_TIMEOUT = 1.0
"""Seconds to wait for the first byte on a pipe if TEXT is given, too."""
_OTHER_SUFFIXES = {".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".ico", ".mpo"}
"""Unsupported picture formats; attaching them gives an error that says what to do."""
_ENDING = re.compile(
    rf"(?:{'|'.join(re.escape(one) for one in sorted(PICTURE_SUFFIXES | _OTHER_SUFFIXES))})(?!\w)",
    re.IGNORECASE,
)
_SEARCHED = 10_000  # characters of a text that are searched for the names of pictures
_MAX_NAME_WORDS = 12  # a file name may have spaces


def looks_like_text(argument: str) -> bool:
    """Whether an argument that begins with `-` is text, not a misspelled option: `- what?`, `-5`."""
    return re.match(r"-.*\s|-[^-\w]|-\d", argument, re.DOTALL) is not None


def after_dashes(command: str, text: str) -> str:
    """The sentence for a text that was parsed as an option."""
    return f"Text that begins with - goes last, after --: {command} -- {shlex.quote(text)}"


def read_question(text: str | None, *, picture_on_stdin: bool) -> str:
    """The text of the argument, of stdin, or both: piped text comes before `text`.

    The result is valid Unicode, stripped, without a byte order mark. Raises UsageError if it is
    empty, or if stdin is not UTF-8 text.
    """
    if text is None:
        if picture_on_stdin:
            raise click.UsageError(
                "Stdin is the picture, so give the text as an argument: "
                'mmchat ask "what is this?" -a -'
            )
        if sys.stdin.isatty():
            raise click.UsageError("Give the text of the question, or pipe it in.")
        question = _text_of(read_stdin(_MAX_TEXT + 1))
    else:
        typed = text.encode(errors="surrogateescape").decode("utf-8-sig", errors="replace").strip()
        piped = "" if picture_on_stdin else _text_of(_piped_beside())
        question = "\n\n".join(part for part in (piped, typed) if part)
    if not question:
        raise click.UsageError("The text of the question is empty.")
    return question


def read_stdin(limit: int) -> bytes:
    """Reads at most `limit` bytes of stdin. Raises UsageError if it cannot be read."""
    try:
        return sys.stdin.buffer.read(limit)
    except OSError as error:
        raise click.UsageError(f"Stdin cannot be read ({error.strerror or error}).") from error


def _piped_beside() -> bytes:
    """What was piped in beside TEXT; empty if nothing was."""
    mode = os.fstat(0).st_mode
    if stat.S_ISREG(mode):
        # If a shell loop has read some lines of the file, the rest is not for us.
        ours = os.lseek(0, 0, os.SEEK_CUR) == 0
    elif stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        # The caller may have left a pipe open without ever writing to it.
        ours = bool(select.select([0], [], [], _STDIN_TIMEOUT)[0])
        if not ours:
            note(
                f"Nothing arrived on stdin within {_STDIN_TIMEOUT:.0f} second, so only TEXT is used. "
                "To wait for stdin, omit TEXT and pipe everything in."
            )
    else:
        ours = not sys.stdin.isatty()
    return read_stdin(_MAX_TEXT + 1) if ours else b""


def _text_of(data: bytes) -> str:
    if len(data) > _MAX_TEXT:
        raise click.UsageError(f"The text on stdin is over {_MAX_TEXT // 1_000_000} MB.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise click.UsageError(
            "Stdin is not UTF-8 text: convert it first (iconv -f UTF-16 -t UTF-8). If it is a "
            'picture, use: mmchat ask "what is this?" -a -'
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", errors="replace")
        note("The text on stdin is not valid UTF-8: invalid bytes were replaced by \ufffd.")
    return text.strip()


def remark_on_pictures(text: str, attachments: Sequence[str]) -> None:
    """Notes which pictures `text` mentions that are not attached, because the model cannot see them."""
    files, addresses = [], []
    for name in dict.fromkeys(_named_pictures(text[:_SEARCHED])):
        if re.match(r"https?://", name, re.IGNORECASE):
            addresses.append(name)
        elif not any(_is_same(name, attached) for attached in attachments):
            files.append(name)
    if files:
        options = " ".join(f"-a {shlex.quote(name)}" for name in files[:5])
        note(
            f"The model does not see a picture that is only mentioned. To attach it, add: {options}"
        )
    if addresses:
        note(
            "Pictures on the web are not downloaded. To ask about this one: "
            f"curl -sL {shlex.quote(addresses[0])} | mmchat ask TEXT -a -"
        )


def _named_pictures(text: str) -> Iterator[str]:
    """Yields the picture files and URLs in `text`."""
    for line in text.splitlines():
        start = 0
        for ending in _ENDING.finditer(line):
            words = list(re.finditer(r"\S+", line[start : ending.end()]))
            # The longest name first, because it may have spaces.
            for word in words[-_MAX_NAME_WORDS:]:
                name = _unquoted(line[start + word.start() : ending.end()])
                if re.match(r"https?://\S+\Z", name, re.IGNORECASE) or _is_file(name):
                    yield name
                    start = ending.end()
                    break


def _unquoted(name: str) -> str:
    name = name.lstrip("\"'`<([{*_")
    if name.lower().startswith("file://"):
        return unquote(urlsplit(name).path)
    return name


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown home, a NUL
        return False


def _is_same(name: str, other: str) -> bool:
    try:
        return Path(name).expanduser().samefile(Path(other).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False
