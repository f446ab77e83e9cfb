"""Suggestions for the input: commands, paths, names. No widgets here."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmchat.sanitize import clean
from mmchat.tui.actions import BY_ID
from mmchat.tui.commands import matching
from mmchat.tui.pasted import at_home

SHOWN = 50
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
"""Files that may hold training data."""
_SCANNED = 5_000

Choices = Callable[[str], Sequence[tuple[str, str]]]
"""Given "model", "adapter" or "adapters": names with a description of each."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One line of the list above the input.

    Choosing it replaces text[start:end] by `insert`. `attach` is a picture to attach instead, and
    the text is removed. `submit` says that the input is a complete command then, and can be sent.
    """

    label: str
    detail: str
    start: int
    end: int
    insert: str
    attach: Path | None = None
    submit: bool = False


def suggest(
    text: str, cursor: int, *, suffixes: Sequence[str], choices: Choices
) -> list[Suggestion]:
    """The suggestions at `cursor` (an offset into `text`); empty for none."""
    before = text[:cursor]
    if before.startswith("/") and "\n" not in text:
        return _for_command(before, len(text), suffixes, choices)
    at = before.rfind("@")
    if at >= 0 and (at == 0 or before[at - 1].isspace()):
        word = before[at + 1 :]
        # Spaces end an @-path, unless they are escaped: people type "@ 5 pm" too.
        if " " not in word.replace("\\ ", "") and "\n" not in word:
            return _paths(word, at, cursor, suffixes)
    return []


def _for_command(
    before: str, end: int, suffixes: Sequence[str], choices: Choices
) -> list[Suggestion]:
    word, space, argument = before[1:].partition(" ")
    if not space:
        return [
            Suggestion(
                f"/{action.id}" + (f" {action.hint}" if action.hint else ""),
                action.title,
                0,
                end,
                f"/{action.id} " if action.argument else f"/{action.id}",
                submit=not action.argument,
            )
            for action in matching(word)
        ]
    action = BY_ID.get(word.lower())
    start = len(word) + 2
    if action is None or not action.argument:
        return []
    if action.argument == "data":
        found = data_paths(argument, start, end)
        if argument.endswith("/"):  # Enter chooses the folder itself
            here = Suggestion("./", "this folder", start, end, argument, submit=True)
            found.insert(0, here)
        return found
    if action.argument == "path":
        return _paths(argument, start, end, suffixes, whole=True)
    if action.argument in ("model", "adapter"):
        return _names(choices(action.argument), argument, start, end)
    if action.argument == "adapters":
        last = argument.rpartition(" ")[2]
        return _names(choices(action.argument), last, start + len(argument) - len(last), end)
    return []


def _names(known: Sequence[tuple[str, str]], typed: str, start: int, end: int) -> list[Suggestion]:
    wanted = typed.lower()
    return [
        Suggestion(clean(name, False), clean(detail, False), start, end, name, submit=True)
        for name, detail in known
        if wanted in name.lower() and _plain(name)
    ][:SHOWN]


def data_paths(typed: str, start: int = 0, end: int | None = None) -> list[Suggestion]:
    """Folders and data files whose path begins with `typed`, which is text[start:end]."""
    whole = start + len(typed) if end is None else end
    return [
        one
        if one.attach is None
        else replace(one, attach=None, insert=str(one.attach), submit=True)
        for one in _paths(typed, start, whole, DATA_SUFFIXES, whole=True)
        if one.attach is None or _plain(str(one.attach))
    ]


def _paths(
    typed: str, start: int, end: int, suffixes: Sequence[str], whole: bool = False
) -> list[Suggestion]:
    """Folders and pictures whose path begins with `typed`; folders keep the list open."""
    plain = typed.replace("\\ ", " ").strip("'\"")
    if plain == "~":
        plain = "~/"
    folder_text, slash, name = plain.rpartition("/")
    folder = at_home((folder_text + slash) or ".")
    found: list[Suggestion] = []
    for entry, is_folder in _entries(folder, suffixes):
        if not entry.lower().startswith(name.lower()) or (
            entry.startswith(".") and not name.startswith(".")
        ):
            continue
        written = folder_text + slash + entry
        if not whole:
            written = written.replace(" ", "\\ ")
        if is_folder and not _plain(entry):
            continue  # its name would be written into the input
        if is_folder:
            insert = ("" if whole else "@") + written + "/"
            found.append(Suggestion(clean(entry, False) + "/", "", start, end, insert))
        else:
            found.append(Suggestion(clean(entry, False), "", start, end, "", attach=folder / entry))
        if len(found) == SHOWN:
            break
    return found


def _plain(name: str) -> bool:
    """Whether a name can be put into the input as it is."""
    return clean(name) == name and "\n" not in name


def _entries(folder: Path, suffixes: Sequence[str]) -> list[tuple[str, bool]]:
    """Name of each entry of `folder` that can be chosen, and whether it is a folder; those come last."""
    endings = tuple(suffixes)
    entries: list[tuple[str, bool]] = []
    try:
        with os.scandir(folder) as scan:
            for seen, entry in enumerate(scan):
                if seen == _SCANNED:
                    break
                is_folder = entry.is_dir()
                if is_folder or entry.name.lower().endswith(endings):
                    entries.append((entry.name, is_folder))
    except (OSError, ValueError):  # no such folder, or a locked one: nothing to offer
        return []
    return sorted(entries, key=lambda entry: (entry[1], entry[0].lower()))
