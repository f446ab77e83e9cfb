"""`mmchat history`, over a real file."""

import json

import pytest

from mmchat.history import History, Origin
from tests.cli.conftest import Run, sentence


@pytest.fixture
def ids() -> list[int]:
    """Two conversations: one with a picture and an answer, one with hostile text."""
    with History.open() as history:
        first = history.new_conversation(system="Be brief.")
        image = history.add_image(b"bytes", mime="image/png", width=3, height=2, name="kite.png")
        history.add_message(first.id, "user", "what bird is it?", images=[image.sha256])
        answer = history.begin_answer(first.id, origin=Origin(model="scenes"))
        answer.append("A red kite.\nSurely.")
        answer.finish("stopped")
        second = history.new_conversation()
        history.add_message(second.id, "user", "evil \x1b[31m\u202etitle\x9b2J")
    return [first.id, second.id]


def test_list(mmchat: Run, ids: list[int]) -> None:
    lines = mmchat("history", "list").stdout.splitlines()
    assert lines[0].split() == ["ID", "LAST", "MESSAGES", "TITLE"]
    assert lines[1].endswith("evil [31mtitle2J")
    assert lines[2].endswith("what bird is it?")
    assert len(mmchat("history", "list", "--limit", "1").stdout.splitlines()) == 2


def test_list_as_json_is_one_object_a_line_and_exact(mmchat: Run, ids: list[int]) -> None:
    text = mmchat("history", "list", "--json").stdout
    assert not set(text) & {"\x1b", "\u202e", "\x9b"}
    found = [json.loads(line) for line in text.splitlines()]
    assert [one["id"] for one in found] == ids[::-1]
    assert found[0]["last_text"] == "evil \x1b[31m\u202etitle\x9b2J"


def test_show(mmchat: Run, ids: list[int]) -> None:
    shown = mmchat("history", "show", str(ids[0])).stdout
    for part in ("Be brief.", "kite.png · 3×2", "what bird is it?", "  Surely.", "(Stopped.)"):
        assert part in shown
    whole = json.loads(mmchat("history", "show", str(ids[0]), "--json").stdout)
    assert whole["messages"][1]["text"] == "A red kite.\nSurely."
    assert whole["messages"][1]["origin"]["model"] == "scenes"
    assert "There is no conversation 99" in sentence(mmchat("history", "show", "99"))


def test_search(mmchat: Run, ids: list[int]) -> None:
    assert "A red kite." in mmchat("history", "search", "RED", "kit").stdout
    found = json.loads(mmchat("history", "search", "kite", "--json").stdout)
    assert found["conversation_id"] == ids[0]
    assert mmchat("history", "search", "absent").stdout == "Nothing was found.\n"
    assert mmchat("history", "search", "--", '"*(NEAR').returncode == 0


def test_delete_asks_for_all_or_takes_none(mmchat: Run, ids: list[int]) -> None:
    done = mmchat("history", "delete", str(ids[0]), "99", "--yes")
    assert "There is no conversation 99" in sentence(done)
    assert mmchat("history", "delete", str(ids[0])).returncode == 2
    assert mmchat("history", "delete", *map(str, ids), "--yes").returncode == 0
    assert mmchat("history", "list").stdout.startswith("There is no conversation yet")
    with History.open() as history:
        assert history.stats()["images"] == 0


def test_stats(mmchat: Run, ids: list[int]) -> None:
    assert json.loads(mmchat("history", "stats", "--json").stdout)["messages"] == 3
    assert "history.db" in mmchat("history", "stats").stdout
