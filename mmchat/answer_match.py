"""Compares an answer with a reference, for training and evaluation."""

import unicodedata

_QUOTES = str.maketrans("“”„‟«»", '""""""')


def normalize(text: str) -> str:
    """`text` in NFC, case-folded, with straight quotes, single spaces and no closing punctuation."""
    text = unicodedata.normalize("NFC", text).translate(_QUOTES).casefold()
    return " ".join(text.split()).rstrip(".!?… ")


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are equal after `normalize`."""
    return normalize(answer) == normalize(reference)


def same_words(answer: str, reference: str) -> bool:
    """Whether the two have the same words, as SQuAD compares them (Rajpurkar et al. 2016): without case,
    punctuation, extra white space and the articles a, an and the.

    Texts without any other word ("A", "-", "") would all be equal, so `exact_match` compares them.
    """
    words, reference_words = _words(answer), _words(reference)
    if words or reference_words:
        return words == reference_words
    return exact_match(answer, reference)


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text).casefold()
    text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    return [word for word in text.split() if word not in ("a", "an", "the")]
