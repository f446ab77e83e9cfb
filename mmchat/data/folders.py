"""Folders of pictures: a class per folder, or a text file beside each picture."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mmchat.data.pictures import PictureResolver, has_picture_suffix
from mmchat.data.question_wordings import caption_question, class_labels, class_question
from mmchat.data.records import DataSource, SampleResult, SplitName
from mmchat.data.turns import example_of
from mmchat.data.types import Problem, SampleError, printable
from mmchat.errors import DataError
from mmchat.turns import Turn

FORMATS: Final = (
    "LLaVA, ShareGPT, LLaMA-Factory or OpenAI chat JSON; pictures with a metadata.jsonl or "
    "metadata.csv; pictures with text files of the same name; a folder of pictures per class; "
    "parquet; a saved datasets folder"
)
CAPTIONED: Final = "pictures with text files"
_MOST_REMARKS: Final = 5
_TEXT_SUFFIXES: Final = (".txt", ".caption")
_BOX_SUFFIXES: Final = (".xml", ".json")
_MAX_TEXT: Final = 1_000_000  # bytes
_SYSTEM_FOLDERS: Final = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN")

SplitOf = Callable[[str], str]
"""The split that a folder name stands for; "" if none."""


def detect_folder_format(
    folder: Path, pictures: PictureResolver, unread: str, split: SplitName, split_of: SplitOf
) -> DataSource:
    """Detects the format of a folder without a supported data file.

    `unread` is the part of a sentence about a data file that is not supported. Raises DataError
    and OSError.
    """
    tree = _scan_pictures(folder)
    classes = tree.classes
    # A single text with a picture's name may be an accident; with class folders it takes more.
    if tree.texts and (2 * len(tree.texts) >= len(tree.pictures) or len(classes) < 2):
        return DataSource(split, CAPTIONED, _captioned_samples(tree, pictures))
    if len(classes) > 1:
        remarks = [*_merged_folders(tree, split_of), *_empty_folders(tree)]
        return DataSource(split, "a folder per class", _class_samples(tree, pictures), remarks)
    if unread:
        raise DataError(f"{unread}; these are read: {FORMATS}.")
    if not tree.pictures:
        what = "is empty" if not any(folder.iterdir()) else "has no pictures and no data file"
        raise DataError(f"{printable(folder)} {what}; these are read: {FORMATS}.")
    raise DataError(_nothing_to_learn(tree))


@dataclass(slots=True)
class _PictureTree:
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


def _scan_pictures(folder: Path) -> _PictureTree:
    """Finds the pictures below `folder`. Raises OSError."""
    tree = _PictureTree(folder)
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


def _add_picture(tree: _PictureTree, path: Path, files: dict[str, str]) -> None:
    """`files` maps the lower-case names in the picture's folder to the real ones."""
    tree.pictures.append(path)
    names = (path.stem.lower(), path.name.lower())  # a.txt beside a.png, and a.png.txt
    beside = (files.get(name + suffix) for suffix in _TEXT_SUFFIXES for name in names)
    if text := next(filter(None, beside), None):
        tree.texts[path] = path.with_name(text)
    for suffix in _BOX_SUFFIXES:
        tree.boxes[suffix] += names[0] + suffix in files


def _captioned_samples(tree: _PictureTree, pictures: PictureResolver) -> Iterator[SampleResult]:
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


def _class_samples(tree: _PictureTree, pictures: PictureResolver) -> Iterator[SampleResult]:
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


def _link_problems(tree: _PictureTree) -> Iterator[Problem]:
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


def _nothing_to_learn(tree: _PictureTree) -> str:
    """The sentence for pictures without classes or texts."""
    count = len(tree.pictures)
    many = f"{count} pictures" if count > 1 else "one picture"
    inner = tree
    while len(inner.classes) == 1 and not _loose(inner):
        inner = _scan_pictures(inner.folder / next(iter(inner.classes)))
    if len(inner.classes) > 1:
        names = _joined(map(printable, inner.classes))
        return (
            f"{printable(tree.folder)} has {many}, all below {printable(inner.folder)}: give that "
            f"folder to use its folders ({names}) as classes."
        )
    where = ", all in one folder" if tree.classes and not _loose(tree) else ""
    text = (
        f"{printable(tree.folder)} has {many}{where}, and nothing that says what they show; these "
        f"are read: {FORMATS}."
    )
    boxes = [suffix for suffix, many in tree.boxes.items() if many]
    yolo = ".txt" in tree.others.get("labels", ())
    if boxes or yolo:
        files = f"{boxes[0]} files beside them" if boxes else "files in labels"
        text += f" The {files} look like boxes for a detector, which cannot be learned."
    return text


def _loose(tree: _PictureTree) -> bool:
    """Whether there are pictures in the folder itself."""
    return any(picture.parent == tree.folder for picture in tree.pictures)


def _merged_folders(tree: _PictureTree, split_of: SplitOf) -> Iterator[str]:
    """Remarks on classes with several subfolders, which are learned as one class."""
    classes, depth = tree.classes, len(tree.folder.parts) + 1
    labels = class_labels(classes)
    below = {
        name: sorted({one.parts[depth] for one in pictures if len(one.parts) > depth + 1})
        for name, pictures in classes.items()
    }
    merged = {name: inner for name, inner in below.items() if len(inner) > 1}
    splits = [name for name, inner in merged.items() if all(map(split_of, inner))]
    if splits:
        name, inner = splits[0], merged[splits[0]]
        yield (
            f"The folders {_joined(map(printable, inner))} in {printable(tree.folder / name)} are not "
            f"used as splits: put them above the classes, such as "
            f"{printable(Path(inner[0]) / name)}."
        )
    for name in [name for name in merged if name not in splits][:_MOST_REMARKS]:
        yield (
            f"The folders {_joined(map(printable, merged[name]))} in {printable(tree.folder / name)} "
            f"are learned as one class, {printable(labels[name])}: give "
            f"{printable(tree.folder / name)} to use them as classes."
        )


def _empty_folders(tree: _PictureTree) -> Iterator[str]:
    """Remarks on folders beside the classes that have files but no pictures."""
    classes = tree.classes
    empty = [name for name in tree.others if name not in classes]
    for name in empty[:_MOST_REMARKS]:
        endings = tree.others[name]
        yield (
            f"{printable(tree.folder / name)} has no pictures ({_counted(endings)}), so it is not a "
            "class."
        )


def _counted(endings: Counter[str]) -> str:
    found = [
        f"{count:,} {printable(ending) or 'without a suffix'}"
        for ending, count in endings.most_common(3)
    ]
    return _joined(found)


def _joined(names: Iterable[str]) -> str:
    """`a, b and c`; of many, only the first."""
    listed = list(names)
    if len(listed) > 6:
        listed = [*listed[:5], f"{len(listed) - 5} more"]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
