"""Detects the format of a folder of pictures, and remarks on what looks like a mistake."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mmchat.data.folders import (
    PictureTree,
    SampleResult,
    captioned_samples,
    class_samples,
    scan_pictures,
)
from mmchat.data.pictures import PictureResolver
from mmchat.data.question_wordings import class_labels
from mmchat.data.sample_errors import printable
from mmchat.errors import DataError

FORMATS: Final = (
    "LLaVA, ShareGPT, LLaMA-Factory or OpenAI chat JSON; pictures with a metadata.jsonl or "
    "metadata.csv; pictures with text files of the same name; a folder of pictures per class; "
    "parquet; a saved datasets folder"
)
CAPTIONED: Final = "pictures with text files"
_MOST_REMARKS: Final = 5

SplitOf = Callable[[str], str]
"""The split that a folder name stands for; "" if none."""


@dataclass(frozen=True, slots=True)
class FolderFormat:
    """The format of a folder of pictures, and its samples."""

    name: str
    results: Iterator[SampleResult]
    remarks: list[str] = field(default_factory=list)


def detect_folder_format(
    folder: Path, pictures: PictureResolver, unread: str, split_of: SplitOf
) -> FolderFormat:
    """Detects the format of a folder without a supported data file.

    `unread` is the part of a sentence about a data file that is not supported. Raises DataError
    and OSError.
    """
    tree = scan_pictures(folder)
    classes = tree.classes
    # A single text with a picture's name may be an accident; with class folders it takes more.
    if tree.texts and (2 * len(tree.texts) >= len(tree.pictures) or len(classes) < 2):
        return FolderFormat(CAPTIONED, captioned_samples(tree, pictures))
    if len(classes) > 1:
        remarks = [*_merged_folders(tree, split_of), *_empty_folders(tree)]
        return FolderFormat("a folder per class", class_samples(tree, pictures), remarks)
    if unread:
        raise DataError(f"{unread}; these are read: {FORMATS}.")
    if not tree.pictures:
        what = "is empty" if not any(folder.iterdir()) else "has no pictures and no data file"
        raise DataError(f"{printable(folder)} {what}; these are read: {FORMATS}.")
    raise DataError(_nothing_to_learn(tree))


def _nothing_to_learn(tree: PictureTree) -> str:
    """The sentence for pictures without classes or texts."""
    count = len(tree.pictures)
    many = f"{count} pictures" if count > 1 else "one picture"
    inner = tree
    while len(inner.classes) == 1 and not _loose(inner):
        inner = scan_pictures(inner.folder / next(iter(inner.classes)))
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


def _loose(tree: PictureTree) -> bool:
    """Whether there are pictures in the folder itself."""
    return any(picture.parent == tree.folder for picture in tree.pictures)


def _merged_folders(tree: PictureTree, split_of: SplitOf) -> Iterator[str]:
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


def _empty_folders(tree: PictureTree) -> Iterator[str]:
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
