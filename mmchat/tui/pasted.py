"""Paths in text that is pasted into a terminal, or in files that are dropped on it. No widgets here.

A dropped file arrives as pasted text, and each terminal writes it in its own way: plain, quoted,
with escaped spaces, as a file:// URL; several of them side by side, or one on each line.
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
    """A typed or dropped word as a path, without file://, quotes, escapes and ~."""
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
    """The pictures in `text` if it has nothing but paths of pictures, else nothing.

    Each word must end like a picture, and be an absolute path (or begin with ~, ./, ../ or
    file://) or an existing file: a sentence, code, or the path of another file stays text. Whether
    the files can be read is checked by whoever opens them.
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
    """Ways to split the text into words, the simplest first, each with its function from word to path."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if all(_one_path(line) for line in lines):
        yield lines, as_path
    with contextlib.suppress(ValueError):  # an apostrophe in a bare name: "it's.png"
        yield [word for line in lines for word in shlex.split(line, posix=True)], _unquoted
    yield lines, as_path


def _unquoted(word: str) -> Path:
    """The path of a word whose quotes and escapes are removed already."""
    if word[:7].lower() == "file://":
        return Path(unquote(urlsplit(word).path))
    return at_home(word)


def at_home(word: str) -> Path:
    """The path of a word, with `~` and `~name` expanded if there is such a user."""
    try:
        return Path(word).expanduser()
    except RuntimeError:
        return Path(word)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long, or has a character that no name can have
        return False


def _one_path(line: str) -> bool:
    """Whether a line is the path of an existing file, spaces included."""
    return _is_file(as_path(line))


def _rooted(word: str) -> bool:
    word = word.strip().strip("'\"")
    return (
        word.startswith(("/", "~/", "./", "../"))
        or word[:7].lower() == "file://"
        or bool(_WINDOWS.match(word))
    )


def leading(text: str, suffixes: Iterable[str]) -> tuple[list[Path], str]:
    """The pictures that `text` consists of or begins with, and the rest: `/tmp/a.png what is it?`.

    For people and terminals that type a path instead of pasting it. The files need not exist: a
    mistyped path is not a question.
    """
    whole = paths(text, suffixes)
    # `/attach ./a.png` is a command, unless such a file is there.
    if whole and (not _COMMAND.match(text) or all(map(_is_file, whole))):
        return whole, ""
    match = re.match(r"""\s*('[^']*'|"[^"]*"|(?:\\.|\S)+)\s*(.*)\Z""", text, re.DOTALL)
    if match is None or not paths(match[1], suffixes):
        return [], text
    return [as_path(match[1])], match[2]
