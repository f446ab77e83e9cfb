"""Conversations, the tree of messages, pictures: through a real file."""

import sqlite3
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from mmchat.errors import HistoryError
from mmchat.history import History, MissingError, Origin, StoredImage
from mmchat.history.database import BUSY_SECONDS


def add_picture(history: History, data: bytes = b"bytes", name: str = "kite.png") -> StoredImage:
    return history.add_image(data, mime="image/png", width=3, height=2, name=name)


def test_a_conversation_is_there_tomorrow(path: Path) -> None:
    with History.open(path) as today:
        conversation = today.new_conversation(system="Be brief.")
        picture = add_picture(today)
        asked = today.add_message(
            conversation.id, "user", "What bird is [1]?", images=[picture.sha256]
        )
        origin = Origin("scenes", parameters={"seed": 7}, prompt_tokens=60, decode_ms=12.5)
        today.add_message(conversation.id, "assistant", "A red kite.", origin=origin)
    with History.open(path) as tomorrow:
        found = tomorrow.latest()
        assert found is not None
        assert (found.id, found.system, found.messages) == (conversation.id, "Be brief.", 2)
        assert (found.title, found.last_text) == ("What bird is [1]?", "A red kite.")
        question, answer = tomorrow.branch(found.id)
        assert question == asked
        assert question.images == (picture,)
        assert tomorrow.image_data(picture.sha256) == b"bytes"
        assert (answer.parent_id, answer.origin, answer.state) == (asked.id, origin, "complete")


def test_a_number_that_no_history_can_hold_is_told(history: History) -> None:
    for number in (2**63, -(2**70)):
        with pytest.raises(HistoryError, match="nothing with this number"):
            history.conversation(number)
        with pytest.raises(HistoryError, match="nothing with this number"):
            history.message(number)
    assert history.conversations() == []


def test_regenerate_and_edit_make_siblings_and_nothing_is_overwritten(history: History) -> None:
    conversation = history.new_conversation().id
    asked = history.add_message(conversation, "user", "one?")
    answers = [
        history.add_message(conversation, "assistant", f"answer {n}", parent_id=asked.id)
        for n in range(3)
    ]
    follow_up = history.add_message(conversation, "user", "and?", parent_id=answers[1].id)
    last = history.add_message(conversation, "assistant", "so")
    edited = history.add_message(conversation, "user", "two?", parent_id=None)

    assert [m.id for m in history.branch(conversation)] == [edited.id]
    assert (edited.sibling, edited.siblings) == (2, 2)
    assert [m.id for m in history.siblings(edited.id)] == [asked.id, edited.id]
    assert [m.text for m in history.siblings(answers[0].id)] == ["answer 0", "answer 1", "answer 2"]

    assert history.set_head(conversation, answers[1].id).head_id == last.id
    shown = history.branch(conversation)
    assert [m.id for m in shown] == [asked.id, answers[1].id, follow_up.id, last.id]
    assert [(m.sibling, m.siblings) for m in shown] == [(1, 2), (2, 3), (1, 1), (1, 1)]
    history.set_head(conversation, answers[2].id)
    assert [m.id for m in history.branch(conversation)] == [asked.id, answers[2].id]


def test_conversations_come_newest_first_and_page_by_page(history: History) -> None:
    ids = [history.new_conversation(f"c{n}").id for n in range(5)]
    history.add_message(ids[1], "user", "newest now")
    order = [ids[1], ids[4], ids[3], ids[2], ids[0]]
    first = history.conversations(limit=2)
    rest = history.conversations(before=first[-1].updated)
    assert [c.id for c in first + rest] == order


def test_an_empty_history(history: History) -> None:
    assert history.latest() is None
    assert history.conversations() == []
    assert history.search("anything") == []
    assert history.branch(history.new_conversation().id) == []


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("  What is\n\tthis?  ", "What is this?"),
        ("x" * 100, "x" * 60 + "…"),
        ("a word " * 20, "a word " * 8 + "a…"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_the_first_text_names_a_conversation(history: History, text: str, title: str) -> None:
    conversation = history.new_conversation().id
    history.add_message(conversation, "user", text)
    assert history.conversation(conversation).title == title


def test_a_given_title_stays_and_the_second_text_names_after_a_lone_picture(
    history: History,
) -> None:
    named = history.new_conversation("Mine").id
    history.add_message(named, "user", "hello")
    assert history.conversation(named).title == "Mine"
    assert history.rename(named, "Other").title == "Other"
    assert history.set_system(named, "Short.").system == "Short."
    lone = history.new_conversation().id
    history.add_message(lone, "user", "", images=[add_picture(history).sha256])
    history.add_message(lone, "user", "what is it?")
    assert history.conversation(lone).title == "what is it?"


def test_pictures_are_kept_once_and_each_message_keeps_its_name_for_them(history: History) -> None:
    first, second = history.new_conversation().id, history.new_conversation().id
    one = add_picture(history, name="one.png")
    message = history.add_message(first, "user", "a", images=[one.sha256, one.sha256])
    two = add_picture(history, name="two.png")
    assert two.sha256 == one.sha256
    other = history.add_message(second, "user", "b", images=[two.sha256])
    assert [i.name for i in history.message(message.id).images] == ["one.png", "one.png"]
    assert [i.name for i in history.message(other.id).images] == ["two.png"]
    assert history.stats()["images"] == 1


def test_deleting_removes_messages_and_pictures_that_nobody_else_has(history: History) -> None:
    gone, kept = history.new_conversation().id, history.new_conversation().id
    shared, own = add_picture(history, b"shared"), add_picture(history, b"own")
    pending = add_picture(history, b"pending")
    message = history.add_message(
        gone, "user", "kingfisher 東京", images=[shared.sha256, own.sha256, pending.sha256]
    )
    history.add_message(kept, "user", "heron", images=[shared.sha256])
    add_picture(history, b"pending")  # added again: another window is about to send it
    history.delete(gone)
    assert [c.id for c in history.conversations()] == [kept]
    assert history.search("kingfisher") == history.search("東京") == []
    assert history.image_data(shared.sha256) == b"shared"
    assert history.image_data(pending.sha256) == b"pending"
    with pytest.raises(HistoryError, match="no picture"):
        history.image_data(own.sha256)
    for ask in (history.conversation, history.branch, history.delete):
        with pytest.raises(HistoryError, match=f"no conversation {gone}"):
            ask(gone)
    with pytest.raises(HistoryError, match=f"no message {message.id}"):
        history.message(message.id)
    assert history.new_conversation().id > kept  # no id is used twice


def test_a_long_conversation_is_read_and_deleted(history: History) -> None:
    """Longer than SQLite nests triggers (1,000): deletion must not cascade along the chain."""
    conversation = history.new_conversation().id
    for n in range(1_200):
        history.add_message(conversation, "user", str(n))
    assert [m.text for m in history.branch(conversation)] == [str(n) for n in range(1_200)]
    history.delete(conversation)
    assert history.stats()["messages"] == 0


def test_deleting_gives_the_space_back(history: History, path: Path) -> None:
    conversation = history.new_conversation().id
    picture = add_picture(history, bytes(3_000_000))
    history.add_message(conversation, "user", "", images=[picture.sha256])
    history.delete(conversation)
    history.close()
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("text", ["a\0b 東\0京", "\x1b]52;c;x\x07", "é" * 10, "🐦", "‮abc"])
def test_any_text_comes_back_as_it_was(history: History, text: str) -> None:
    conversation = history.new_conversation(text, system=text)
    assert (conversation.title, conversation.system) == (text, text)
    stored = history.add_message(conversation.id, "user", text)
    assert history.message(stored.id).text == text
    history.delete(conversation.id)


def test_surrogates_become_the_replacement_character(history: History) -> None:
    conversation = history.new_conversation("\ud800", system="\udfff")
    assert (conversation.title, conversation.system) == ("\ufffd", "\ufffd")
    picture = add_picture(history, name="\udce4.png")
    origin = Origin("\ud800", parameters={"stop": "\ud800"})
    message = history.add_message(
        conversation.id, "user", "a\ud800b", images=[picture.sha256], origin=origin
    )
    assert message.text == "a\ufffdb"
    assert message.images[0].name == "\ufffd.png"
    assert message.origin is not None
    assert message.origin.model == "\ufffd"
    with pytest.raises(HistoryError, match="no picture"):
        history.image_data("\ud800")


def test_ten_megabytes_of_text_are_stored_and_found(history: History) -> None:
    conversation = history.new_conversation().id
    text = "word " * 1_000_000 + "a" * 5_000_000 + " kingfisher"
    message = history.add_message(conversation, "user", text)
    assert history.message(message.id).text == text
    (hit,) = history.search("kingfisher")
    assert len(hit.snippet) < 300
    (hit,) = history.search("aaa")
    assert len(hit.snippet) < 300


def test_wrong_parents_and_pictures_are_refused_and_leave_nothing(history: History) -> None:
    one, other = history.new_conversation().id, history.new_conversation().id
    foreign = history.add_message(other, "user", "x").id
    with pytest.raises(HistoryError, match=f"no message {foreign} in conversation {one}"):
        history.add_message(one, "user", "y", parent_id=foreign)
    with pytest.raises(HistoryError, match=f"no message {foreign} in conversation {one}"):
        history.set_head(one, foreign)
    with pytest.raises(HistoryError, match="no picture"):
        history.add_message(one, "user", "y", images=["0" * 64])
    with pytest.raises(HistoryError, match="no conversation 999"):
        history.add_message(999, "user", "y")
    assert history.branch(one) == []


def test_threads_take_turns(history: History) -> None:
    conversation = history.new_conversation().id

    def write(name: int) -> None:
        answer = history.begin_answer(conversation, parent_id=None, origin=Origin("m"))
        for n in range(40):
            answer.append(f"{name}.{n} ")
            history.branch(conversation)
        answer.finish()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = history.conversation(conversation).head_id
    assert head is not None
    texts = {m.text for m in history.siblings(head)}
    assert texts == {"".join(f"{name}.{n} " for n in range(40)) for name in range(4)}


def test_stats(history: History) -> None:
    conversation = history.new_conversation().id
    history.add_message(conversation, "user", "a", images=[add_picture(history).sha256])
    history.add_message(conversation, "assistant", "b", origin=Origin("scenes"))
    stats = history.stats()
    assert (stats["conversations"], stats["messages"], stats["answers"]) == (1, 2, 1)
    assert (stats["images"], stats["image_bytes"]) == (1, 5)
    assert stats["models"] == {"scenes": 1}


def test_a_question_is_kept_with_its_answer_or_not_at_all(history: History) -> None:
    picture = StoredImage(sha256(b"red").hexdigest(), "image/png", 3, 2, 3, "red.png")
    said, answer = history.say(
        None, "what is it?", images=[(picture, b"red")], origin=Origin("m"), system="Be brief."
    )
    conversation = history.conversation(said.conversation_id)
    assert (conversation.title, conversation.system) == ("what is it?", "Be brief.")
    assert said.images == (picture,)
    assert history.image_data(picture.sha256) == b"red"
    assert [one.id for one in history.branch(conversation.id)] == [said.id, answer.id]
    assert history.message(answer.id).state == "streaming"
    twice, _ = history.say(None, "and here?", images=[(picture, b"red")], origin=Origin("m"))
    history.delete(said.conversation_id)
    assert history.image_data(picture.sha256) == b"red"
    history.delete(twice.conversation_id)
    assert history.stats()["images"] == 0
    said, answer = history.say(None, "what is it?", images=[(picture, b"red")], origin=Origin("m"))
    conversation = history.conversation(said.conversation_id)
    before = history.stats()
    with history._database.write() as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON origin BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    for conversation_id in (None, conversation.id):
        with pytest.raises(sqlite3.IntegrityError, match="full"):
            history.say(conversation_id, "and?", images=[(picture, b"r")], origin=Origin("m"))
    after = history.stats()
    assert (after["messages"], after["conversations"]) == (before["messages"], 1)
    assert history.conversation(conversation.id).head_id == answer.id


def test_what_was_deleted_is_missing(history: History) -> None:
    """Told apart from a file that cannot be read."""
    said, answer = history.say(None, "hello", origin=Origin("m"))
    history.delete(said.conversation_id)
    for ask in (
        lambda: history.conversation(said.conversation_id),
        lambda: history.message(said.id),
        lambda: history.set_head(said.conversation_id, said.id),
        answer.finish,
    ):
        with pytest.raises(MissingError):
            ask()


def test_reading_waits_for_nobody_who_writes(history: History, path: Path) -> None:
    """A thread of ours that waits for another program's lock holds up no reader."""
    conversation = history.new_conversation("here").id
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits, read = threading.Event(), threading.Event()

    def rename() -> None:
        waits.set()
        history.rename(conversation, "renamed")

    writer = threading.Thread(target=rename)
    writer.start()
    waits.wait()
    turn = history._database._writer._lock
    while turn.acquire(blocking=False):  # until the writer has it
        turn.release()

    def look() -> None:
        assert history.conversation(conversation).title == "here"
        read.set()

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert read.wait(BUSY_SECONDS / 2)
        assert writer.is_alive()
    finally:
        other.execute("ROLLBACK")
        other.close()
        writer.join()
        reader.join()
    assert history.conversation(conversation).title == "renamed"


def test_a_delete_that_succeeded_is_not_told_as_failed(
    history: History, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmchat.history.database.BUSY_SECONDS", 0.05)
    conversation = history.new_conversation().id
    picture = add_picture(history, bytes(100_000))
    history.add_message(conversation, "user", "", images=[picture.sha256])
    with History.open(path) as ours:
        shrink = ours._database.shrink
        other = sqlite3.connect(path, isolation_level=None)

        def locked() -> None:
            other.execute("BEGIN IMMEDIATE")
            try:
                shrink()
            finally:
                other.execute("ROLLBACK")

        monkeypatch.setattr(ours._database, "shrink", locked)
        ours.delete(conversation)
        other.close()
    assert history.conversations() == []
