"""Reads data of any form: the form is detected, each sample checked, what is bad reported."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmchat.data import digest, remarks
from mmchat.data.detection import DataSource, SplitName, detect
from mmchat.data.folder_forms import CAPTIONED
from mmchat.data.holdout import keys
from mmchat.data.pictures import PictureResolver
from mmchat.data.sample_errors import printable
from mmchat.data.types import Dataset, Example, Problem
from mmchat.errors import DataError

MAX_BAD_SHARE = 0.01
"""The share of the samples that may be bad before reading stops."""

Progress = Callable[[int], None]
"""Called now and then with the number of samples that were read."""
_PROGRESS_EVERY = 200


@dataclass(frozen=True, slots=True)
class LoadedSource:
    """One source of the data as it was read, good and bad."""

    split: SplitName
    form: str
    examples: list[Example]
    problems: list[Problem]
    samples: int
    """Good and bad ones."""
    remarks: list[str]


def read_data(
    path: Path,
    *,
    allow_bad: bool = False,
    images: Path | None = None,
    progress: Progress = lambda samples: None,
) -> Dataset:
    """The examples in the file or folder at `path`, whatever form it has.

    If the data itself is split, all its splits are read. `images` is another folder that a
    data file may name pictures in. A bad sample is left out and reported in `problems`.

    Raises:
        DataError: the path does not exist, its form is not known, nothing in it can be
            used, or more than 1 % of the samples are bad and `allow_bad` is false.
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
    """Returns what is to be learned, and what the data itself holds out (None if it does not).

    The second is its validation split, or its test split if it has no other. If it has both,
    the test split is in neither. An example whose picture is in both is left out of the
    first and reported in its `problems`. Raises as `read_data`.
    """
    sources = read_sources(path, images=images, progress=progress)
    check(path, sources, allow_bad=allow_bad)
    return train_and_held_out(path, sources)


def read_sources(
    path: Path, *, images: Path | None = None, progress: Progress = lambda samples: None
) -> list[LoadedSource]:
    """Everything as it is, however bad. Raises DataError if it cannot be read at all."""
    try:
        path = _existing(path)
        images = _existing(images) if images else None
        if images is not None and not images.is_dir():
            raise DataError(f"{printable(images)} is not a folder of pictures (--images).")
        pictures = PictureResolver(path if path.is_dir() else path.parent, images)
        count = _counter(progress)
        return [_load(source, count) for source in detect(path, pictures)]
    except OSError as error:
        where = error.filename or path
        raise DataError(
            f"{printable(where)} cannot be read ({error.strerror or error})."
        ) from error


def _existing(path: Path) -> Path:
    """`path` with `~` expanded. Raises DataError if it is not a file or folder, and OSError."""
    try:
        path = path.expanduser()
        if path.is_dir() or path.is_file():
            return path
        exists = path.exists()
    except (RuntimeError, ValueError) as error:  # an unknown home; a NUL
        raise DataError(
            f"{printable(path)} cannot be the name of a file ({printable(error)})."
        ) from error
    if exists:
        raise DataError(f"{printable(path)} is neither a file nor a folder.")
    raise DataError(f"There is no {printable(path)}: name a file or folder of data.")


def check(path: Path, sources: Sequence[LoadedSource], *, allow_bad: bool) -> None:
    """Raises DataError if nothing can be used, or too much is bad."""
    if reason := refusal(path, sources, allow_bad=allow_bad):
        raise DataError(reason)


def refusal(
    path: Path, sources: Sequence[LoadedSource], *, allow_bad: bool, listed: int = 3
) -> str:
    """Why the data is not learned from, or "" if it is; with the first `listed` problems."""
    samples = sum(source.samples for source in sources)
    problems = [problem for source in sources for problem in source.problems]
    if not samples:
        return f"{printable(path)} holds no sample."
    first = "; ".join(f"{problem.place}: {problem.why}" for problem in problems[:listed])
    first = f" ({first})" if first else ""
    if len(problems) == samples:
        if samples == 1:
            return f"The only sample of {printable(path)} cannot be used{first}."
        return f"None of the {samples:,} samples of {printable(path)} can be used{first}."
    if len(problems) > MAX_BAD_SHARE * samples and not allow_bad:
        examples = [example for source in sources for example in source.examples]
        lost = "".join(f" {one}" for one in remarks.lost_classes(examples, problems) if listed)
        return (
            f"{len(problems):,} of {samples:,} samples of {printable(path)} cannot be used{first}: "
            f"correct them, or leave them out with --allow-bad.{lost}"
        )
    return ""


def train_and_held_out(
    path: Path, sources: Sequence[LoadedSource]
) -> tuple[Dataset, Dataset | None]:
    """As `read_splits`."""
    there = {source.split for source in sources}
    held: SplitName = "validation" if "validation" in there else "test"
    if "train" not in there or held not in there:
        return _dataset(path, sources), None
    held_out = _dataset(path, [source for source in sources if source.split == held])
    train = _dataset(path, [source for source in sources if source.split in ("train", "")])
    seen = {key for example in held_out.examples for key in keys(example)}
    examples, problems = [], list(train.problems)
    for example in train.examples:
        if seen.isdisjoint(keys(example)):
            examples.append(example)
        else:
            why = "the held-out part holds it too, so it is not learned"
            problems.append(Problem(example.place, why))
    if not examples:
        raise DataError(f"Everything to learn in {printable(path)} is in its held-out part too.")
    whole = digest.of_examples(examples)
    learned = Dataset(train.form, train.source, examples, problems, whole, train.remarks)
    return learned, held_out


def remarks_on(sources: Iterable[LoadedSource]) -> list[str]:
    """What looks wrong in the data and may be meant, one sentence each."""
    sources = list(sources)
    examples = [example for source in sources for example in source.examples]
    problems = [problem for source in sources for problem in source.problems]
    found = [remark for source in sources for remark in source.remarks]
    found += remarks.lost_classes(examples, problems)
    found += remarks.contradiction_remarks(examples)
    return found


def _dataset(path: Path, sources: Iterable[LoadedSource]) -> Dataset:
    sources = list(sources)
    examples = [example for source in sources for example in source.examples]
    problems = [problem for source in sources for problem in source.problems]
    forms = list(dict.fromkeys(source.form for source in sources))
    whole = digest.of_examples(examples)
    return Dataset(", ".join(forms), str(path), examples, problems, whole, remarks_on(sources))


def _load(source: DataSource, count: Iterator[None]) -> LoadedSource:
    examples: list[Example] = []
    problems: list[Problem] = []
    samples = 0
    for result in source.results:
        samples += 1
        if isinstance(result, Problem):
            problems.append(result)
        else:
            examples.extend(result)
        next(count)
    found = list(source.remarks)
    if source.form == CAPTIONED:
        found += remarks.box_captions(examples)
    return LoadedSource(source.split, source.form, examples, problems, samples, found)


def _counter(progress: Progress) -> Iterator[None]:
    samples = 0
    while True:
        samples += 1
        if samples % _PROGRESS_EVERY == 0:
            progress(samples)
        yield
