"""Statistics of data, for `mmchat data inspect`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmchat.data.holdout import split
from mmchat.data.reader import LoadedSource, refusal, remarks_on, train_and_held_out
from mmchat.data.types import Example, Problem
from mmchat.errors import DataError


@dataclass(frozen=True, slots=True)
class Inspection:
    """The statistics of data that was read."""

    format: str
    samples: int
    """The number of samples, good and bad."""
    bad: int
    """The number of samples that cannot be used."""
    examples: list[Example]
    problems: list[Problem]
    """Those of bad samples, and of samples that are in both splits of the data."""
    refusal: str
    """Why training would refuse the data, without the list of problems; "" if it would not."""
    remarks: list[str]
    """What looks like a mistake but may be intended, one sentence each."""
    questions: int
    pictures: int
    """The number of different pictures."""
    picture_uses: int
    """How often pictures occur."""
    without_picture: int
    """The number of examples without a picture."""
    bad_classes: Counter[str]
    """Problems by kind, if the kind is known."""
    classes: Counter[str]
    """Examples by kind."""
    copies: list[list[str]]
    """For each picture that is in several files, the sorted file names."""
    duplicates: list[list[str]]
    """The places of examples with the same text and pictures."""
    train: list[Example]
    held_out: list[Example]
    own_split: bool
    """Whether the data has a held-out split."""

    def count_pictures(self, state: str) -> int:
        """How many samples have a picture that is `missing` or `broken`."""
        return sum(problem.about == state for problem in self.problems)


def inspect(
    path: Path, sources: Sequence[LoadedSource], *, share: float, seed: int, allow_bad: bool
) -> Inspection:
    """Computes the statistics. `share` and `seed` are for `split`, if the data has no splits."""
    reason = refusal(path, sources, allow_bad=allow_bad, listed=0)
    examples = [example for source in sources for example in source.examples]
    problems = [problem for source in sources for problem in source.problems]
    train, own = examples, False
    held_out: list[Example] = []
    if examples:
        try:
            train_split, held_out_split = train_and_held_out(path, sources)
        except DataError as error:
            reason = reason or str(error)
        else:
            own = held_out_split is not None
            if held_out_split is None:
                train, held_out = split(examples, share, seed)
            else:
                train, held_out = list(train_split.examples), list(held_out_split.examples)
                known = set(problems)
                problems += [one for one in train_split.problems if one not in known]
    files: dict[str, set[str]] = {}
    places: dict[str, list[str]] = {}
    for example in examples:
        places.setdefault(example.sha256, []).append(example.place)
        for picture in example.pictures:
            # Rows of a table often have the same picture; two files with the same one are unusual.
            name = str(picture.file) if picture.file else picture.name
            files.setdefault(picture.sha256, set()).add(name)
    return Inspection(
        format=", ".join(dict.fromkeys(source.format for source in sources)),
        samples=sum(source.samples for source in sources),
        bad=sum(len(source.problems) for source in sources),
        examples=examples,
        problems=problems,
        refusal=reason,
        remarks=remarks_on(sources),
        questions=sum(turn.role == "assistant" for e in examples for turn in e.turns),
        pictures=len(files),
        picture_uses=sum(len(example.pictures) for example in examples),
        without_picture=sum(not example.pictures for example in examples),
        bad_classes=Counter(problem.kind for problem in problems if problem.kind),
        classes=Counter(example.kind for example in examples if example.kind),
        copies=[sorted(names) for names in files.values() if len(names) > 1],
        duplicates=[group for group in places.values() if len(group) > 1],
        train=train,
        held_out=held_out,
        own_split=own,
    )
