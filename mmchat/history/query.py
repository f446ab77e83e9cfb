"""What a person typed into a search, as words.

Punctuation around and within a word is ignored, as the index of words ignores it: `kite?` is
`kite`. Symbols are not: `C++` is not `C`, and a word may consist of symbols only (`🎉`, `->`).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mmchat.history.text import UNSPACED, folded, storable

_WORDS = 32  # of a query, which may be a pasted page
_SHARP_S = 3  # in a word that are tried both as ss and as ß
_MARKS = "#%&*@/\\"
"""Symbols that Unicode counts as punctuation."""
_SYMBOL = {"Sm", "Sc", "Sk", "So", "Me"}
_VARIATION = "\ufe0e\ufe0f"
"""They choose between a symbol's text form and its picture: ❤ and ❤️ are the same."""
_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a query."""

    text: str
    last: bool
    """Whether it is the last one, which may be the beginning of a word."""

    @property
    def indexed(self) -> bool:
        """Whether the index of words can find it: it has a letter or a digit."""
        return any(map(_is_letter, self.text))

    @property
    def symbols(self) -> str:
        """Its longest run of symbols, which a text has to contain literally; often empty."""
        if not self.indexed:
            return self.text.rstrip(_VARIATION)
        runs = "".join(c if _is_symbol(c) else " " for c in self.text).split()
        return max(runs, key=len, default="")

    @property
    def unspaced(self) -> bool:
        return UNSPACED.search(self.text) is not None

    def phrase(self) -> str:
        """The word in FTS5's query language, where everything in quotes is literal."""
        star = "*" if self.last and _is_letter(self.text[-1]) else ""
        made = " OR ".join(f"{quoted(spelling)}{star}" for spelling in _spellings(self.text))
        return f"({made})"

    def pattern(self, *, anywhere: bool = False) -> str:
        """A regular expression for it in a `folded` text: as a whole word, or `anywhere`."""
        tokens = [] if self.symbols else _TOKEN.findall(folded(self.text))
        made = r"[\W_]+".join(_either(re.escape(token)) for token in tokens)
        made = made or _either(re.escape(folded(self.text.rstrip(_VARIATION))))
        if anywhere or not self.indexed:
            return made
        before = r"(?<![^\W_])" if _is_letter(self.text[0]) or not self.symbols else ""
        after = "" if self.last or not _is_letter(self.text[-1]) else r"(?![^\W_])"
        return f"{before}{made}{after}"


def words_of(query: str) -> list[Word]:
    """The words of any string, without NUL and surrogates; a single punctuation mark is not one."""
    parts = storable(query[:10_000]).replace("\0", " ").split()
    kept = [part for part in parts if _is_word(part)][:_WORDS]
    return [Word(part, last=part_number == len(kept)) for part_number, part in enumerate(kept, 1)]


def all_of(words: Sequence[Word]) -> str:
    """An FTS5 query for texts that have all the words that can be indexed."""
    return " AND ".join(word.phrase() for word in words if word.indexed)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _is_word(part: str) -> bool:
    return len(part) > 1 or any(_is_letter(c) or _is_symbol(c) for c in part)


def _is_letter(character: str) -> bool:
    """Whether it is part of a word for the tokenizer unicode61."""
    category = unicodedata.category(character)
    return category[0] in "LN" or category == "Co"


def _is_symbol(character: str) -> bool:
    return character in _MARKS or unicodedata.category(character) in _SYMBOL


def _spellings(text: str) -> list[str]:
    """`strasse` and `straße`, which are different words in the index."""
    pieces = re.split("ss|ß", text, flags=re.IGNORECASE)
    if not 1 < len(pieces) <= _SHARP_S + 1:
        return [text]
    return [
        "".join(piece + letter for piece, letter in zip(pieces, (*letters, ""), strict=True))
        for letters in product(("ss", "ß"), repeat=len(pieces) - 1)
    ]


def _either(pattern: str) -> str:
    return re.sub("ss|ß", "(?:ss|ß)", pattern)
