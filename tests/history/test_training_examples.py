"""What can be learned from a history: never what the person did not approve."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from mmchat.history import History, Message, TrainingExample
from tests.history.trees import Step, grow, steps


def talk(history: History, *said: str, pictures: dict[int, int] | None = None) -> list[int]:
    """A conversation of questions and answers in turn; `pictures` says how many a question has."""
    conversation = history.new_conversation(system="Be brief.").id
    ids = []
    for number, text in enumerate(said):
        images = [
            history.add_image(
                f"{text}{n}".encode(), mime="image/png", width=1, height=1, name=f"{n}.png"
            ).sha256
            for n in range((pictures or {}).get(number, 0))
        ]
        role = "assistant" if number % 2 else "user"
        ids.append(history.add_message(conversation, role, text, images=images).id)
    return ids


def texts(example: TrainingExample) -> list[str]:
    return [message.text for message in example.messages]


def test_good_answers_and_corrections_are_lessons_with_their_context(history: History) -> None:
    first, one, second, two = talk(history, "a?", "A", "b?", "B")
    history.rate(one, "good")
    corrected = history.correct(two, "C")
    good, better = history.training_examples()
    assert (good.kind, texts(good), good.is_complete) == ("good", ["a?", "A"], True)
    assert (better.kind, texts(better)) == ("corrected", ["a?", "A", "b?", "C"])
    assert [m.id for m in better.messages] == [first, one, second, corrected.id]
    assert better.conversation.system == "Be brief."
    assert (good.when, better.when) == (history.message(one).rated, corrected.created)


def test_the_last_word_counts(history: History) -> None:
    _, answer = talk(history, "a?", "A")
    history.rate(answer, "good")
    one = history.correct(answer, "B").id
    assert [texts(example) for example in history.training_examples()] == [["a?", "B"]]
    two = history.correct(one, "C").id
    three = history.correct(answer, "D").id
    assert [example.answer.text for example in history.training_examples()] == ["D"]
    history.rate(three, "bad")
    assert [example.answer.text for example in history.training_examples()] == ["C"]
    history.rate(two, "bad")
    assert [example.answer.text for example in history.training_examples()] == ["B"]
    history.rate(one, "bad")
    (example,) = history.training_examples()
    assert (example.kind, example.answer.id) == ("good", answer)
    history.rate(answer, None)
    assert history.training_examples() == []


def test_a_correction_stands_in_the_place_of_what_it_corrects(history: History) -> None:
    _, answer, _, last = talk(history, "a?", "wrong", "b?", "B")
    history.rate(last, "good")
    history.rate(answer, "bad")
    corrected = history.correct(answer, "right")
    under, other = history.training_examples()
    assert texts(under) == ["a?", "right", "b?", "B"]
    assert texts(other) == ["a?", "right"]
    history.rate(corrected.id, "bad")
    (example,) = history.training_examples()
    assert texts(example) == ["a?", "b?", "B"]


@pytest.mark.parametrize(
    ("pictures", "learned"),
    [
        ({0: 1}, ["a?", "b?", "B", "c?", "C"]),  # b? may speak of the picture of a?
        ({0: 1, 2: 1}, ["b?", "B", "c?", "C"]),  # another picture: another matter
        ({}, ["a?", "b?", "B", "c?", "C"]),
        ({0: 1, 4: 2}, ["a?", "b?", "B", "c?", "C"]),
    ],
)
def test_a_bad_answer_is_in_no_context(
    history: History, pictures: dict[int, int], learned: list[str]
) -> None:
    _, bad, _, _, _, good = talk(history, "a?", "A", "b?", "B", "c?", "C", pictures=pictures)
    history.rate(bad, "bad")
    history.rate(good, "good")
    (example,) = history.training_examples()
    assert texts(example) == learned


def test_filters(history: History) -> None:
    ids = [talk(history, f"{n}?", f"answer {n}") for n in range(3)]
    conversations = [history.message(question).conversation_id for question, _ in ids]
    for _, answer in ids:
        history.rate(answer, "good")
    corrected = history.correct(ids[2][1], "better")
    history.tag(conversations[0], "birds")
    history.tag(conversations[1], "kites")

    def found(**filters: object) -> list[str]:
        return [example.answer.text for example in history.training_examples(**filters)]  # type: ignore[arg-type]

    assert found() == ["answer 0", "answer 1", "better"]
    assert found(ratings=["good"]) == ["answer 0", "answer 1"]
    assert found(ratings=["corrected"]) == ["better"]
    assert found(ratings=[]) == []
    assert found(conversations=conversations[1:]) == ["answer 1", "better"]
    assert found(tags=["#Birds", "absent"]) == ["answer 0"]
    assert found(tags=["birds", "kites"]) == ["answer 0", "answer 1"]
    rated = history.message(ids[1][1]).rated
    assert rated is not None
    assert found(since=rated) == ["answer 1", "better"]
    assert found(until=rated) == ["answer 0"]
    assert found(since=corrected.created, ratings=["good"]) == []
    history.rate(corrected.id, "good")
    assert found(ratings=["good"]) == ["answer 0", "answer 1", "better"]


def test_a_correction_that_is_rated_later_counts_from_then_on(history: History) -> None:
    _, answer = talk(history, "a?", "A")
    corrected = history.correct(answer, "B")
    history.rate(corrected.id, "good")
    rated = history.message(corrected.id).rated
    assert rated is not None and rated > corrected.created
    (example,) = history.training_examples(since=rated)
    assert (example.when, example.answer.text) == (rated, "B")
    assert history.training_examples(until=rated) == []


def test_an_answer_that_was_cut_is_not_whole(history: History) -> None:
    question, _ = talk(history, "a?", "A")
    conversation = history.message(question).conversation_id
    for state in ("stopped", "length", "failed", "interrupted", "complete"):
        text = "" if state == "complete" else "some words"
        answer = history.add_message(
            conversation, "assistant", text, parent_id=question, state=state
        )
        history.rate(answer.id, "good")
    assert [(one.answer.state, one.is_complete) for one in history.training_examples()] == [
        ("stopped", True),
        ("length", False),
        ("failed", False),
        ("interrupted", False),
        ("complete", False),
    ]


@pytest.fixture(scope="module")
def grown() -> Iterator[History]:
    """One file for all examples, each of which has a conversation of its own."""
    with tempfile.TemporaryDirectory() as folder, History.open(Path(folder) / "h.db") as history:
        yield history


def root(message: Message, by_id: dict[int, Message]) -> int:
    while message.corrects is not None:
        message = by_id[message.corrects]
    return message.id


def last_word(message: Message, messages: list[Message]) -> Message:
    """Of an answer and its corrections the one that counts, read off slowly."""
    by_id = {one.id: one for one in messages}
    of_it = [one for one in messages if root(one, by_id) == root(message, by_id)]
    fine = [one for one in of_it if one.corrects is not None and one.rating != "bad"]
    return max(fine, key=lambda one: one.id) if fine else by_id[root(message, by_id)]


@settings(deadline=None)
@given(steps)
def test_lessons_of_random_trees(grown: History, todo: list[Step]) -> None:
    conversation = grown.new_conversation().id
    messages = grow(grown, conversation, todo)
    answers = [m for m in messages if m.role == "assistant"]
    wanted = {
        m.id
        for m in answers
        if last_word(m, messages) == m
        and m.rating != "bad"
        and (m.corrects is not None or m.rating == "good")
    }
    examples = grown.training_examples(conversations=[conversation])
    assert [example.answer.id for example in examples] == sorted(wanted)
    for example in examples:
        assert example.answer.rating != "bad"
        assert example.kind == ("good" if example.answer.corrects is None else "corrected")
        assert not any(m.rating == "bad" for m in example.messages)
        path = grown.path_to(example.answer.id)
        meant = [last_word(m, messages) if m.role == "assistant" else m for m in path]
        if not any(m.rating == "bad" for m in meant):
            assert list(example.messages) == meant
        if meant == path and not any(m.rating == "bad" for m in path):
            assert list(example.messages) == path
        # Only bad answers are missing, or all up to one of them, before a picture of its own.
        kept = {m.id for m in example.messages}
        assert list(example.messages) == [m for m in meant if m.id in kept]
        first = meant.index(example.messages[0])
        assert all(m.rating == "bad" for m in meant[first:] if m.id not in kept)
        before = [m for m in meant[:first] if m.rating != "bad"]
        if before:
            assert meant[first - 1].rating == "bad"
            assert example.messages[0].images


@settings(deadline=None)
@given(steps)
def test_dates_part_the_lessons(grown: History, todo: list[Step]) -> None:
    conversation = grown.new_conversation().id
    grow(grown, conversation, todo)
    every = grown.training_examples(conversations=[conversation])
    for example in every:
        after = grown.training_examples(conversations=[conversation], since=example.when)
        before = grown.training_examples(conversations=[conversation], until=example.when)
        assert example in after and example not in before
        assert sorted(m.answer.id for m in (*before, *after)) == [m.answer.id for m in every]
