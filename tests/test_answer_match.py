"""When two answers are the same text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.answer_match import exact_match, normalize, same_words


@pytest.mark.parametrize(
    ("said", "same"),
    [
        ("It is red.", True),
        ("it is  RED", True),
        (" It is red!\n", True),
        ("It is red. It is red.", False),
        ("It is dark red.", False),
        ("", False),
    ],
)
def test_case_space_and_closing_punctuation_do_not_count(said: str, same: bool) -> None:
    assert exact_match(said, "It is red.") is same


def test_curly_quotes_equal_straight_ones() -> None:
    assert normalize("It says “GO”.") == normalize('It says "GO".')


@pytest.mark.parametrize(
    ("answer", "wanted", "same"),
    [
        ("The cat, a dog!", "cat dog", True),
        ("«Red»  STAR", "red star", True),
        ("catdog", "cat dog", False),
        ("two", "2", False),
        ("a", "A.", True),
        ("The", "A", False),
        ("-", "+", False),
        ("", "the", False),
        ("", "A", False),
    ],
)
def test_same_words_as_squad_compares_them(answer: str, wanted: str, same: bool) -> None:
    assert same_words(answer, wanted) is same


@given(st.text())
def test_every_text_equals_itself(text: str) -> None:
    assert exact_match(text, text)
    assert same_words(text, text)
