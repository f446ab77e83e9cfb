"""The grader of the built-in model: captions by what they describe, and refusals."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.answer_match import normalize
from mmchat.evaluation.graders import find_grader, grade
from mmchat.evaluation.questions import Question
from mmchat.settings import builtin_adapters

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
SCENES: Any = find_grader("scenes")


def parse_caption(text: str) -> Counter[tuple[str, ...]] | None:
    found: Counter[tuple[str, ...]] | None = SCENES.parse_caption(normalize(text))
    return found


def graded(answer: str, reference: str, caption: bool) -> Any:
    question = Question("1", "caption" if caption else "colour", [], reference)
    return grade(question, answer, SCENES)


def is_right(answer: str, reference: str, caption: bool) -> bool:
    return bool(graded(answer, reference, caption).correct)


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
        (
            "I see a large red circle, a small blue square and two small green stars.",
            {
                ("large", "red", "circle"): 1,
                ("small", "blue", "square"): 1,
                ("small", "green", "star"): 2,
            },
        ),
        ("I see nothing but an empty background.", {}),
    ],
)
def test_captions_are_parsed(said: str, wanted: dict[tuple[str, ...], int]) -> None:
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
def test_other_text_is_not_parsed(said: str) -> None:
    assert parse_caption(said) is None


def test_a_caption_is_right_in_any_order_and_wrong_by_one_item() -> None:
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
    without_writing = graded("I see two large blue rings and a small red star.", wanted, True)
    assert (without_writing.correct, without_writing.objects_correct) == (False, True)
    assert not graded('I see two large blue rings and the word "GO".', wanted, True).objects_correct


def test_a_reference_in_free_words_is_compared_as_text() -> None:
    assert is_right("a dog on  a beach", "A dog on a beach.", caption=True)
    assert graded("a dog", "A dog on a beach.", caption=True).objects_correct is None
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
def test_written_captions_are_parsed_back(
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
def test_any_text_can_be_compared(text: str) -> None:
    parse_caption(f"I see {text}")
    assert is_right(text, text, caption=True)
    assert is_right(text, text, caption=False)


def test_an_answer_declines_if_it_begins_as_the_refusal() -> None:
    refusal = "I can only talk about simple drawn scenes. Load a larger model."
    for caption in (False, True):
        answer = graded("i can only talk about simple drawn scenes", refusal, caption)
        assert (answer.correct, answer.declined, answer.should_decline) == (True, True, True)
        answer = graded("It is red.", refusal, caption)
        assert (answer.correct, answer.declined, answer.should_decline) == (False, False, True)
        answer = graded(f"No. {refusal}", "It is red.", caption)
        assert (answer.correct, answer.declined, answer.should_decline) == (False, False, False)


def test_zero_of_an_object_means_none() -> None:
    assert is_right("I see 0 red stars.", "I see nothing but an empty background.", caption=True)


def test_a_grader_is_found_by_the_name_or_the_folder_of_a_built_in_base(tmp_path: Path) -> None:
    assert find_grader(str(builtin_adapters() / "scenes")) is SCENES
    (tmp_path / "grader.py").write_text("raise AssertionError")
    others = ("", ".", "digits", "..", "scenes/..", str(tmp_path), "a\0b", "x" * 5000)
    assert [name for name in others if find_grader(name)] == []
