"""Normalizes text for the search."""

import functools
import re
import unicodedata

# Scripts that are written without spaces, where a word can only be found as a substring, and
# Hangul, where endings are attached to the word.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


def composed(text: str) -> str:
    """`text` in NFC: with composed accents."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def fold_text(text: str) -> str:
    """`text` without case and accents, with the same length as the `composed` text."""
    return text.lower() if text.isascii() else "".join(map(_base, composed(text)))


@functools.cache
def _base(character: str) -> str:
    return unicodedata.normalize("NFKD", character)[:1].lower()[:1] or character
