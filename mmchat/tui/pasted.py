"""Paths out of what is pasted or dropped on a terminal. No widgets here.

A dropped file arrives as pasted text, in the manner of the terminal: bare,
quoted, with escaped spaces, as a file:// URL, several of them side by side or
one a line.
"""

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LONGEST = 16_384
_WINDOWS = re.compile(r"[A-Za-z]:\\")
_COMMAND = re.compile(r"\s*/[A-Za-z-]+\s")


def as_path(word: str) -> Path:
    """One typed or dropped word as a path: file:// URLs, quotes, escapes and ~ undone."""
    word = word.strip()
    if word[:7].lower() == "file://":
        return _unquoted(word)
    if _is_file(at_home(word)):  # a name that really holds quotes or backslashes
        return at_home(word)
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        word = word[1:-1]
    elif "\\" in word and not _WINDOWS.match(word):
        word = re.sub(r"\\(.)", r"\1", word)
    return at_home(word)


def paths(text: str, suffixes: Iterable[str]) -> list[Path]:
    """The pictures that `text` names, all of it; empty where it is anything else.

    Each word has to end like a picture, and be an absolute path (or begin with
    ~, ./, ../ or file://) or a file that is there: an ordinary sentence, code, or a
    path of another file stays text. Whether a file can be read is for the reader to say.
    """
    text = text.strip()
    if not text or len(text) > _LONGEST or "\0" in text:
        return []
    endings = tuple(suffix.lower() for suffix in suffixes)
    for words, made in _splits(text):
        found = [made(word) for word in words]
        if found and all(
            path.name.lower().endswith(endings) and (_rooted(word) or _is_file(path))
            for word, path in zip(words, found, strict=True)
        ):
            return found
    return []


def _splits(text: str) -> Iterable[tuple[list[str], Callable[[str], Path]]]:
    """Ways to take the text for words, the plainest first, and what makes a word a path."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if all(_one_path(line) for line in lines):
        yield lines, as_path
    with contextlib.suppress(ValueError):  # an apostrophe in a bare name: "it's.png"
        yield [word for line in lines for word in shlex.split(line, posix=True)], _unquoted
    yield lines, as_path


def _unquoted(word: str) -> Path:
    """A word whose quotes and escapes are undone already."""
    if word[:7].lower() == "file://":
        return Path(unquote(urlsplit(word).path))
    return at_home(word)


def at_home(word: str) -> Path:
    """`~` and `~name` expanded, where there is such a person."""
    try:
        return Path(word).expanduser()
    except RuntimeError:
        return Path(word)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or one that no file can have
        return False


def _one_path(line: str) -> bool:
    """A line that exists as it stands: a bare path with spaces in it."""
    return _is_file(as_path(line))


def _rooted(word: str) -> bool:
    word = word.strip().strip("'\"")
    return (
        word.startswith(("/", "~/", "./", "../"))
        or word[:7].lower() == "file://"
        or bool(_WINDOWS.match(word))
    )


def leading(text: str, suffixes: Iterable[str]) -> tuple[list[Path], str]:
    """The pictures that `text` is or begins with, and the rest: `/tmp/a.png what is it?`.

    For people, and terminals, that type a path instead of pasting it. Whether
    the files exist is for the reader to say: a mistyped path is no question.
    """
    whole = paths(text, suffixes)
    # `/attach ./a.png` is a command, unless such a file is there.
    if whole and (not _COMMAND.match(text) or all(map(_is_file, whole))):
        return whole, ""
    match = re.match(r"""\s*('[^']*'|"[^"]*"|(?:\\.|\S)+)\s*(.*)\Z""", text, re.DOTALL)
    if match is None or not paths(match[1], suffixes):
        return [], text
    return [as_path(match[1])], match[2]
