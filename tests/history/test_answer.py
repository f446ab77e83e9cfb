"""An answer while it streams, seen by its writer and by others."""

from pathlib import Path

import pytest

from mmchat.errors import HistoryError
from mmchat.history import Answer, History, Origin


def begin(history: History) -> tuple[int, Answer]:
    conversation = history.new_conversation().id
    history.add_message(conversation, "user", "tell me")
    return conversation, history.begin_answer(conversation, origin=Origin("scenes"))


def test_others_see_it_grow_and_then_whole(history: History, path: Path) -> None:
    conversation, answer = begin(history)
    with History.open(path) as other:
        assert other.branch(conversation)[-1].text == ""
        for n, text in enumerate(["A red ", "", "kite", "\ud800東"]):
            answer.append(text)
            seen = other.message(answer.id)
            assert seen.text == "".join(["A red ", "", "kite", "\ufffd東"][: n + 1])
            assert seen.state == "streaming"
        assert other.conversation(conversation).last_text == "A red "
        assert other.search("kite") == []
        origin = Origin("scenes", completion_tokens=4, tokens_per_second=41.5)
        finished = answer.finish("length", origin=origin)
        assert other.message(answer.id) == finished
        assert (finished.state, finished.text) == ("length", "A red kite\ufffd東")
        assert finished.origin == origin
        assert [h.message_id for h in other.search("kite")] == [answer.id]
        assert [h.message_id for h in other.search("東")] == [answer.id]


def test_failed_keeps_what_was_written_and_the_sentence(history: History) -> None:
    _, answer = begin(history)
    answer.append("A red")
    message = answer.fail("The engine ended: see its log.")
    assert (message.state, message.text, message.error) == (
        "failed",
        "A red",
        "The engine ended: see its log.",
    )


def test_an_answer_ends_once(history: History) -> None:
    _, answer = begin(history)
    answer.append("x")
    answer.finish("stopped")
    for again in (lambda: answer.append("y"), answer.finish, lambda: answer.fail("z")):
        with pytest.raises(HistoryError, match="cannot be continued"):
            again()
    assert history.message(answer.id).text == "x"


def test_deleted_by_another_window_in_mid_answer(history: History, path: Path) -> None:
    conversation, answer = begin(history)
    answer.append("x")
    with History.open(path) as other:
        other.delete(conversation)
    with pytest.raises(HistoryError, match="deleted"):
        answer.append("y")
    with pytest.raises(HistoryError, match="deleted"):
        answer.finish()


def test_as_a_context_manager_it_always_ends(history: History) -> None:
    _, answer = begin(history)
    with pytest.raises(RuntimeError), answer:
        answer.append("x")
        raise RuntimeError("no engine")
    failed = history.message(answer.id)
    assert (failed.state, failed.error, failed.text) == ("failed", "no engine", "x")
    _, answer = begin(history)
    with answer:
        answer.append("x")
    assert history.message(answer.id).state == "stopped"
    _, answer = begin(history)
    with answer:
        answer.finish()
    assert history.message(answer.id).state == "complete"


def test_closing_interrupts_what_streams(path: Path) -> None:
    history = History.open(path)
    _, answer = begin(history)
    answer.append("half")
    history.close()
    with History.open(path) as later:
        message = later.message(answer.id)
    assert (message.state, message.text) == ("interrupted", "half")
    assert not list(path.parent.glob("*.writer-*"))


def test_another_window_that_opens_leaves_a_living_answer_alone(
    history: History, path: Path
) -> None:
    _, answer = begin(history)
    answer.append("still ")
    with History.open(path) as other:
        assert other.message(answer.id).state == "streaming"
    answer.append("here")
    assert answer.finish().text == "still here"
