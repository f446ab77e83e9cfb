"""What data is made of, counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmchat.data import digest
from mmchat.data.holdout import split
from mmchat.data.reader import LoadedSource, refusal, remarks_on, train_and_held_out
from mmchat.data.types import Example, Problem
from mmchat.errors import DataError


@dataclass(frozen=True, slots=True)
class Inspection:
    """The figures of data that was read."""

    form: str
    samples: int
    """Good and bad ones in the data."""
    bad: int
    """Those that cannot be used."""
    examples: list[Example]
    problems: list[Problem]
    """Of the bad ones, and of those that are in both splits of the data itself."""
    refusal: str
    """Why training would refuse the data, without the list of problems; "" if it would not."""
    remarks: list[str]
    """What looks wrong and may be meant, one sentence each."""
    questions: int
    pictures: int
    """Different ones, by their hash."""
    shown: int
    """How often pictures are shown."""
    without_picture: int
    """Examples."""
    bad_classes: Counter[str]
    """Problems by kind, if the data tells the kind."""
    classes: Counter[str]
    """Examples by kind."""
    copies: list[list[str]]
    """For each picture that several files hold, these files, sorted."""
    duplicates: list[list[str]]
    """The places of examples with the same words and pictures."""
    train: list[Example]
    held_out: list[Example]
    own_split: bool
    """Whether the data itself says what is held out."""

    def about(self, what: str) -> int:
        """How many samples name a picture that is `missing` or `broken`."""
        return sum(problem.about == what for problem in self.problems)


def inspect(
    path: Path, sources: Sequence[LoadedSource], *, share: float, seed: int, allow_bad: bool
) -> Inspection:
    """Counts what was read. `share` and `seed` are for `split`, if the data itself is not split."""
    reason = refusal(path, sources, allow_bad=allow_bad, listed=0)
    examples = [example for source in sources for example in source.examples]
    problems = [problem for source in sources for problem in source.problems]
    train, own = examples, False
    held_out: list[Example] = []
    if examples:
        try:
            learned, kept = train_and_held_out(path, sources)
        except DataError as error:
            reason = reason or str(error)
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
            # Rows of a table often show the same picture; two files with the same one are unusual.
            where = str(picture.file) if picture.file else picture.name
            files.setdefault(picture.sha256, set()).add(where)
    return Inspection(
        form=", ".join(dict.fromkeys(source.form for source in sources)),
        samples=sum(source.samples for source in sources),
        bad=sum(len(source.problems) for source in sources),
        examples=examples,
        problems=problems,
        refusal=reason,
        remarks=remarks_on(sources),
        questions=sum(turn.role == "assistant" for e in examples for turn in e.turns),
        pictures=len(files),
        shown=sum(len(example.pictures) for example in examples),
        without_picture=sum(not example.pictures for example in examples),
        bad_classes=Counter(problem.kind for problem in problems if problem.kind),
        classes=Counter(example.kind for example in examples if example.kind),
        copies=[sorted(names) for names in files.values() if len(names) > 1],
        duplicates=[found for found in places.values() if len(found) > 1],
        train=train,
        held_out=held_out,
        own_split=own,
    )
