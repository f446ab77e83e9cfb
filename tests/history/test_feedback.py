"""Ratings, corrections and tags: through a real file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.errors import HistoryError
from mmchat.history import History, MissingError, Origin
from mmchat.history.feedback import tag_name
from tests.history.test_crash import whole


def asked(history: History, *answers: str) -> tuple[int, list[int]]:
    """A conversation with one question and its answers: (its id, theirs)."""
    conversation = history.new_conversation().id
    question = history.add_message(conversation, "user", "what bird is it?").id
    return conversation, [
        history.add_message(
            conversation, "assistant", text, parent_id=question, origin=Origin("scenes")
        ).id
        for text in answers
    ]


def test_a_rating_is_there_tomorrow_and_can_be_taken_back(path: Path) -> None:
    with History.open(path) as today:
        conversation, (one, two) = asked(today, "a kite", "a dog")
        assert today.message(one).rating is None
        before = today.conversation(conversation)
        assert today.rate(one, "bad").rating == "bad"
        good = today.rate(one, "good")
        assert (good.rating, good.id, good.text) == ("good", one, "a kite")
        assert good.rated is not None
        today.rate(two, "bad")
        assert today.conversation(conversation) == before  # it moves no conversation to the top
    with History.open(path) as tomorrow:
        assert tomorrow.message(one) == good
        assert [m.rating for m in tomorrow.branch(conversation)] == [None, "bad"]
        assert tomorrow.message(two).rating == "bad"
        assert tomorrow.rate(two, None).rating is None
        assert tomorrow.rate(two, None).rated is None
        assert tomorrow.message(one) == good
        assert tomorrow.message(two).rating is None


def test_a_correction_is_a_sibling_of_the_persons_own(history: History) -> None:
    conversation, (answer,) = asked(history, "A red kite.")
    history.rate(answer, "bad")
    before = history.message(answer)
    corrected = history.correct(answer, "A black kite.\n\n")
    assert (corrected.text, corrected.role, corrected.state) == (
        "A black kite.",
        "assistant",
        "complete",
    )
    assert (corrected.corrects, corrected.by_person, corrected.origin) == (answer, True, None)
    assert (corrected.rating, corrected.sibling, corrected.siblings) == (None, 2, 2)
    question, shown = history.branch(conversation)
    assert shown == corrected
    assert (question.by_person, before.by_person) == (True, False)
    kept = history.message(answer)
    assert (kept.text, kept.rating, kept.origin) == ("A red kite.", "bad", before.origin)
    assert history.search("black kite")[0].message_id == corrected.id

    again = history.correct(corrected.id, "A kite of the black kind.")
    assert (again.corrects, again.sibling, again.parent_id) == (corrected.id, 3, question.id)
    assert history.message(corrected.id).text == "A black kite."

    history.set_head(conversation, answer)
    follow_up = history.add_message(conversation, "user", "sure?")
    assert [m.id for m in history.path_to(follow_up.id)] == [question.id, answer, follow_up.id]
    history.set_head(conversation, again.id)
    assert [m.id for m in history.branch(conversation)] == [question.id, again.id]
    assert [m.id for m in history.path_to(follow_up.id)] == [question.id, answer, follow_up.id]


@pytest.mark.parametrize("text", ["A kite.", "A kite.\n", "\nA kite. \n\n"])
def test_the_same_text_corrects_nothing(history: History, text: str) -> None:
    _, (answer,) = asked(history, "A kite.")
    assert history.correct(answer, text) == history.message(answer)
    assert history.stats()["messages"] == 2


def test_what_cannot_be_rated_or_corrected_is_told(history: History) -> None:
    conversation, (answer,) = asked(history, "A kite.")
    for text in ("", " \n\t", "\r\n"):
        with pytest.raises(HistoryError, match="The correction is empty"):
            history.correct(answer, text)
    question = history.branch(conversation)[0].id
    with pytest.raises(HistoryError, match=f"Message {question} is your own"):
        history.rate(question, "good")
    with pytest.raises(HistoryError, match=f"Message {question} is your own"):
        history.correct(question, "x")
    growing = history.begin_answer(conversation, parent_id=question, origin=Origin("m"))
    growing.append("half")
    for ask in (lambda: history.rate(growing.id, "bad"), lambda: history.correct(growing.id, "x")):
        with pytest.raises(HistoryError, match="still being written"):
            ask()
    growing.finish("stopped")
    assert history.rate(growing.id, "bad").rating == "bad"
    for state in ("failed", "interrupted", "length"):
        message = history.add_message(
            conversation, "assistant", "", parent_id=question, state=state, error="no"
        )
        assert history.rate(message.id, "bad").state == state
        assert history.correct(message.id, f"not {state}").corrects == message.id
    with pytest.raises(MissingError):
        history.rate(999, "good")
    with pytest.raises(MissingError):
        history.correct(999, "x")


def test_tags(history: History) -> None:
    one, two = history.new_conversation("one").id, history.new_conversation("two").id
    assert history.conversation(one).tags == ()
    history.tag(one, "#Kites")
    assert history.tag(one, "kites").tags == ("kites",)
    history.tag(one, "birds")
    assert history.tag(two, "鳥").tags == ("鳥",)
    history.tag(two, "BIRDS")
    assert history.tags() == {"birds": 2, "kites": 1, "鳥": 1}
    assert [c.tags for c in history.conversations()] == [("birds", "鳥"), ("birds", "kites")]
    assert [c.id for c in history.conversations(tag="Kites")] == [one]
    assert [c.id for c in history.conversations(tag="birds", limit=1)] == [two]
    assert history.conversations(tag="absent") == []
    assert history.untag(one, "#KITES").tags == ("birds",)
    assert history.untag(one, "kites").tags == ("birds",)
    assert history.set_tags(one, ["x", "#X", "y"]).tags == ("x", "y")
    with pytest.raises(HistoryError, match="one word"):
        history.set_tags(one, ["z", "two words"])
    assert history.conversation(one).tags == ("x", "y")
    history.delete(one)
    assert history.tags() == {"birds": 1, "鳥": 1}
    for ask in (history.tag, history.untag):
        with pytest.raises(MissingError):
            ask(one, "x")


@pytest.mark.parametrize("name", ["", " ", "#", "a b", "a,b", "a;b", "x" * 41, "\u200b", "\u200d"])
def test_what_is_no_tag_is_told(history: History, name: str) -> None:
    conversation = history.new_conversation().id
    with pytest.raises(HistoryError, match="A tag is one word"):
        history.tag(conversation, name)


@given(st.text())
def test_a_tag_is_one_word_of_the_same_form(name: str) -> None:
    try:
        word = tag_name(name)
    except HistoryError as error:
        assert "\n" not in str(error)
        return
    assert len(word.split()) == 1
    assert tag_name(word) == word == word.lower()


def test_deleting_takes_opinions_along(history: History, path: Path) -> None:
    gone, (answer,) = asked(history, "A kite.")
    kept, (other,) = asked(history, "A dog.")
    for one in (answer, other):
        history.rate(one, "good")
        history.correct(history.correct(one, "first").id, "second")
    history.tag(gone, "birds")
    history.delete(gone)
    stats = history.stats()
    assert (stats["good"], stats["bad"], stats["corrected"], stats["tags"]) == (1, 0, 2, {})
    assert history.training_examples()[0].conversation.id == kept
    history.close()
    whole(path)


def test_an_answer_whose_writer_died_can_be_rated_before_it_is_cleared(path: Path) -> None:
    with History.open(path) as ours:
        conversation, _ = asked(ours)
        answer = ours.begin_answer(conversation, origin=Origin("m"))
        answer.append("half a")
        assert ours._writer is not None
        ours._writer.release()  # as if its process had died
        ours._writer = None
        with History.open(path) as other:
            assert other.rate(answer.id, "bad").state == "interrupted"
            assert other.correct(answer.id, "half a kite").corrects == answer.id
