"""Folders of pictures with a class per folder, or a text file beside each picture."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mmchat.data.picture_check import has_picture_suffix
from mmchat.data.pictures import PictureResolver
from mmchat.data.question_wordings import caption_question, class_labels, class_question
from mmchat.data.records import Record
from mmchat.data.sample_errors import SampleError, printable
from mmchat.data.turns import example_of
from mmchat.data.types import Example, Problem
from mmchat.turns import Turn

SampleResult = list[Example] | Problem
"""The examples of a sample, or why it is left out."""

TEXT_SUFFIXES: Final = (".txt", ".caption")
_BOX_SUFFIXES: Final = (".xml", ".json")
_MAX_TEXT: Final = 1_000_000  # bytes
_SYSTEM_FOLDERS: Final = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN")


def convert_records(
    records: Iterable[Record | Problem], convert: Callable[[Record], list[Example]]
) -> Iterator[SampleResult]:
    """Converts each record; a SampleError becomes a problem."""
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            yield convert(record)
        except SampleError as error:
            yield Problem(record.place, str(error), error.about)


@dataclass(slots=True)
class PictureTree:
    """The pictures below a folder, in order; hidden files and folders are skipped."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    texts: dict[Path, Path] = field(default_factory=dict)
    """The text file with the same name as a picture, by picture."""
    boxes: Counter[str] = field(default_factory=Counter)
    """How many pictures have a file of the same name with this suffix: usually boxes."""
    links: list[Path] = field(default_factory=list)
    """Symbolic links to folders: not followed, because they may lead anywhere."""
    others: dict[str, Counter[str]] = field(default_factory=dict)
    """The suffixes of the files that are not pictures, by top folder."""

    @property
    def classes(self) -> dict[str, list[Path]]:
        """The pictures by the name of the top folder they are in."""
        found: dict[str, list[Path]] = {}
        depth = len(self.folder.parts)
        for picture in self.pictures:
            inner = picture.parts[depth:]
            if len(inner) > 1:
                found.setdefault(inner[0], []).append(picture)
        return found


def scan_pictures(folder: Path) -> PictureTree:
    """Finds the pictures below `folder`. Raises OSError."""
    tree = PictureTree(folder)
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with os.scandir(here) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        found = [entry for entry in found if not entry.name.startswith(_SYSTEM_FOLDERS)]
        files = {entry.name.lower(): entry.name for entry in found}
        below = []
        for entry in found:
            path = here / entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_symlink() and entry.is_dir():
                tree.links.append(path)
            elif has_picture_suffix(entry.name):
                _add_picture(tree, path, files)
            elif here != folder:
                top = path.relative_to(folder).parts[0]
                tree.others.setdefault(top, Counter())[path.suffix.lower()] += 1
        waiting += reversed(below)
    tree.pictures.sort()
    return tree


def _add_picture(tree: PictureTree, path: Path, files: dict[str, str]) -> None:
    """`files` maps the lower-case names in the picture's folder to the real ones."""
    tree.pictures.append(path)
    names = (path.stem.lower(), path.name.lower())  # a.txt beside a.png, and a.png.txt
    beside = (files.get(name + suffix) for suffix in TEXT_SUFFIXES for name in names)
    if text := next(filter(None, beside), None):
        tree.texts[path] = path.with_name(text)
    for suffix in _BOX_SUFFIXES:
        tree.boxes[suffix] += names[0] + suffix in files


def captioned_samples(tree: PictureTree, pictures: PictureResolver) -> Iterator[SampleResult]:
    """Yields each picture with the text of the file of the same name."""
    yield from _link_problems(tree)
    for path in tree.pictures:
        try:
            text = _text_of(tree.texts.get(path))
            picture = pictures.from_path(path)
            messages = [
                Turn("user", (picture, caption_question(picture.sha256))),
                Turn("assistant", (text,)),
            ]
            yield [example_of(messages, "", printable(path))]
        except SampleError as error:
            yield Problem(printable(path), str(error), error.about)


def class_samples(tree: PictureTree, pictures: PictureResolver) -> Iterator[SampleResult]:
    """Yields each picture with the name of its folder."""
    yield from _link_problems(tree)
    labels = class_labels(tree.classes)
    depth = len(tree.folder.parts)
    for path in tree.pictures:
        inner = path.parts[depth:]
        label = labels[inner[0]] if len(inner) > 1 else ""
        try:
            if len(inner) == 1:
                raise SampleError("it is in none of the class folders, but beside them")
            picture = pictures.from_path(path)
            messages = [
                Turn("user", (picture, class_question(picture.sha256))),
                Turn("assistant", (label,)),
            ]
            yield [example_of(messages, label, printable(path))]
        except SampleError as error:
            yield Problem(printable(path), str(error), error.about, printable(label))


def _link_problems(tree: PictureTree) -> Iterator[Problem]:
    for link in tree.links:
        yield Problem(
            printable(link), "it is a link to a folder, and links are not followed: copy the folder"
        )


def _text_of(file: Path | None) -> str:
    missing = "it has no text file of the same name"
    if file is None:
        raise SampleError(missing)
    try:
        # A link could expose any file of this user; reading a pipe would wait forever.
        if file.is_symlink() or not file.is_file():
            raise SampleError(missing)
        with file.open("rb") as stream:
            data = stream.read(_MAX_TEXT + 1)
    except OSError as error:
        raise SampleError(f"{printable(file.name)} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_TEXT:
        raise SampleError(f"{printable(file.name)} is over {_MAX_TEXT // 1_000_000} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{printable(file.name)} is not UTF-8 text: save it as UTF-8") from error
