"""Reads data: detects its format, checks each sample and reports the bad ones."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmchat.data.detection import detect
from mmchat.data.folders import CAPTIONED
from mmchat.data.holdout import group_keys
from mmchat.data.pictures import PictureResolver
from mmchat.data.question_wordings import CAPTION
from mmchat.data.records import DataSource, SplitName
from mmchat.data.types import Dataset, Example, Problem, hash_examples, printable
from mmchat.errors import DataError

MAX_BAD_SHARE: Final = 0.01
"""The share of the samples that may be bad before reading stops."""

Progress = Callable[[int], None]
"""Called every few hundred samples with the number read so far."""
_PROGRESS_EVERY: Final = 200
# A class and the corners of a box on each line, as YOLO writes them.
_BOXES: Final = re.compile(r"(\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoadedSource:
    """The samples of one source, good and bad."""

    split: SplitName
    format: str
    examples: list[Example]
    problems: list[Problem]
    samples: int
    """The number of samples, good and bad."""
    remarks: list[str]


def read_data(
    path: Path,
    *,
    allow_bad: bool = False,
    images: Path | None = None,
    progress: Progress = lambda samples: None,
) -> Dataset:
    """Reads the examples in the file or folder at `path`, in any supported format.

    If the data has splits, all of them are read. `images` is another folder that a data file
    may name pictures in. A bad sample is left out and reported in `problems`.

    Raises:
        DataError: the path does not exist, its format is unknown, no sample is usable, or
            more than 1 % of the samples are bad and `allow_bad` is false.
    """
    sources = read_sources(path, images=images, progress=progress)
    check(path, sources, allow_bad=allow_bad)
    return _dataset(path, sources)


def read_splits(
    path: Path,
    *,
    allow_bad: bool = False,
    images: Path | None = None,
    progress: Progress = lambda samples: None,
) -> tuple[Dataset, Dataset | None]:
    """Returns the training split, and the held-out split (None if the data has none).

    The held-out split is the validation split, or else the test split. If the data has both,
    the test split is not used. An example whose picture is also in the held-out split is left
    out of the training split and reported in its `problems`. Raises like `read_data`.
    """
    sources = read_sources(path, images=images, progress=progress)
    check(path, sources, allow_bad=allow_bad)
    return train_and_held_out(path, sources)


def read_sources(
    path: Path, *, images: Path | None = None, progress: Progress = lambda samples: None
) -> list[LoadedSource]:
    """Reads all samples, however many are bad. Raises DataError if nothing can be read."""
    try:
        path = _existing(path)
        images = _existing(images) if images else None
        if images is not None and not images.is_dir():
            raise DataError(f"{printable(images)} is not a folder of pictures (--images).")
        pictures = PictureResolver(path if path.is_dir() else path.parent, images)
        numbers = itertools.count(1)
        return [_load(source, numbers, progress) for source in detect(path, pictures)]
    except OSError as error:
        file = error.filename or path
        raise DataError(f"{printable(file)} cannot be read ({error.strerror or error}).") from error


def _existing(path: Path) -> Path:
    """`path` with `~` expanded. Raises DataError if it is neither a file nor a folder; OSError."""
    try:
        path = path.expanduser()
        if path.is_dir() or path.is_file():
            return path
        exists = path.exists()
    except (RuntimeError, ValueError) as error:  # an unknown home; a NUL
        raise DataError(
            f"{printable(path)} is not a valid file name ({printable(error)})."
        ) from error
    if exists:
        raise DataError(f"{printable(path)} is neither a file nor a folder.")
    raise DataError(f"There is no {printable(path)}: give a file or folder of data.")


def check(path: Path, sources: Sequence[LoadedSource], *, allow_bad: bool) -> None:
    """Raises DataError if no sample is usable, or too many are bad."""
    if reason := refusal(path, sources, allow_bad=allow_bad):
        raise DataError(reason)


def refusal(
    path: Path, sources: Sequence[LoadedSource], *, allow_bad: bool, listed: int = 3
) -> str:
    """Why the data cannot be used, with the first `listed` problems; "" if it can."""
    samples = sum(source.samples for source in sources)
    problems = [problem for source in sources for problem in source.problems]
    if not samples:
        return f"{printable(path)} has no samples."
    first = "; ".join(f"{problem.place}: {problem.why}" for problem in problems[:listed])
    first = f" ({first})" if first else ""
    if len(problems) == samples:
        if samples == 1:
            return f"The only sample of {printable(path)} cannot be used{first}."
        return f"None of the {samples:,} samples of {printable(path)} can be used{first}."
    if len(problems) > MAX_BAD_SHARE * samples and not allow_bad:
        examples = [example for source in sources for example in source.examples]
        lost = "".join(f" {remark}" for remark in _lost_classes(examples, problems) if listed)
        return (
            f"{len(problems):,} of {samples:,} samples of {printable(path)} cannot be used{first}: "
            f"correct them, or skip them with --allow-bad.{lost}"
        )
    return ""


def train_and_held_out(
    path: Path, sources: Sequence[LoadedSource]
) -> tuple[Dataset, Dataset | None]:
    """The result of `read_splits` for sources that were read. Raises DataError."""
    splits = {source.split for source in sources}
    held: SplitName = "validation" if "validation" in splits else "test"
    if "train" not in splits or held not in splits:
        return _dataset(path, sources), None
    held_out = _dataset(path, [source for source in sources if source.split == held])
    train = _dataset(path, [source for source in sources if source.split in ("train", "")])
    held_keys = {key for example in held_out.examples for key in group_keys(example)}
    examples, problems = [], list(train.problems)
    for example in train.examples:
        if held_keys.isdisjoint(group_keys(example)):
            examples.append(example)
        else:
            why = "the held-out split has it too, so it is not used for training"
            problems.append(Problem(example.place, why))
    if not examples:
        raise DataError(f"Every training sample of {printable(path)} is in its held-out split too.")
    sha256 = hash_examples(examples)
    kept = Dataset(train.format, train.source, examples, problems, sha256, train.remarks)
    return kept, held_out


def remarks_on(sources: Iterable[LoadedSource]) -> list[str]:
    """What looks like a mistake in the data but may be intended, one sentence each."""
    sources = list(sources)
    examples = [example for source in sources for example in source.examples]
    problems = [problem for source in sources for problem in source.problems]
    found = [remark for source in sources for remark in source.remarks]
    found += _lost_classes(examples, problems)
    found += _contradictions(examples)
    return found


def _dataset(path: Path, sources: Iterable[LoadedSource]) -> Dataset:
    sources = list(sources)
    examples = [example for source in sources for example in source.examples]
    problems = [problem for source in sources for problem in source.problems]
    formats = list(dict.fromkeys(source.format for source in sources))
    sha256 = hash_examples(examples)
    return Dataset(", ".join(formats), str(path), examples, problems, sha256, remarks_on(sources))


def _load(source: DataSource, numbers: Iterator[int], progress: Progress) -> LoadedSource:
    """`numbers` counts the samples of all sources."""
    examples: list[Example] = []
    problems: list[Problem] = []
    samples = 0
    for result in source.results:
        samples += 1
        if isinstance(result, Problem):
            problems.append(result)
        else:
            examples.extend(result)
        if (number := next(numbers)) % _PROGRESS_EVERY == 0:
            progress(number)
    found = list(source.remarks)
    if source.format == CAPTIONED:
        found += _box_captions(examples)
    return LoadedSource(source.split, source.format, examples, problems, samples, found)


def _box_captions(examples: Sequence[Example]) -> Iterator[str]:
    """A remark if all captions are numbers, as in the labels of a detector."""
    if examples and all(_BOXES.fullmatch(one.turns[-1].text) for one in examples):
        yield (
            "Every text beside a picture consists of numbers, such as "
            f"{printable(examples[0].turns[-1].text.splitlines()[0][:60])}: these look like boxes for a "
            "detector (YOLO), but would be learned as captions."
        )


def _contradictions(examples: Iterable[Example]) -> Iterator[str]:
    """A remark if examples have the same question and pictures but different answers.

    Several captions of one picture do not count.
    """
    by_question: dict[object, dict[str, Example]] = {}
    for example in examples:
        *context, answer = example.turns
        question = context[-1].text if context else ""
        if len(context) == 1 and example.pictures and question not in CAPTION:
            pictures = tuple(picture.sha256 for picture in example.pictures)
            by_question.setdefault((pictures, question), {}).setdefault(answer.text, example)
    groups = [list(answers.values()) for answers in by_question.values() if len(answers) > 1]
    if not groups:
        return
    first = groups[0]
    many = f"{len(groups):,} pictures have" if len(groups) > 1 else "One picture has"
    answers = "two" if all(len(group) == 2 for group in groups) else "several"
    yield (
        f"{many} {answers} different answers to the same question, and all are learned: "
        f"{first[0].place} is {_shortened(first[0])}, {first[1].place} is {_shortened(first[1])}."
    )


def _lost_classes(examples: Iterable[Example], problems: Iterable[Problem]) -> Iterator[str]:
    """Remarks on classes without a usable picture."""
    kinds = {example.kind for example in examples}
    lost = Counter(one.kind for one in problems if one.kind and one.kind not in kinds)
    for kind, count in lost.most_common(5):
        why = f"none of its {count:,} pictures can" if count > 1 else "its only picture cannot"
        yield f"The class {kind} is not learned: {why} be used."


def _shortened(example: Example) -> str:
    text = printable(example.turns[-1].text[:1000])
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”"
