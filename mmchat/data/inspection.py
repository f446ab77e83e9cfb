"""What data is made of, counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmchat.data import digest
from mmchat.data.reading import Read, check, sides
from mmchat.data.splitting import split
from mmchat.data.types import Example, Problem
from mmchat.errors import DataError


@dataclass(frozen=True, slots=True)
class Inspection:
    """The figures of data that was read."""

    form: str
    samples: int
    """Good and bad ones, as they stand in the data."""
    bad: int
    """Those that cannot be used."""
    examples: list[Example]
    problems: list[Problem]
    """Of the bad ones, and of those that a split of the data itself holds on both sides."""
    refusal: str
    """The sentence with which training would refuse the data; "" where it would not."""
    questions: int
    pictures: int
    """Different ones, by their hash."""
    shown: int
    """Times that one is shown."""
    without_picture: int
    """Examples."""
    classes: Counter[str]
    """Examples by kind."""
    copies: list[list[str]]
    """Files that hold the same picture, sorted, for each picture that lies in several."""
    duplicates: list[list[str]]
    """Places of examples that are the same in every word and picture."""
    train: list[Example]
    held_out: list[Example]
    own_split: bool
    """Whether the data itself says what is held out."""

    def about(self, what: str) -> int:
        """How many samples name a picture that is `missing` or `broken`."""
        return sum(problem.about == what for problem in self.problems)


def inspect(
    path: Path, parts: Sequence[Read], *, share: float, seed: int, allow_bad: bool
) -> Inspection:
    """Counts what was read; `share` and `seed` as for `split`, where the data is not split itself."""
    refusal = ""
    try:
        check(path, parts, allow_bad=allow_bad)
    except DataError as error:
        refusal = str(error)
    examples = [example for part in parts for example in part.examples]
    problems = [problem for part in parts for problem in part.problems]
    train, own = examples, False
    held_out: list[Example] = []
    if examples:
        try:
            learned, kept = sides(path, parts)
        except DataError as error:
            refusal = refusal or str(error)
        else:
            own = kept is not None
            if kept is None:
                train, held_out = split(examples, share, seed)
            else:
                train, held_out = list(learned.examples), list(kept.examples)
                known = set(problems)
                problems += [one for one in learned.problems if one not in known]
    files: dict[str, set[str]] = {}
    places: dict[str, list[str]] = {}
    for example in examples:
        places.setdefault(digest.of_example(example), []).append(example.place)
        for picture in example.pictures:
            # Rows of a table may well show one picture; that two files do is worth telling.
            where = str(picture.file) if picture.file else picture.name
            files.setdefault(picture.sha256, set()).add(where)
    return Inspection(
        form=", ".join(dict.fromkeys(part.form for part in parts)),
        samples=sum(part.samples for part in parts),
        bad=sum(len(part.problems) for part in parts),
        examples=examples,
        problems=problems,
        refusal=refusal,
        questions=sum(turn.role == "assistant" for e in examples for turn in e.turns),
        pictures=len(files),
        shown=sum(len(example.pictures) for example in examples),
        without_picture=sum(not example.pictures for example in examples),
        classes=Counter(example.kind for example in examples if example.kind),
        copies=[sorted(names) for names in files.values() if len(names) > 1],
        duplicates=[found for found in places.values() if len(found) > 1],
        train=train,
        held_out=held_out,
        own_split=own,
    )
