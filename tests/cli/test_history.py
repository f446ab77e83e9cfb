"""`mmchat history`, over a real file."""

import json
from pathlib import Path

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


def test_search_for_symbols(mmchat: Run, ids: list[int]) -> None:
    with History.open() as history:
        for text in ("is C++ older than C#?", "a cat \U0001f389"):
            history.add_message(ids[0], "user", text)
    for query, found in (("C++", 1), ("c#", 1), ("\U0001f389", 1), ("C", 2), ("C+++", 0)):
        lines = mmchat("history", "search", query, "--json").stdout.splitlines()
        assert len(lines) == found, query


@pytest.mark.parametrize("words", [[""], [" ", ""]])
def test_search_for_nothing_is_wrong_usage(mmchat: Run, words: list[str]) -> None:
    done = mmchat("history", "search", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "at least one word" in done.stderr


def test_a_damaged_file_is_one_sentence(mmchat: Run, ids: list[int], home: Path) -> None:
    (home / "history.db").write_bytes(b"x")
    for command in (["list"], ["show", "1"], ["stats"], ["search", "x"]):
        assert "is damaged" in sentence(mmchat("history", *command))


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


@pytest.fixture
def judged(ids: list[int]) -> list[int]:
    """The first conversation with a bad answer, its correction, and two tags."""
    with History.open() as history:
        answer = history.branch(ids[0])[1].id
        history.rate(answer, "bad")
        history.rate(history.correct(answer, "A black kite.").id, "good")
        history.tag(ids[0], "birds")
        history.tag(ids[0], "kites")
    return ids


def test_opinions_are_shown(mmchat: Run, judged: list[int]) -> None:
    shown = mmchat("history", "show", str(judged[0])).stdout
    assert shown.splitlines()[0].endswith(f"(conversation {judged[0]})  #birds #kites")
    assert "\nmmchat, corrected by you · ▲ good · " in shown
    assert "  A black kite." in shown
    whole = json.loads(mmchat("history", "show", str(judged[0]), "--json").stdout)
    assert whole["tags"] == ["birds", "kites"]
    corrected = whole["messages"][1]
    assert (corrected["rating"], corrected["corrects"]) == ("good", 2)
    with History.open() as history:
        history.set_head(judged[0], 2)
    assert "\nmmchat · scenes · ▼ bad · " in mmchat("history", "show", str(judged[0])).stdout


def test_list_by_tag(mmchat: Run, judged: list[int]) -> None:
    lines = mmchat("history", "list").stdout.splitlines()
    assert lines[1].endswith("what bird is it? #birds #kites")
    assert len(lines) == 3
    tagged = mmchat("history", "list", "--tag", "#Birds", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in tagged] == [judged[0]]
    assert mmchat("history", "list", "--tag", "absent").stdout.startswith(
        "No conversation has this tag"
    )
    assert "A tag is one word" in sentence(mmchat("history", "list", "--tag", "two words"))


def test_stats_count_opinions(mmchat: Run, judged: list[int]) -> None:
    stats = json.loads(mmchat("history", "stats", "--json").stdout)
    assert (stats["good"], stats["bad"], stats["corrected"]) == (1, 1, 1)
    assert stats["tags"] == {"birds": 1, "kites": 1}
    lines = mmchat("history", "stats").stdout.splitlines()
    rows = dict(line.split(None, 1) for line in lines)
    assert rows["feedback"] == "1 good, 1 bad, 1 corrected"
    assert rows["tags"] == "birds (1), kites (1)"
