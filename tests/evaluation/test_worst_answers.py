"""The page of the worst answers: no right answers, no active content, pictures included."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.evaluation.questions import Message, Question, QuestionSet, read_questions
from mmchat.evaluation.results import EvaluationResult, make_result
from mmchat.evaluation.worst_answers import find_worst, same_characters, worst_page, worst_rows
from mmchat.images import parse_data_url
from tests.evaluation.folders import line, write
from tests.evaluation.test_results import SETUP, evaluated

HOSTILE = (
    "<script>alert(1)</script>\" onload='x' <img src=http://evil/a.png> \x1b]52;c;x\x07 & \u202e"
)


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(made: EvaluationResult) -> str:
    asked = QuestionSet("data", (), "", "", {}, {})
    return worst_page(find_worst(made), made, asked)


def check(page: str) -> Tags:
    found = Tags(page)
    assert not found.tags & {"script", "link", "iframe", "object", "base", "form", "a"}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    sources = [value or "" for name, value in found.attributes if name in ("src", "href")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return found


def test_the_least_similar_come_first_and_right_answers_are_left_out() -> None:
    made = evaluated([("red", "red"), ("a red star", "a red bar"), ("blue", "xyz"), ("b", "b.")])
    assert [one.answer.reference for one in find_worst(made)] == ["blue", "a red star"]
    assert len(find_worst(evaluated([("a", "b")] * 30))) == 10
    assert same_characters("Red!", "red") == 1 and same_characters("abc", "xyz") == 0


def test_order_is_by_words_then_characters_then_the_data() -> None:
    pairs = [("red star", "red dots"), ("redder", "red"), ("blue", "green"), ("blue", "green")]
    worst = find_worst(evaluated(pairs))
    assert [one.answer.id for one in worst] == ["2", "3", "1", "0"]
    assert (worst[-1].rouge_l, worst[2].rouge_l) == (0.5, 0)
    assert [one.answer.id for one in find_worst(evaluated(pairs), 1)] == ["2"]


@given(st.lists(st.tuples(st.text("ab ", max_size=6), st.text("ab ", max_size=6)), max_size=30))
def test_a_limit_keeps_the_first(pairs: list[tuple[str, str]]) -> None:
    made = evaluated(pairs or [("a", "b")])
    every = find_worst(made, 1000)
    assert len(every) == sum(not one.correct for one in made.answers)
    assert find_worst(made, 3) == every[:3]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    lines = [line("<b>1", HOSTILE, HOSTILE + "w", kind=HOSTILE, images=("a.png", "b.png"))]
    asked = read_questions(write(tmp_path, lines))
    made = make_result(SETUP, [(asked.questions[0], HOSTILE + "g")])
    page = worst_page(find_worst(made), made, asked)
    found = check(page)
    assert "<script>alert(1)</script>" in found.text
    assert "\x1b" not in page and "\u202e" not in page
    pictures = [value for name, value in found.attributes if name == "src" and value]
    assert len(pictures) == 2
    assert parse_data_url(pictures[0]).width == 2
    (row,) = worst_rows(find_worst(made))
    assert "\x1b" not in "".join(row) and all(len(one) <= 40 for one in row)


@given(st.text(), st.text(), st.text())
def test_any_text_stays_text(question: str, wanted: str, given_: str) -> None:
    asked = Question(question, wanted or "x", [Message("user", question)], wanted)
    made = make_result(SETUP, [(asked, given_)])
    check(page_of(made)).close()
    page_of(made).encode()


def test_the_page_has_a_dark_mode_and_loads_nothing() -> None:
    page = page_of(evaluated([("a", "b")]))
    assert "prefers-color-scheme: dark" in page and "default-src 'none'" in page
    assert not re.search(r"https?://", page)
    assert "No wrong answers" in page_of(evaluated([("a", "a")]))


def test_the_page_says_that_a_picture_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path, [line("1", "?", "x", images=("a.png",))])
    asked = read_questions(folder)
    made = make_result(SETUP, [(asked.questions[0], "y")])
    (folder / "a.png").unlink()
    assert "a picture that cannot be shown" in worst_page(find_worst(made), made, asked)


@pytest.mark.parametrize("size", [(2, 3), (3, 2)])
def test_grey_is_grey(size: tuple[int, int]) -> None:
    from mmchat.evaluation.questions import grey_png
    from mmchat.images import parse_picture

    picture = parse_picture(grey_png(*size))
    assert (picture.width, picture.height) == size
    assert picture.sha256 == hashlib.sha256(grey_png(*size)).hexdigest()
