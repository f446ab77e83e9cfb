"""Folders of pictures whose names, or the texts beside them, say what is to be learned."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mmchat.data.pictures import Pictures, Unusable, is_picture_name, shown
from mmchat.data.records import Record
from mmchat.data.turns import Message, example_of
from mmchat.data.types import Example, Problem
from mmchat.data.wording import asked_caption, asked_class, readable_names

Outcome = list[Example] | Problem
"""What a sample became."""


TEXT_SUFFIXES: Final = (".txt", ".caption")
_MAX_TEXT: Final = 1_000_000  # bytes


def outcomes(
    records: Iterable[Record | Problem], make: Callable[[Record], list[Example]]
) -> Iterator[Outcome]:
    """What `make` makes of each record; of one that it finds unusable a problem."""
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            yield make(record)
        except Unusable as why:
            yield Problem(record.place, str(why), why.about)


@dataclass(slots=True)
class Tree:
    """The pictures below a folder, in order; hidden files and folders are passed over."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    captioned: int = 0
    """How many of them have a text of the same name beside them."""
    links: list[Path] = field(default_factory=list)
    """Folders that are links: they are not followed, for they may lead anywhere."""

    @property
    def classes(self) -> dict[str, list[Path]]:
        """The pictures by the name of the folder in which, or below which, they lie."""
        found: dict[str, list[Path]] = {}
        for picture in self.pictures:
            inner = picture.relative_to(self.folder).parts
            if len(inner) > 1:
                found.setdefault(inner[0], []).append(picture)
        return found


def tree_of(folder: Path) -> Tree:
    """Looks through `folder`; raises OSError."""
    tree = Tree(folder)
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with os.scandir(here) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        names = {entry.name for entry in found}
        below = []
        for entry in found:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = here / entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif entry.is_symlink() and entry.is_dir():
                tree.links.append(path)
            elif is_picture_name(entry.name):
                tree.pictures.append(path)
                tree.captioned += any(path.stem + suffix in names for suffix in TEXT_SUFFIXES)
        waiting += reversed(below)
    tree.pictures.sort()
    return tree


def captioned(tree: Tree, pictures: Pictures) -> Iterator[Outcome]:
    """Each picture with the text of the same name beside it."""
    yield from _links(tree)
    for path in tree.pictures:
        try:
            text = _text_beside(path)
            picture = pictures.file(str(path.absolute()), tree.folder)
            messages = [
                Message("user", [picture, asked_caption(picture.sha256)]),
                Message("assistant", [text]),
            ]
            yield [example_of(messages, "", shown(path))]
        except Unusable as why:
            yield Problem(shown(path), str(why), why.about)


def classified(tree: Tree, pictures: Pictures) -> Iterator[Outcome]:
    """Each picture with the name of its folder."""
    yield from _links(tree)
    names = readable_names(tree.classes)
    for path in tree.pictures:
        inner = path.relative_to(tree.folder).parts
        try:
            if len(inner) == 1:
                raise Unusable("it lies beside the folders of the classes, in none of them")
            name = names[inner[0]]
            picture = pictures.file(str(path.absolute()), tree.folder)
            messages = [
                Message("user", [picture, asked_class(picture.sha256)]),
                Message("assistant", [name]),
            ]
            yield [example_of(messages, name, shown(path))]
        except Unusable as why:
            yield Problem(shown(path), str(why), why.about)


def _links(tree: Tree) -> Iterator[Problem]:
    for link in tree.links:
        yield Problem(shown(link), "it is a link to a folder, which is not followed: copy it in")


def _text_beside(picture: Path) -> str:
    for suffix in TEXT_SUFFIXES:
        file = picture.with_name(picture.stem + suffix)
        try:
            # A link could bring in any file of this person's; a pipe would wait for ever.
            if file.is_symlink() or not file.is_file():
                continue
            with file.open("rb") as stream:
                data = stream.read(_MAX_TEXT + 1)
        except OSError as error:
            raise Unusable(f"{shown(file.name)} cannot be read ({error.strerror})") from error
        if len(data) > _MAX_TEXT:
            raise Unusable(f"{shown(file.name)} is over {_MAX_TEXT // 1_000_000} MB")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unusable(f"{shown(file.name)} is no UTF-8 text") from error
    raise Unusable("no text of the same name lies beside it")
