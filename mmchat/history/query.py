"""Parses a search query into words.

Punctuation around and inside a word is ignored, as in the word index: `kite?` is `kite`. Symbols
are not ignored: `C++` is not `C`, and a word may consist of symbols only (`🎉`, `->`).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mmchat.history.text import UNSPACED, fold_text
from mmchat.sanitize import replace_surrogates

_MAX_WORDS = 32  # the query may be a pasted page
_MAX_SHARP_S = 3  # occurrences in a word that are tried both as ss and as ß
_MARKS = "#%&*@/\\"
"""Symbols that Unicode counts as punctuation."""
_SYMBOL = {"Sm", "Sc", "Sk", "So", "Me"}
_VARIATION = "\ufe0e\ufe0f"
"""Variation selectors, which choose between text and emoji style: ❤ and ❤️ are equal."""
_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a query."""

    text: str
    last: bool
    """Whether it is the last word, which may be incomplete."""

    @property
    def indexed(self) -> bool:
        """Whether the word index can find it: it has a letter or a digit."""
        return any(map(_is_letter, self.text))

    @property
    def symbols(self) -> str:
        """Its longest run of symbols, which a text must contain literally; often empty."""
        if not self.indexed:
            return self.text.rstrip(_VARIATION)
        runs = "".join(c if _is_symbol(c) else " " for c in self.text).split()
        return max(runs, key=len, default="")

    @property
    def unspaced(self) -> bool:
        return UNSPACED.search(self.text) is not None

    def phrase(self) -> str:
        """The word as an FTS5 query, where everything in quotes is literal."""
        star = "*" if self.last and _is_letter(self.text[-1]) else ""
        spellings = (f"{quote(spelling)}{star}" for spelling in _spellings(self.text))
        return f"({' OR '.join(spellings)})"

    def pattern(self, *, anywhere: bool = False) -> str:
        """A regular expression for it in a folded text: as a whole word, or `anywhere`."""
        tokens = [] if self.symbols else _TOKEN.findall(fold_text(self.text))
        pattern = r"[\W_]+".join(_either(re.escape(token)) for token in tokens)
        pattern = pattern or _either(re.escape(fold_text(self.text.rstrip(_VARIATION))))
        if anywhere or not self.indexed:
            return pattern
        before = r"(?<![^\W_])" if _is_letter(self.text[0]) or not self.symbols else ""
        after = "" if self.last or not _is_letter(self.text[-1]) else r"(?![^\W_])"
        return f"{before}{pattern}{after}"


def parse_query(query: str) -> list[Word]:
    """The words of a query, without NUL and surrogates; a single punctuation mark is not a word."""
    parts = replace_surrogates(query[:10_000]).replace("\0", " ").split()
    kept = [part for part in parts if _is_word(part)][:_MAX_WORDS]
    return [Word(part, last=part_number == len(kept)) for part_number, part in enumerate(kept, 1)]


def match_all(words: Sequence[Word]) -> str:
    """An FTS5 query for texts with all the indexed words; "" if there are none."""
    return " AND ".join(word.phrase() for word in words if word.indexed)


def quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _is_word(part: str) -> bool:
    return len(part) > 1 or any(_is_letter(c) or _is_symbol(c) for c in part)


def _is_letter(character: str) -> bool:
    """Whether the tokenizer unicode61 treats it as part of a word."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def _is_symbol(character: str) -> bool:
    return character in _MARKS or unicodedata.category(character) in _SYMBOL


def _spellings(text: str) -> list[str]:
    """The spellings with ss and ß, which are different words in the index."""
    pieces = re.split("ss|ß", text, flags=re.IGNORECASE)
    if not 1 < len(pieces) <= _MAX_SHARP_S + 1:
        return [text]
    return [
        "".join(piece + letter for piece, letter in zip(pieces, (*letters, ""), strict=True))
        for letters in product(("ss", "ß"), repeat=len(pieces) - 1)
    ]


def _either(pattern: str) -> str:
    return re.sub("ss|ß", "(?:ss|ß)", pattern)
