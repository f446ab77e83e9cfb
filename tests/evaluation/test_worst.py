"""The page of the worst answers: right ones left out, hostile text harmless, pictures inside."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.evaluation.questions import Message, Question, Questions, read_questions
from mmchat.evaluation.report import Report, make_report
from mmchat.evaluation.worst import find_worst, same_characters, worst_page, worst_rows
from mmchat.images import parse_data_url
from tests.evaluation.folders import line, write
from tests.evaluation.test_figures import SUBJECT, report

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


def page_of(made: Report) -> str:
    asked = Questions("data", (), "", "", {}, {})
    return worst_page(find_worst(made), made, asked)


def check(page: str) -> Tags:
    found = Tags(page)
    assert not found.tags & {"script", "link", "iframe", "object", "base", "form", "a"}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    sources = [value or "" for name, value in found.attributes if name in ("src", "href")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return found


def test_the_least_alike_come_first_and_right_ones_never() -> None:
    made = report([("red", "red"), ("a red star", "a red bar"), ("blue", "xyz"), ("b", "b.")])
    assert [one.outcome.wanted for one in find_worst(made)] == ["blue", "a red star"]
    assert len(find_worst(report([("a", "b")] * 30))) == 10
    assert same_characters("Red!", "red") == 1 and same_characters("abc", "xyz") == 0


def test_words_decide_before_characters_and_the_order_of_the_data_last() -> None:
    pairs = [("red star", "red dots"), ("redder", "red"), ("blue", "green"), ("blue", "green")]
    worst = find_worst(report(pairs))
    assert [one.outcome.id for one in worst] == ["2", "3", "1", "0"]
    assert (worst[-1].words, worst[2].words) == (0.5, 0)
    assert [one.outcome.id for one in find_worst(report(pairs), 1)] == ["2"]


@given(st.lists(st.tuples(st.text("ab ", max_size=6), st.text("ab ", max_size=6)), max_size=30))
def test_few_are_the_first_of_all(pairs: list[tuple[str, str]]) -> None:
    made = report(pairs or [("a", "b")])
    every = find_worst(made, 1000)
    assert len(every) == sum(not one.right for one in made.outcomes)
    assert find_worst(made, 3) == every[:3]


def test_hostile_text_is_text(tmp_path: Path) -> None:
    lines = [line("<b>1", HOSTILE, HOSTILE + "w", kind=HOSTILE, images=("a.png", "b.png"))]
    asked = read_questions(write(tmp_path, lines))
    made = make_report(SUBJECT, [(asked.questions[0], HOSTILE + "g")], 0, "")
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
def test_any_text_is_text(question: str, wanted: str, given_: str) -> None:
    asked = Question(question, wanted or "x", [Message("user", question)], wanted)
    made = make_report(SUBJECT, [(asked, given_)], 0, "")
    check(page_of(made)).close()
    page_of(made).encode()


def test_the_page_obeys_the_readers_light_and_allows_nothing_from_outside() -> None:
    page = page_of(report([("a", "b")]))
    assert "prefers-color-scheme: dark" in page and "default-src 'none'" in page
    assert not re.search(r"https?://", page)
    assert "No wrong answer" in page_of(report([("a", "a")]))


def test_a_picture_that_went_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, [line("1", "?", "x", images=("a.png",))])
    asked = read_questions(folder)
    made = make_report(SUBJECT, [(asked.questions[0], "y")], 0, "")
    (folder / "a.png").unlink()
    assert "a picture that cannot be shown" in worst_page(find_worst(made), made, asked)


@pytest.mark.parametrize("size", [(2, 3), (3, 2)])
def test_grey_is_grey(size: tuple[int, int]) -> None:
    from mmchat.evaluation.questions import grey
    from mmchat.images import parse_picture

    picture = parse_picture(grey(*size))
    assert (picture.width, picture.height) == size
    assert picture.sha256 == hashlib.sha256(grey(*size)).hexdigest()
