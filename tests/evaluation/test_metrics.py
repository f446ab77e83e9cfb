"""The figures against values from elsewhere, captions against what they describe."""

import math
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.evaluation.metrics import (
    Share,
    is_declined,
    is_right,
    is_things_right,
    most_frequent,
    normalise,
    parse_caption,
)

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert Share(hits, n).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_where_the_score_test_is_just_significant(counts: tuple[int, int]) -> None:
    hits, n = counts
    share = Share(hits, n)
    low, high = share.interval
    assert 0 <= low <= share.share <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            z = abs(share.share - end) / math.sqrt(end * (1 - end) / n)
            assert z == pytest.approx(1.959964, rel=1e-4)


def test_of_none_nothing_is_known() -> None:
    assert Share(0, 0).share == 0
    assert Share(0, 0).interval == (0, 1)


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
def test_content_is_free_of_case_space_and_end(said: str, same: bool) -> None:
    assert is_right(said, "It is red.", caption=False) is same


def test_quotes_of_any_kind_are_quotes() -> None:
    assert normalise("It says “GO”.") == normalise('It says "GO".')


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("I see a small red star.", {("small", "red", "star"): 1}),
        (
            "I see two small green stars and a large blue cross.",
            {("small", "green", "star"): 2, ("large", "blue", "cross"): 1},
        ),
        (
            "I see a small green star, a small green star and 3 large blue crosses",
            {("small", "green", "star"): 2, ("large", "blue", "cross"): 3},
        ),
        (
            'i see an orange ring, and the word "Salt and pepper, please".',
            {("orange", "ring"): 1, ('"', "salt and pepper, please"): 1},
        ),
        ('I see the number "42".', {('"', "42"): 1}),
        ("I see nothing but an empty background.", {}),
    ],
)
def test_captions_are_multisets(said: str, wanted: dict[tuple[str, ...], int]) -> None:
    assert parse_caption(said) == Counter(wanted)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "A small red star.",
        "I see ",
        "I see small red stars.",
        "I see a small red star,",
        "I see a small red star and",
        "I see a small red star a large blue ring.",
        'I see the word "GO.',
        "I see and.",
        "It is red.",
        "I see a star. It is red.",
    ],
)
def test_what_is_no_caption_is_none(said: str) -> None:
    assert parse_caption(said) is None


def test_a_caption_is_right_in_any_order_and_wrong_by_one_thing() -> None:
    wanted = 'I see a small red star, two large blue rings and the word "GO".'
    swapped = 'I see the word "go", two large blue rings and a small red star'
    assert is_right(swapped, wanted, caption=True)
    assert not is_right(swapped, wanted, caption=False)
    assert is_right(
        'I see a large blue ring, a small red star, a large blue ring and the word "GO".',
        wanted,
        caption=True,
    )
    for wrong in (
        'I see a small red star, a large blue ring and the word "GO".',
        'I see a large red star, two large blue rings and the word "GO".',
        "I see a small red star and two large blue rings.",
        "Many things.",
    ):
        assert not is_right(wrong, wanted, caption=True)
    assert is_things_right("I see two large blue rings and a small red star.", wanted)
    assert not is_things_right('I see two large blue rings and the word "GO".', wanted)


def test_a_wanted_caption_in_free_words_is_compared_as_a_sentence() -> None:
    assert is_right("a dog on  a beach", "A dog on a beach.", caption=True)
    assert not is_right("a cat on a beach", "A dog on a beach.", caption=True)


thing = st.tuples(
    st.sampled_from(("small", "large")),
    st.sampled_from(("red", "orange", "blue", "grey")),
    st.sampled_from(("circle", "square", "star", "cross", "box", "moon", "bush")),
)
written = st.text("ABCdef019 ,-'é漢and.", max_size=12)
FORMS = {"cross": "crosses", "box": "boxes", "bush": "bushes"}


@given(
    st.lists(st.tuples(thing, st.integers(1, 8)), max_size=6),
    st.none() | written,
    st.randoms(use_true_random=False),
)
def test_what_is_described_is_parsed_back(
    groups: list[tuple[tuple[str, str, str], int]], text: str | None, rng: random.Random
) -> None:
    wanted: Counter[tuple[str, ...]] = Counter()
    items = []
    for (size, colour, shape), number in groups:
        wanted[size, colour, shape] += number
        many = FORMS.get(shape, shape + "s")
        items.append(
            f"a {size} {colour} {shape}"
            if number == 1
            else f"{NUMBERS[number]} {size} {colour} {many}"
        )
    if text is not None:
        wanted['"', re.sub(" +", " ", text).lower()] += 1
        items.append(f'the word "{text}"')
    rng.shuffle(items)
    listed = ", ".join(items[:-1]) + (" and " if items[:-1] else "") + items[-1] if items else ""
    found = parse_caption(f"I see {listed or 'nothing but an empty background'}.")
    assert found == wanted


@given(st.text())
def test_no_text_breaks_the_comparison(text: str) -> None:
    parse_caption(f"I see {text}")
    assert is_right(text, text, caption=True)
    assert is_right(text, text, caption=False)


def test_declining_is_told_by_how_the_answer_begins() -> None:
    refusal = "I can only talk about simple drawn scenes. Load a larger model."
    assert is_declined(refusal)
    assert not is_declined(f"No. {refusal}")
    assert is_right("i can only talk about simple drawn scenes", refusal, caption=False)
    assert not is_right("It is red.", refusal, caption=False)


def test_the_most_frequent_answer_is_counted_within_its_group() -> None:
    yes_no = [("is_there", "yes")] * 3 + [("is_there", "no")] * 2
    colours = [("colour", "red"), ("colour", "red"), ("colour", "blue")]
    assert most_frequent(yes_no) == 3 / 5
    assert most_frequent(yes_no + colours) == 5 / 8
    assert most_frequent([]) == 0
