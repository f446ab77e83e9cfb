"""When an answer is right, and how sure a share of right answers is."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

REFUSAL = "I can only talk about simple drawn scenes"
"""How an answer begins that declines."""
NOTHING = "nothing but an empty background"

Item = tuple[str, ...]
"""A described thing, (size, colour, shape) or what else is said of it, or ('"', text): writing."""

_Z = 1.959963984540054  # the normal distribution's 97.5 % point
_WORDS = "one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {"a": 1, "an": 1} | {word: n for n, word in enumerate(_WORDS.split(), 1)}
_QUOTES = str.maketrans("“”„‟«»", '""""""')
_WORD = rf"(?!(?:and|the|{'|'.join(_NUMBERS)})\b)[\w-]+"
_ITEM = re.compile(
    r'(?:the|a) (?:word|number|text|letter|writing) "(?P<text>[^"]*)"'
    rf"|(?P<number>{'|'.join(_NUMBERS)}|\d{{1,3}}) (?P<words>{_WORD}(?: {_WORD})*)"
)
_BETWEEN = re.compile(r",? and |, ")


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `n`, with its 95 % interval by Wilson. Shares are from 0 to 1; none of none is 0."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927); of none the whole from 0 to 1."""
        if not self.n:
            return 0.0, 1.0
        spread = _Z * _Z / self.n
        centre = (self.share + spread / 2) / (1 + spread)
        half = (
            _Z
            / (1 + spread)
            * math.sqrt(self.share * (1 - self.share) / self.n + spread / 4 / self.n)
        )
        # Rounding would leave these two a hair's breadth beside the ends of the scale.
        low = centre - half if self.hits else 0.0
        high = centre + half if self.hits < self.n else 1.0
        return low, high


def normalise(text: str) -> str:
    """A sentence without case, spare white space and closing punctuation."""
    text = unicodedata.normalize("NFC", text).translate(_QUOTES).casefold()
    return " ".join(text.split()).rstrip(".!?… ")


def parse_caption(text: str) -> Counter[Item] | None:
    """The multiset of what a caption describes; None where it is none.

    "I see a large red star, two small green moons and the word "GO"." holds one
    (large, red, star), two (small, green, moon) and one ('"', go), in whatever order
    they come. Case does not count.
    """
    plain = normalise(text)
    if not plain.startswith("i see "):
        return None
    plain = plain.removeprefix("i see ")
    found: Counter[Item] = Counter()
    if plain == NOTHING:
        return found
    at = 0
    while match := _ITEM.match(plain, at):
        if match["text"] is not None:
            found['"', match["text"]] += 1
        else:
            number = _NUMBERS.get(match["number"]) or int(match["number"])
            *said, noun = match["words"].split()
            found[(*said, noun if number == 1 else _singular(noun))] += number
        at = match.end()
        if at == len(plain):
            return found
        between = _BETWEEN.match(plain, at)
        if between is None:
            return None
        at = between.end()
    return None


def _singular(noun: str) -> str:
    if re.search(r"(ss|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def things(caption: Counter[Item]) -> Counter[Item]:
    """What is described, without writing."""
    return Counter({item: number for item, number in caption.items() if item[0] != '"'})


def is_declined(answer: str) -> bool:
    return normalise(answer).startswith(REFUSAL.lower())


def is_right(answer: str, wanted: str, caption: bool) -> bool:
    """Whether `answer` has the content of `wanted`: the exact match.

    Of captions what they describe is compared, and one that cannot be parsed is
    wrong, unless the wanted one is free text itself; two refusals are the same
    whatever they advise; all else is compared as `normalise` leaves it.
    """
    if caption:
        described = parse_caption(wanted)
        if described is not None:
            return parse_caption(answer) == described
    if is_declined(wanted):
        return is_declined(answer)
    return normalise(answer) == normalise(wanted)


def is_things_right(answer: str, wanted: str) -> bool:
    """Whether a caption describes every thing right, whatever it says of writing."""
    said, there = parse_caption(answer), parse_caption(wanted)
    return said is not None and there is not None and things(said) == things(there)


def normalised_match(answer: str, wanted: str) -> bool:
    """Whether the two are the same words, as SQuAD compares them (Rajpurkar et al. 2016): without
    case, punctuation, the articles a, an and the, and spare white space.

    Two that have nothing else ("A", "-", "") would all be the same: those are compared as
    `normalise` leaves them.
    """
    said, there = _plain_words(answer), _plain_words(wanted)
    if said or there:
        return said == there
    return normalise(answer) == normalise(wanted)


def _plain_words(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text).casefold()
    text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    return [word for word in text.split() if word not in ("a", "an", "the")]


def most_frequent(choices: Sequence[tuple[str, str]]) -> float:
    """The share that always giving the most frequent choice of each group would get right.

    choices: (group, choice) of every question.
    """
    groups: dict[str, Counter[str]] = {}
    for group, choice in choices:
        groups.setdefault(group, Counter())[choice] += 1
    best = sum(max(counts.values()) for counts in groups.values())
    return best / len(choices) if choices else 0.0
