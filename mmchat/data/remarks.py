"""Remarks on data that looks wrong but may be intended; no sample is left out for them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mmchat.data.question_wordings import CAPTION
from mmchat.data.sample_errors import printable
from mmchat.data.types import Example, Problem

# A class and the corners of a box on each line, as YOLO writes them.
_BOXES: Final = re.compile(r"(\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*)+", re.IGNORECASE)


def box_captions(examples: Sequence[Example]) -> Iterator[str]:
    """A remark if all captions are numbers, as in the labels of a detector."""
    if examples and all(_BOXES.fullmatch(one.turns[-1].text) for one in examples):
        yield (
            "Every text beside a picture consists of numbers, such as "
            f"{printable(examples[0].turns[-1].text.splitlines()[0][:60])}: these look like boxes for a "
            "detector (YOLO), but would be learned as captions."
        )


def contradictions(examples: Iterable[Example]) -> list[list[Example]]:
    """Groups of examples with the same question and pictures but different answers.

    Several captions of one picture do not count.
    """
    by_question: dict[object, dict[str, Example]] = {}
    for example in examples:
        *context, answer = example.turns
        question = context[-1].text if context else ""
        if len(context) == 1 and example.pictures and question not in CAPTION:
            pictures = tuple(picture.sha256 for picture in example.pictures)
            by_question.setdefault((pictures, question), {}).setdefault(answer.text, example)
    return [list(answers.values()) for answers in by_question.values() if len(answers) > 1]


def contradiction_remarks(examples: Iterable[Example]) -> Iterator[str]:
    """A remark on the first of the `contradictions`, if there are any."""
    groups = contradictions(examples)
    if not groups:
        return
    first = groups[0]
    many = f"{len(groups):,} pictures have" if len(groups) > 1 else "One picture has"
    answers = "two" if all(len(group) == 2 for group in groups) else "several"
    yield (
        f"{many} {answers} different answers to the same question, and all are learned: "
        f"{first[0].place} is {_shortened(first[0])}, {first[1].place} is {_shortened(first[1])}."
    )


def lost_classes(examples: Iterable[Example], problems: Iterable[Problem]) -> Iterator[str]:
    """Remarks on classes without a usable picture."""
    kinds = {example.kind for example in examples}
    lost = Counter(one.kind for one in problems if one.kind and one.kind not in kinds)
    for kind, count in lost.most_common(5):
        why = f"none of its {count:,} pictures can" if count > 1 else "its only picture cannot"
        yield f"The class {kind} is not learned: {why} be used."


def _shortened(example: Example) -> str:
    text = printable(example.turns[-1].text[:1000])
    return f"“{text if len(text) <= 40 else text[:39] + '…'}”"
