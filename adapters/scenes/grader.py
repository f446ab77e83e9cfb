"""Grades answers of the built-in model by their content.

`mmchat evaluate` loads this file for data whose data.json has `"grader": "scenes"`, and when this
model answers (`mmchat.evaluation.graders`). The functions take text as
`mmchat.answer_match.normalize` returns it. Only the standard library is imported, because the scripts
that draw the data import this file too.
"""

import re
from collections import Counter
from collections.abc import Hashable

REFUSAL = "I can only talk about simple drawn scenes. Load a larger model with: mmchat models add"
NOTHING = "I see nothing but an empty background."

Item = tuple[str, ...]
"""A described object as its words, such as (size, colour, shape); writing is ('"', text)."""

_REFUSAL_START = REFUSAL.partition(".")[0].lower()
_COUNTS = "one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {"a": 1, "an": 1} | {word: n for n, word in enumerate(_COUNTS.split(), 1)}
_WORD = rf"(?!(?:and|the|{'|'.join(_NUMBERS)})\b)[\w-]+"
_ITEM = re.compile(
    r'(?:the|a) (?:word|number|text|letter|writing) "(?P<text>[^"]*)"'
    rf"|(?P<number>{'|'.join(_NUMBERS)}|\d{{1,3}}) (?P<words>{_WORD}(?: {_WORD})*)"
)
_SEPARATOR = re.compile(r",? and |, ")


def is_refusal(text: str) -> bool:
    """Whether an answer declines the question, whatever it recommends instead."""
    return text.startswith(_REFUSAL_START)


def content(text: str, caption: bool) -> Hashable:
    """A value that is equal for two answers that say the same.

    All refusals are equal, and captions may list their items in any order. A caption that
    cannot be parsed is compared as text, so it never equals one that can.
    """
    if caption and (items := parse_caption(text)) is not None:
        return frozenset((+items).items())
    return _REFUSAL_START if is_refusal(text) else text


def objects(caption: str) -> Hashable | None:
    """The content of a caption without its writing; None if it cannot be parsed."""
    items = parse_caption(caption)
    if items is None:
        return None
    return frozenset((item, number) for item, number in (+items).items() if item[0] != '"')


def parse_caption(text: str) -> Counter[Item] | None:
    """The items that a caption lists and how many of each; None if it cannot be parsed.

    'i see a large red star, two small green moons and the word "go"' has one (large, red, star),
    two (small, green, moon) and one ('"', go).
    """
    if not text.startswith("i see "):
        return None
    items: Counter[Item] = Counter()
    if text == NOTHING.lower().rstrip("."):
        return items
    position = len("i see ")
    while match := _ITEM.match(text, position):
        if match["text"] is not None:
            items['"', match["text"]] += 1
        else:
            number = _NUMBERS.get(match["number"]) or int(match["number"])
            *adjectives, noun = match["words"].split()
            items[(*adjectives, noun if number == 1 else _singular(noun))] += number
        position = match.end()
        if position == len(text):
            return items
        separator = _SEPARATOR.match(text, position)
        if separator is None:
            return None
        position = separator.end()
    return None


def _singular(noun: str) -> str:
    if re.search(r"(ss|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun
