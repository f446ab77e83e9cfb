"""The parts without a screen: paths, commands, completion, words, turns."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmchat.chat.prompt import prompt_turns
from mmchat.display.messages import clock, notes, with_log
from mmchat.display.text import bar
from mmchat.history import Message, Origin
from mmchat.history.turns import TOO_LONG
from mmchat.sanitize import Cleaner, clean
from mmchat.tui.actions import ACTIONS, key_label
from mmchat.tui.commands import UnknownCommandError, parse
from mmchat.tui.completion import suggest
from mmchat.tui.halfblocks import fit, lines, preview
from mmchat.tui.labels import group, tokens
from mmchat.tui.pasted import as_path, leading, paths
from tests.tui.conftest import NOW, draw

ENDINGS = (".png", ".jpg")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/a/b.png", ["/a/b.png"]),
        ("  /a/b.PNG \n", ["/a/b.PNG"]),
        ("'/a/b c.png'", ["/a/b c.png"]),
        ('"/a/b c.png"', ["/a/b c.png"]),
        ("/a/b\\ c.png", ["/a/b c.png"]),
        ("/a/b c.png", ["/a/b c.png"]),
        ("file:///a/b%20c.png", ["/a/b c.png"]),
        ("/a/b.png /a/c.jpg", ["/a/b.png", "/a/c.jpg"]),
        ("'/a/b c.png' /a/d.png", ["/a/b c.png", "/a/d.png"]),
        ("/a/b.png\n/a/c.jpg", ["/a/b.png", "/a/c.jpg"]),
        ("/it's/b.png", ["/it's/b.png"]),
        ("/a/b.txt", []),
        ("look at /a/b.png", []),
        ("b.png", []),
        ("", []),
        ("/a/b.png\0", []),
    ],
)
def test_pasted_paths(text: str, names: list[str]) -> None:
    assert paths(text, ENDINGS) == [Path(name) for name in names]


@given(st.text())
def test_any_paste_is_survived(text: str) -> None:
    for path in paths(text, ENDINGS):
        assert path.name.lower().endswith(ENDINGS)


@given(st.text(alphabet="ab c'\"\\é[]", min_size=1).map(str.strip).filter(bool))
def test_a_quoted_path_comes_back(name: str) -> None:
    path = f"/tmp/{name}.png"
    assert paths(shlex.quote(path), ENDINGS) == [Path(path)]


def test_home_is_expanded() -> None:
    assert as_path("~/a.png") == Path.home() / "a.png"


def test_a_typed_path_before_the_question(tmp_path: Path) -> None:
    file = draw(tmp_path / "a b.png")
    typed = str(file).replace(" ", "\\ ")
    assert leading(f"{typed} what is it?", ENDINGS) == ([file], "what is it?")
    assert leading("/nowhere/a.png what?", ENDINGS) == ([Path("/nowhere/a.png")], "what?")
    assert leading("what is /a.png?", ENDINGS) == ([], "what is /a.png?")
    for typed in ("/attach ./gone.png", "/atach gone.png"):  # commands, as far as they can be
        assert leading(typed, ENDINGS) == ([], typed)


def test_commands() -> None:
    command = parse("/attach  a b.png ")
    assert command is not None
    assert (command.action.id, command.argument) == ("attach", "a b.png")
    assert parse("what is this?") is None
    assert parse("/home/me/a.png") is None
    assert parse("/ no") is None
    with pytest.raises(UnknownCommandError, match="Did you mean /rename"):
        parse("/renam x")
    with pytest.raises(UnknownCommandError, match="takes no argument"):
        parse("/new x")
    with pytest.raises(UnknownCommandError, match="Begin with a space to send it as text"):
        parse("/etc is what?")
    assert parse(" /etc is what?") is None


@given(st.text())
def test_any_text_is_a_command_or_not(text: str) -> None:
    try:
        parse(text)
    except UnknownCommandError as error:
        assert str(error).startswith(("There is no", "/"))


def test_actions_have_one_id_and_one_key() -> None:
    keys = [key for action in ACTIONS for key in action.key.split(",") if key]
    assert len(keys) == len(set(keys))
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    assert key_label("shift+enter,f1") == "Shift+Enter, F1"
    assert key_label("ctrl+o,alt+up,x") == "Ctrl+O, Alt+↑, x"


def _suggest(text: str) -> list[str]:
    return [
        one.label
        for one in suggest(
            text, len(text), suffixes=ENDINGS, choices=lambda kind: [("scenes", "built in")]
        )
    ]


def test_completion(tmp_path: Path) -> None:
    draw(tmp_path / "a b.png")
    draw(tmp_path / "sub" / "c.png")
    (tmp_path / "notes.txt").touch()
    assert "/rename TITLE" in _suggest("/re")
    assert _suggest("/model sc") == ["scenes"]
    assert _suggest(f"/attach {tmp_path}/") == ["a b.png", "sub/"]
    assert _suggest(f"look at @{tmp_path}/a") == ["a b.png"]
    assert _suggest("me@example.org") == []
    assert _suggest("/attach /no/such/folder/") == []


def test_dates() -> None:
    day = 86_400
    assert [group(NOW - age * day, NOW) for age in (0, 1, 2)] == ["Today", "Yesterday", "Earlier"]
    assert clock(NOW - day, NOW).startswith("yesterday ")
    assert clock(NOW - 800 * day, NOW).endswith("2024")


@given(st.floats(allow_nan=False), st.integers(1, 60))
def test_a_bar_has_its_width(fraction: float, width: int) -> None:
    assert sum(map(len, bar(fraction, width))) == width


@given(st.lists(st.text(alphabet="ab\r\n\x1b", max_size=4)))
def test_cleaning_in_pieces_equals_cleaning_at_once(pieces: list[str]) -> None:
    cleaner = Cleaner()
    text = "".join(cleaner.feed(piece) for piece in pieces) + cleaner.rest()
    assert text == clean("".join(pieces))


def _message(role: str = "assistant", text: str = "x", state: str = "complete", **more) -> Message:  # type: ignore[no-untyped-def]
    origin = Origin("scenes", parameters=more.pop("parameters", {}), **more)
    return Message(1, 1, None, role, text, (), NOW, state, "", origin, 1, 1)  # type: ignore[arg-type]


def test_what_is_said_under_an_answer() -> None:
    assert notes(_message()) == []
    cut = _message(state="length", parameters={"max_tokens": 512}, completion_tokens=512)
    assert notes(cut)[0][1].startswith("Cut at 512 tokens:")
    full = _message(state="length", parameters={"max_tokens": 512}, completion_tokens=9)
    assert "context is full" in notes(full)[0][1]
    assert "3 oldest messages" in notes(_message(parameters={"dropped_turns": 3}))[0][1]
    assert notes(_message(state="interrupted"))[0][0] == "error"


def test_figures() -> None:
    origin = Origin("m", prompt_tokens=400, completion_tokens=12, image_tokens=98)
    assert tokens(origin, 8192) == "412 of 8,192 tokens, 98 of them pictures"
    assert with_log("It failed.", "/x/engine.log") == "It failed. Its log: /x/engine.log"
    assert with_log("It failed (/x/engine.log).", "/x/engine.log").count("/x/engine.log") == 1


def test_half_blocks(tmp_path: Path) -> None:
    from mmchat.images import read_picture

    small = preview(read_picture(draw(tmp_path / "a.png")), 20, 6)
    assert (small.columns, small.rows) == fit(64, 48, 20, 6)
    drawn = lines(small)
    assert len(drawn) == small.rows
    assert all(sum(len(part.text) for part in row) == small.columns for row in drawn)
    assert small.pixel(0, 0) == (255, 255, 255)


@given(st.integers(1, 60_000), st.integers(1, 60_000), st.integers(1, 80), st.integers(1, 40))
def test_a_preview_fits_its_box(width: int, height: int, columns: int, rows: int) -> None:
    across, down = fit(width, height, columns, rows)
    assert 1 <= across <= columns
    assert 1 <= down <= rows


def test_turns_take_turns() -> None:
    branch = [
        _message("user", "one"),
        _message(text="", state="failed"),
        _message("user", "two"),
        _message(text="yes"),
        _message("user", "three"),
    ]
    made = prompt_turns(branch, "be brief", lambda sha256: b"")
    assert [turn.role for turn in made] == ["system", "user", "assistant", "user"]
    assert made[1].parts == ("one", "\n\n", "two")


def test_a_message_that_had_no_room_is_not_asked_again() -> None:
    long = replace(_message("user", "long"), id=7)
    refused = _message(text="", state="failed", parameters={TOO_LONG: True})
    branch = [
        _message("user", "one"),
        _message(text="yes"),
        long,
        replace(refused, parent_id=7),
        _message("user", "two"),
    ]
    made = prompt_turns(branch, "", lambda sha256: b"")
    assert [turn.parts for turn in made] == [("one",), ("yes",), ("two",)]


def test_a_relative_path_of_a_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as in a shell; a name of nothing stays words."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "stars.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    name = "pictures/stars.png"
    assert leading(f"{name} what is it?", [".png"]) == ([Path(name)], "what is it?")
    assert paths(name, [".png"]) == [Path(name)]
    assert paths("./gone.png", [".png"]) == [Path("./gone.png")]
    assert paths("pictures/gone.png", [".png"]) == []
    assert paths("pictures", [".png"]) == []
