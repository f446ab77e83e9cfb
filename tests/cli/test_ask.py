"""`mmchat ask`, through the installed command and a real engine process."""

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from mmchat.history import History
from tests.cli.conftest import MMCHAT, Run, sentence
from tests.client.asking import png
from tests.engine.scripted import answers

pytestmark = pytest.mark.usefixtures("shared_engine")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "a.png"
    file.write_bytes(png(100))
    return file


def last() -> tuple[list[object], str, str]:
    """(the pictures of the last question, the answer's text, its state) in the history."""
    with History.open() as history:
        latest = history.latest()
        assert latest is not None
        branch = history.branch(latest.id)
    return list(branch[-2].images), branch[-1].text, branch[-1].state


def test_the_words_come_and_are_kept(mmchat: Run, picture: Path) -> None:
    done = mmchat("ask", "say red kite", "-a", str(picture))
    assert (done.returncode, done.stdout, done.stderr) == (0, "red kite \n", "")
    images, text, state = last()
    assert [image.name for image in images] == ["a.png"]  # type: ignore[attr-defined]
    assert (text, state) == ("red kite ", "complete")


def test_a_picture_with_nothing_to_see_is_remarked_on(mmchat: Run, picture: Path) -> None:
    picture.write_bytes(png(1))
    done = mmchat("ask", "say red kite", "-a", str(picture))
    assert (done.returncode, done.stdout) == (0, "red kite \n")
    assert done.stderr == "a.png is nearly black all over, so there may be nothing to see.\n"


def test_json_has_exactly_the_promised_fields(mmchat: Run, picture: Path) -> None:
    done = mmchat("ask", "echo-images", "-a", str(picture), "--json", "--seed", "7")
    found = json.loads(done.stdout)
    assert list(found) == [
        "text",
        "finish_reason",
        "conversation_id",
        "message_id",
        "model",
        "adapter",
        "usage",
        "timings",
    ]
    assert set(found["usage"]) == {
        "prompt_tokens",
        "image_tokens",
        "completion_tokens",
        "cached_tokens",
    }
    assert set(found["timings"]) == {"image_ms", "prefill_ms", "decode_ms", "tokens_per_second"}
    assert hashlib.sha256(picture.read_bytes()).hexdigest() in found["text"]
    assert found["finish_reason"] == "stop" and found["model"] == "scenes"
    with History.open() as history:
        kept = history.message(found["message_id"])
    assert kept.conversation_id == found["conversation_id"]
    assert kept.text == found["text"]
    assert kept.origin is not None
    assert kept.origin.parameters["seed"] == 7
    assert kept.origin.image_tokens == found["usage"]["image_tokens"] == 4


def test_text_and_pictures_come_from_stdin(mmchat: Run, picture: Path) -> None:
    piped = mmchat("ask", stdin=b"say from a pipe\n")
    assert piped.stdout == "from a pipe \n"
    broken = mmchat("ask", stdin=b"say caf\xe9")
    assert broken.stdout == "caf\ufffd \n"
    seen = mmchat("ask", "echo-images", "-a", "-", stdin=picture.read_bytes())
    assert hashlib.sha256(picture.read_bytes()).hexdigest() in seen.stdout


def test_going_on_with_a_conversation(mmchat: Run, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    other.write_bytes(png(2))
    first = json.loads(mmchat("ask", "say one", "-a", str(picture), "--json").stdout)
    mmchat("ask", "say something else")
    shown = mmchat(
        "ask", "[1] echo-turns", "-a", str(other), "--conversation", str(first["conversation_id"])
    ).stdout
    one, two = (hashlib.sha256(file.read_bytes()).hexdigest()[:8] for file in (picture, other))
    assert shown == f"user=<{one}>say one\nassistant=one \nuser=<{two}> echo-turns\n"
    again = mmchat("ask", "echo-turns", "--continue").stdout
    assert again.startswith(f"user=<{one}>say one") and again.endswith("user=echo-turns\n")
    with History.open() as history:
        assert len(history.branch(first["conversation_id"])) == 6


def test_a_system_prompt_goes_first_and_stays_with_the_conversation(mmchat: Run) -> None:
    first = mmchat("ask", "echo-turns", "--system", "Be brief.")
    assert first.stdout.startswith("system=Be brief.\nuser=")
    assert mmchat("ask", "echo-turns", "--continue").stdout.startswith("system=Be brief.\n")
    assert mmchat("ask", "echo-turns").stdout.startswith("user=")


def test_no_save_leaves_no_trace(mmchat: Run, picture: Path) -> None:
    mmchat("ask", "say begin")
    with History.open() as history:
        before = history.stats()
    done = mmchat("ask", "echo-turns", "-a", str(picture), "--continue", "--no-save", "--json")
    found = json.loads(done.stdout)
    assert found["conversation_id"] is None and found["message_id"] is None
    assert found["text"].startswith("user=say begin\n")
    with History.open() as history:
        assert history.stats() == before


def test_flags_beat_the_environment(mmchat: Run) -> None:
    done = mmchat(
        "ask",
        "echo-options",
        "--temperature",
        "0.5",
        "--max-tokens",
        "9",
        MMCHAT_GENERATION_TEMPERATURE="2",
        MMCHAT_GENERATION_TOP_K="3",
    )
    options = json.loads(done.stdout)
    assert (options["temperature"], options["top_k"], options["max_tokens"]) == (0.5, 3, 9)


def test_another_model_comes_without_the_adapter_of_the_first(mmchat: Run) -> None:
    usual = {"MMCHAT_MODEL_ADAPTER": "birds"}
    first = json.loads(mmchat("ask", "say a", "--json", **usual).stdout)
    other = json.loads(mmchat("ask", "say a", "--json", "--model", "blind", **usual).stdout)
    assert (first["model"], first["adapter"]) == ("scenes", "birds")
    assert (other["model"], other["adapter"]) == ("blind", "")


def test_an_answer_that_is_cut_is_said_so(mmchat: Run) -> None:
    done = mmchat("ask", "say a b c d", "--max-tokens", "2")
    assert (done.returncode, done.stdout) == (0, "a b \n")
    assert "--max-tokens" in done.stderr
    assert last()[1:] == ("a b ", "length")


@pytest.mark.parametrize(
    ("text", "said", "kept"),
    [
        ("oom", "The memory does not suffice", ""),
        ("crash", "The engine ended unexpectedly", "one two "),
        ("bug", "", ""),
    ],
)
def test_a_failed_answer_is_one_sentence_and_the_part_is_kept(
    mmchat: Run, text: str, said: str, kept: str
) -> None:
    done = mmchat("ask", text)
    assert said in sentence(done)
    assert done.stdout == (f"{kept}\n" if kept else "")
    assert last()[1:] == (kept, "failed")
    assert mmchat("ask", "say fine").stdout == "fine \n"


def test_ctrl_c_keeps_the_part_and_stops_the_engine() -> None:
    asking = subprocess.Popen(
        [MMCHAT, "ask", "forever"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert asking.stdout is not None
    assert asking.stdout.read(14) == "tick-1 tick-2 "
    asking.send_signal(signal.SIGINT)
    rest, _ = asking.communicate(timeout=60)
    assert asking.returncode == 130
    # The answer and the note, each on its own line, and nothing else, such as a traceback.
    note = r"Stopped; the part that was written is kept in conversation \d+\."
    assert re.fullmatch(rf"(tick-\d+ )*\n{note}\s*", rest)
    _, text, state = last()
    assert text.startswith("tick-1 tick-2 ") and state == "stopped"
    assert answers()[-1]["finish"] == "cancelled"


def test_a_reader_that_leaves_ends_it_without_a_word_of_error() -> None:
    asking = subprocess.Popen(
        [MMCHAT, "ask", "forever"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert asking.stdout is not None and asking.stderr is not None
    asking.stdout.read(7)
    asking.stdout.close()
    stderr = asking.stderr.read().decode()
    asking.stderr.close()
    asking.wait(timeout=60)
    assert "Error" not in stderr and "Traceback" not in stderr
    assert last()[2] == "stopped"


def test_terminal_escapes_of_a_model_do_not_reach_the_terminal(mmchat: Run) -> None:
    done = mmchat("ask", "escape")
    assert done.stdout == "]52;c;aGFja2Vk[31mred[0m\n"
    found = mmchat("ask", "escape", "--json").stdout
    assert "\x1b" not in found
    assert json.loads(found)["text"] == "\x1b]52;c;aGFja2Vk\x07\x1b[31mred\x1b[0m"


def test_a_load_is_shown_on_a_terminal_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [MMCHAT, "ask", "say hello", "--model", "another"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        check=True,
        timeout=60,
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.stdout == b"hello \n"
    assert "Loading another" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "-a", "nothing.png"], "nothing.png does not exist"),
        (["x", "-a", "."], "is a folder"),
        (["x", "-a", "text.png"], "text.png"),
        (["x", "--conversation", "999999"], "There is no conversation 999999"),
        (["x", "--model", "broken"], "cannot be read"),
        (["x", "--adapter", "broken"], "The adapter broken does not fit"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    mmchat: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    assert said in sentence(mmchat("ask", *arguments))


def test_a_model_that_cannot_be_used_leaves_no_conversation(mmchat: Run) -> None:
    kept = mmchat("ask", "say kept", "--json")
    sentence(mmchat("ask", "x", "--model", "broken"))
    sentence(mmchat("ask", "x", "--adapter", "broken"))
    newest = json.loads(mmchat("history", "list", "--json").stdout.splitlines()[0])
    assert newest["id"] == json.loads(kept.stdout)["conversation_id"]


def test_a_mark_without_its_picture_is_told(mmchat: Run, picture: Path) -> None:
    done = mmchat("ask", "say is [1] like [2]", "-a", str(picture))
    assert done.returncode == 0
    assert "There is no picture 2, so [2] is sent as text." in done.stderr


def test_there_is_nothing_to_go_on_with(mmchat: Run, tmp_path: Path) -> None:
    done = mmchat("ask", "x", "--continue", MMCHAT_HOME=str(tmp_path / "fresh"))
    assert "leave --continue out" in sentence(done)
