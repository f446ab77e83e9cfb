"""One's own history as data: the same turns that the engine was asked with."""

import hashlib
import pickle
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings

from mmchat.chat.prompt import prompt_turns
from mmchat.data.from_history import read_history
from mmchat.data.snapshot import load_snapshot, save_snapshot
from mmchat.data.types import Example, Picture
from mmchat.errors import DataError, HistoryError
from mmchat.history import History, Message, Origin, StoredImage
from mmchat.history.turns import TOO_LONG
from mmchat.turns import ImagePart, Turn
from tests.history.trees import Step, grow, steps


@pytest.fixture
def history(home: Path) -> Iterator[History]:
    with History.open() as opened:
        yield opened


def image(data: bytes, name: str = "a.png") -> tuple[StoredImage, bytes]:
    return StoredImage(hashlib.sha256(data).hexdigest(), "image/png", 3, 2, len(data), name), data


def asked(history: History, message: Message) -> list[tuple[str, list[str]]]:
    """What the engine is asked with for this answer, pictures by their hashes."""
    assert message.parent_id is not None
    path = history.path_to(message.parent_id)
    system = history.conversation(message.conversation_id).system
    return [
        (turn.role, [p.sha256 if isinstance(p, ImagePart) else p for p in turn.parts])
        for turn in prompt_turns(path, system, history.image_data)
    ]


def learned(example: Example) -> list[tuple[str, list[str]]]:
    return [
        (turn.role, [p.sha256 if isinstance(p, Picture) else p for p in turn.parts])
        for turn in example.turns
    ]


def fill(history: History) -> tuple[int, int]:
    """Two questions about two pictures, the answers good and corrected: their ids."""
    said, growing = history.say(
        None,
        "is [2] left of [1]?",
        images=[image(b"red", "red.png"), image(b"blue", "blue.png")],
        origin=Origin("scenes"),
        system="Be brief.",
    )
    growing.append("Yes, it is.")
    first = growing.finish()
    history.rate(first.id, "good")
    _, growing = history.say(
        said.conversation_id, "and here?", images=[image(b"green")], origin=Origin("scenes")
    )
    growing.append("No.")
    corrected = history.correct(growing.finish().id, "Here too.")
    return first.id, corrected.id


def test_examples_are_what_was_asked_and_what_is_approved(history: History) -> None:
    first, corrected = fill(history)
    data = read_history(history)
    assert (data.format, data.source) == ("your own history", str(history.file))
    assert list(data.problems) == []
    good, better = data.examples
    assert good.turns[0] == Turn("system", ("Be brief.",))
    assert [p if isinstance(p, str) else p.name for p in good.turns[1].parts] == [
        "is ",
        "blue.png",
        " left of ",
        "red.png",
        "?",
    ]
    assert good.turns[2:] == (Turn("assistant", ("Yes, it is.",)),)
    assert [turn.text for turn in better.turns[2:]] == ["Yes, it is.", "and here?", "Here too."]
    assert [p.name for p in better.pictures] == ["blue.png", "red.png", "a.png"]
    assert (good.kind, better.kind) == ("good", "corrected")
    assert (good.only_last, better.only_last) == (True, True)
    assert (good.weight, better.weight) == (1.0, 1.0)
    assert good.place == f"conversation 1, message {first}"
    assert better.place == f"conversation 1, message {corrected}"
    for example, message_id in ((good, first), (better, corrected)):
        assert learned(example)[:-1] == asked(history, history.message(message_id))


@pytest.fixture(scope="module")
def grown() -> Iterator[History]:
    with tempfile.TemporaryDirectory() as folder, History.open(Path(folder) / "h.db") as history:
        yield history


@settings(deadline=None)
@given(steps)
def test_training_and_asking_never_differ(grown: History, todo: list[Step]) -> None:
    conversation = grown.new_conversation(system="Look closely.").id
    messages = grow(grown, conversation, todo)
    if not messages:
        return
    data = read_history(grown, conversations=[conversation])
    bad = {m.id for m in messages if m.rating == "bad"}
    corrected = {m.corrects for m in messages} | {m.id for m in messages if m.corrects}
    for example in data.examples:
        answer = grown.message(int(example.place.rpartition(" ")[2]))
        assert example.turns[-1] == Turn("assistant", (answer.text,))
        assert answer.id not in bad
        roles = [turn.role for turn in example.turns if turn.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        before = {m.id for m in grown.path_to(answer.id)[:-1]}
        if not before & (bad | corrected):
            assert learned(example)[:-1] == asked(grown, answer)


def test_what_had_no_room_is_left_out_as_when_asking(history: History) -> None:
    conversation = history.new_conversation().id
    history.add_message(conversation, "user", "too much")
    history.add_message(
        conversation,
        "assistant",
        "",
        state="failed",
        error="It is too long.",
        origin=Origin("scenes", parameters={TOO_LONG: True}),
    )
    history.add_message(conversation, "user", "less")
    answer = history.add_message(conversation, "assistant", "fine")
    history.rate(answer.id, "good")
    (example,) = read_history(history).examples
    assert learned(example) == [("user", ["less"]), ("assistant", ["fine"])]
    assert learned(example)[:-1] == asked(history, answer)


def test_pictures_are_read_when_they_are_asked_for_in_any_process(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(history)
    reads: list[str] = []
    image_data = History.image_data

    def counted(self: History, sha256: str) -> bytes:
        reads.append(sha256)
        return image_data(self, sha256)

    monkeypatch.setattr(History, "image_data", counted)
    data = read_history(history.file)
    assert reads == []
    pictures = data.examples[1].pictures
    assert [p.data for p in pickle.loads(pickle.dumps(pictures))] == [b"blue", b"red", b"green"]
    assert reads == [p.sha256 for p in pictures]
    save_snapshot(data, tmp_path / "kept")
    kept = load_snapshot(tmp_path / "kept")
    assert [learned(e) for e in kept.examples] == [learned(e) for e in data.examples]
    assert [e.only_last for e in kept.examples] == [True, True]
    assert kept.sha256 == data.sha256
    history.delete(1)
    with pytest.raises(DataError, match=r"The picture blue\.png cannot be read: .*no picture"):
        pictures[0].data  # noqa: B018
    history.close()
    history.file.unlink()
    with pytest.raises(
        DataError, match=r"The picture blue\.png cannot be read: .*does not exist any more"
    ):
        pictures[0].data  # noqa: B018
    assert not history.file.exists()
    assert kept.examples[1].pictures[0].data == b"blue"


def test_what_cannot_be_learned_from_is_told(history: History) -> None:
    conversation = history.new_conversation().id
    question = history.add_message(conversation, "user", "well?").id
    for state, text in (
        ("length", "and it goes on and"),
        ("interrupted", "and"),
        ("failed", "and"),
        ("complete", ""),
        ("stopped", "This will do."),
    ):
        message = history.add_message(
            conversation, "assistant", text, parent_id=question, state=state
        )
        history.rate(message.id, "good")
    lone = history.new_conversation().id
    history.rate(history.add_message(lone, "assistant", "Hello!").id, "good")
    cut = "The answer is not complete, because it {}: correct it."
    data = read_history(history)
    assert [example.turns[-1].text for example in data.examples] == ["This will do."]
    assert {problem.place: problem.why for problem in data.problems} == {
        f"conversation {conversation}, message 2": cut.format("was cut at the token limit"),
        f"conversation {conversation}, message 3": cut.format("was interrupted"),
        f"conversation {conversation}, message 4": cut.format("failed"),
        f"conversation {conversation}, message 5": "The answer is empty: correct it.",
        f"conversation {lone}, message 7": "There is no question before the answer.",
    }


def test_filters(history: History) -> None:
    first, corrected = fill(history)
    history.tag(1, "birds")
    places = {f"conversation 1, message {first}": "good"}
    places[f"conversation 1, message {corrected}"] = "corrected"

    def kinds(**filters: object) -> list[str]:
        return [places[e.place] for e in read_history(**filters).examples]  # type: ignore[arg-type]

    assert kinds() == ["good", "corrected"]
    assert kinds(ratings=("good",)) == ["good"]
    assert kinds(tags=["Birds"], conversations=[1]) == ["good", "corrected"]
    now = history.message(corrected).created
    today, yesterday = (f"{datetime.fromtimestamp(t):%Y-%m-%d}" for t in (now, now - 86_400))
    assert kinds(since=now) == ["corrected"]
    assert kinds(until=now) == ["good"]
    assert kinds(since=datetime.fromtimestamp(now + 1).isoformat()) == []
    assert len(kinds(since=datetime.fromtimestamp(now - 3600).isoformat())) == 2
    assert len(kinds(since=yesterday, until=today)) == 2
    assert kinds(until="2020-02-28") == kinds(since="9000-01-01") == []
    with pytest.raises(HistoryError, match="no conversation 7"):
        kinds(conversations=[7])
    with pytest.raises(DataError, match=r"tag kites: the tags are birds\."):
        kinds(tags=["birds", "kites"])
    with pytest.raises(
        DataError, match="bad is not a rating to train on: choose good or corrected"
    ):
        kinds(ratings=["bad"])
    for wrong in ("yesterday", "2026-13-01", "", "9999-12-31"):
        with pytest.raises(DataError, match="is not a date: write it like 2026-03-01"):
            kinds(until=wrong)


def test_an_empty_history_is_empty_data(home: Path) -> None:
    data = read_history()
    assert (list(data.examples), list(data.problems)) == ([], [])
    with pytest.raises(DataError, match="no conversation has a tag yet"):
        read_history(tags=["birds"])


def test_the_hash_is_of_texts_and_pictures(history: History) -> None:
    fill(history)
    before = read_history(history)
    assert read_history(history.file).sha256 == before.sha256
    assert read_history(history, ratings=["good"]).sha256 != before.sha256
    history.correct(int(before.examples[1].place.rpartition(" ")[2]), "Here not.")
    after = read_history(history)
    assert len(after.examples) == 2
    assert after.sha256 != before.sha256
