"""Detects what folders of pictures teach, and remarks on what they hold besides."""

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
    tree_of,
)
from mmchat.data.pictures import PictureResolver
from mmchat.data.question_wordings import class_labels
from mmchat.data.sample_errors import printable
from mmchat.errors import DataError

FORMS: Final = (
    "LLaVA, ShareGPT, LLaMA-Factory or OpenAI chat JSON; pictures with a metadata.jsonl or "
    "metadata.csv; pictures each beside a text file of its name; a folder of pictures for each "
    "class; parquet; a saved datasets folder"
)
CAPTIONED: Final = "pictures with text files"
_MOST_REMARKS: Final = 5

SplitOf = Callable[[str], str]
"""The split that a folder of this name is; "" if it is none."""


@dataclass(frozen=True, slots=True)
class FolderForm:
    """What a folder of pictures is."""

    name: str
    results: Iterator[SampleResult]
    remarks: list[str] = field(default_factory=list)


def form_of_tree(
    folder: Path, pictures: PictureResolver, unread: str, split_of: SplitOf
) -> FolderForm:
    """The form of a folder without a data file that is read.

    `unread` names a data file that is not read, as part of a sentence. Raises DataError and
    OSError.
    """
    tree = tree_of(folder)
    classes = tree.classes
    # A single text of a picture's name may be an accident; beside classes it takes more of them.
    if tree.texts and (2 * len(tree.texts) >= len(tree.pictures) or len(classes) < 2):
        return FolderForm(CAPTIONED, captioned_samples(tree, pictures))
    if len(classes) > 1:
        remarks = [*_merged_folders(tree, split_of), *_empty_folders(tree)]
        return FolderForm("a folder per class", class_samples(tree, pictures), remarks)
    if unread:
        raise DataError(f"{unread}; what is read: {FORMS}.")
    if not tree.pictures:
        what = "is empty" if not any(folder.iterdir()) else "holds no pictures and no data file"
        raise DataError(f"{printable(folder)} {what}; what is read: {FORMS}.")
    raise DataError(_nothing_to_learn(tree))


def _nothing_to_learn(tree: PictureTree) -> str:
    """The sentence about pictures of which nothing says what they show."""
    count = len(tree.pictures)
    many = f"{count} pictures" if count > 1 else "one picture"
    inner = tree
    while len(inner.classes) == 1 and not _loose(inner):
        inner = tree_of(inner.folder / next(iter(inner.classes)))
    if len(inner.classes) > 1:
        names = _joined(map(printable, inner.classes))
        return (
            f"{printable(tree.folder)} holds {many}, all below {printable(inner.folder)}: name that "
            f"folder to learn its folders ({names}) as classes."
        )
    where = ", all in one folder" if tree.classes and not _loose(tree) else ""
    text = (
        f"{printable(tree.folder)} holds {many}{where}, and nothing that says what they show; what is "
        f"read: {FORMS}."
    )
    boxes = [suffix for suffix, many in tree.boxes.items() if many]
    yolo = ".txt" in tree.others.get("labels", ())
    if boxes or yolo:
        files = f"{boxes[0]} files beside them" if boxes else "files in labels"
        text += f" The {files} seem to hold boxes for a detector, which cannot be learned here."
    return text


def _loose(tree: PictureTree) -> bool:
    """Whether pictures lie in the folder itself."""
    return any(picture.parent == tree.folder for picture in tree.pictures)


def _merged_folders(tree: PictureTree, split_of: SplitOf) -> Iterator[str]:
    """Remarks on classes that have folders of their own: these are not kept apart."""
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
            f"taken as splits: put them above the classes, such as "
            f"{printable(Path(inner[0]) / name)}."
        )
    for name in [name for name in merged if name not in splits][:_MOST_REMARKS]:
        yield (
            f"The folders {_joined(map(printable, merged[name]))} in {printable(tree.folder / name)} "
            f"are learned as one class, {printable(labels[name])}: name "
            f"{printable(tree.folder / name)} to learn them as classes."
        )


def _empty_folders(tree: PictureTree) -> Iterator[str]:
    """Remarks on folders beside the classes that hold files, but no pictures."""
    classes = tree.classes
    empty = [name for name in tree.others if name not in classes]
    for name in empty[:_MOST_REMARKS]:
        endings = tree.others[name]
        yield (
            f"{printable(tree.folder / name)} holds no pictures ({_counted(endings)}), so it is not a "
            "class."
        )


def _counted(endings: Counter[str]) -> str:
    found = [
        f"{count:,} {printable(ending) or 'without an ending'}"
        for ending, count in endings.most_common(3)
    ]
    return _joined(found)


def _joined(names: Iterable[str]) -> str:
    """`a, b and c`; of many the first ones."""
    listed = list(names)
    if len(listed) > 6:
        listed = [*listed[:5], f"{len(listed) - 5} more"]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
