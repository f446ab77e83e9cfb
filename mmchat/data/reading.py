"""Reads data of any form: recognised, each sample checked, what is bad told."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmchat.data import digest
from mmchat.data.pictures import Pictures, shown
from mmchat.data.recognising import Part, Side, recognise
from mmchat.data.splitting import keys
from mmchat.data.types import Dataset, Example, Problem
from mmchat.errors import DataError

MOST_BAD = 0.01
"""Share of the samples that may be bad before reading stops."""

Tell = Callable[[int], None]
"""Called now and then with the number of samples that were read."""
_TOLD_EACH = 200


@dataclass(frozen=True, slots=True)
class Read:
    """One part of the data as it was read, good and bad."""

    side: Side
    form: str
    examples: list[Example]
    problems: list[Problem]
    samples: int
    """Good and bad ones."""


def read_data(
    path: Path,
    *,
    allow_bad: bool = False,
    images: Path | None = None,
    tell: Tell = lambda samples: None,
) -> Dataset:
    """The examples in the file or folder at `path`, whatever form it has.

    All parts of it are read, where the data is split already. `images` is another folder
    that a data file may name pictures in. A bad sample is left out and stands in `problems`.

    Raises:
        DataError: there is no such file, the form is not known, nothing of it can be
            used, or more than 1 % of the samples are bad and not `allow_bad`.
    """
    parts = read_parts(path, images=images, tell=tell)
    check(path, parts, allow_bad=allow_bad)
    return _dataset(path, parts)


def read_splits(
    path: Path,
    *,
    allow_bad: bool = False,
    images: Path | None = None,
    tell: Tell = lambda samples: None,
) -> tuple[Dataset, Dataset | None]:
    """(what is to be learned, what the data itself keeps back for measuring; None where it does not)

    The second is its validation part, or its test part where it has no other; where it has
    both, the test part is in neither. An example whose picture lies on both sides is left
    out of the first, and stands in its `problems`. Raises as `read_data`.
    """
    parts = read_parts(path, images=images, tell=tell)
    check(path, parts, allow_bad=allow_bad)
    return sides(path, parts)


def read_parts(
    path: Path, *, images: Path | None = None, tell: Tell = lambda samples: None
) -> list[Read]:
    """Everything as it is, however bad; raises DataError where it cannot be read at all."""
    try:
        path = _there(path)
        images = _there(images) if images else None
        if images is not None and not images.is_dir():
            raise DataError(f"{shown(images)} is no folder of pictures (--images).")
        pictures = Pictures(path if path.is_dir() else path.parent, images)
        count = _counting(tell)
        return [_read(part, count) for part in recognise(path, pictures)]
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{shown(where)} cannot be read ({error.strerror or error}).") from error


def _there(path: Path) -> Path:
    """`path` with `~` expanded; raises DataError unless it is a file or folder, OSError as well."""
    try:
        path = path.expanduser()
        if path.is_dir() or path.is_file():
            return path
        there = path.exists()
    except (RuntimeError, ValueError) as error:  # nobody's home; a NUL
        raise DataError(f"{shown(path)} cannot be the name of a file ({shown(error)}).") from error
    if there:
        raise DataError(f"{shown(path)} is neither a file nor a folder.")
    raise DataError(f"There is no {shown(path)}: name a file or folder of data.")


def check(path: Path, parts: Sequence[Read], *, allow_bad: bool) -> None:
    """Raises DataError where nothing is left, or too much is bad."""
    samples = sum(part.samples for part in parts)
    problems = [problem for part in parts for problem in part.problems]
    if not samples:
        raise DataError(f"{shown(path)} holds no sample.")
    first = "; ".join(f"{problem.place}: {problem.why}" for problem in problems[:3])
    if len(problems) == samples:
        raise DataError(f"None of the {samples:,} samples of {shown(path)} can be used ({first}).")
    if len(problems) > MOST_BAD * samples and not allow_bad:
        raise DataError(
            f"{len(problems):,} of {samples:,} samples of {shown(path)} cannot be used ({first}): mend "
            "them, or leave them out with --allow-bad."
        )


def sides(path: Path, parts: Sequence[Read]) -> tuple[Dataset, Dataset | None]:
    """As `read_splits`."""
    there = {part.side for part in parts}
    kept: Side = "validation" if "validation" in there else "test"
    if "train" not in there or kept not in there:
        return _dataset(path, parts), None
    held_out = _dataset(path, [part for part in parts if part.side == kept])
    train = _dataset(path, [part for part in parts if part.side in ("train", "")])
    seen = {key for example in held_out.examples for key in keys(example)}
    examples, problems = [], list(train.problems)
    for example in train.examples:
        if seen.isdisjoint(keys(example)):
            examples.append(example)
        else:
            why = "the held-out part holds it too, so that it is not learned"
            problems.append(Problem(example.place, why))
    if not examples:
        raise DataError(f"Everything to learn in {shown(path)} is in its held-out part too.")
    whole = digest.of_examples(examples)
    return Dataset(train.form, train.source, examples, problems, whole), held_out


def _dataset(path: Path, parts: Iterable[Read]) -> Dataset:
    parts = list(parts)
    examples = [example for part in parts for example in part.examples]
    problems = [problem for part in parts for problem in part.problems]
    forms = list(dict.fromkeys(part.form for part in parts))
    whole = digest.of_examples(examples)
    return Dataset(", ".join(forms), str(path), examples, problems, whole)


def _read(part: Part, count: Iterator[None]) -> Read:
    read = Read(part.side, part.form, [], [], 0)
    samples = 0
    for outcome in part.outcomes:
        samples += 1
        if isinstance(outcome, Problem):
            read.problems.append(outcome)
        else:
            read.examples.extend(outcome)
        next(count)
    return Read(part.side, part.form, read.examples, read.problems, samples)


def _counting(tell: Tell) -> Iterator[None]:
    samples = 0
    while True:
        samples += 1
        if samples % _TOLD_EACH == 0:
            tell(samples)
        yield
