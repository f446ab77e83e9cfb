"""What a screen may be given."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mmchat.sanitize import clean


@given(st.text(st.characters(categories=None)))
def test_no_control_survives(text: str) -> None:
    """No escape, no bidi override, nothing that UTF-8 cannot write; twice is once."""
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\t\n" for c in cleaned)
    assert not set(cleaned) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert clean(cleaned) == cleaned


@given(st.text())
def test_one_line_stays_one_line(text: str) -> None:
    assert not set(clean(text, keep_newlines=False)) & set("\n\r\t")


def test_words_stay() -> None:
    text = "Größe 3\u202f×\u202f4, 猫 😀 👩‍👩‍👧 [red]x[/red]\n\tnext"
    assert clean(text) == text
    assert clean("\x1b]52;c;aGk=\x07hi\x1b[31m") == "]52;c;aGk=hi[31m"
    assert clean("a\r\nb\rc") == "a\nb\nc"
