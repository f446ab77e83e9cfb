"""`mmchat evaluate` with the scripted engine."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from mmchat.settings import paths
from tests.cli.conftest import MMCHAT, Run, sentence
from tests.client.asking import png
from tests.engine.scripted import answers, open_gate
from tests.evaluation.folders import line, write

pytestmark = pytest.mark.usefixtures("shared_engine")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    questions = [
        line("1", "say red", "red", images=("pictures/1.png",)),
        line("2", "say blue", "green", images=("pictures/1.png",)),
        line("3", "say two", "two", kind="count", images=("pictures/2.png",)),
    ]
    return write(tmp_path / "data", questions)


def test_the_metrics_as_a_table_a_file_and_json(mmchat: Run, data: Path, tmp_path: Path) -> None:
    done = mmchat("evaluate", str(data), "--markdown", "table.md")
    assert (done.returncode, done.stderr) == (0, "")
    assert "| colour" in done.stdout and "50.0 %" in done.stdout
    assert "The wrong answer:\n" in done.stdout
    table = (tmp_path / "table.md").read_text(encoding="utf-8").strip()
    assert table == done.stdout.split("\nThe wrong answer")[0].strip()
    found = json.loads(mmchat("evaluate", str(data), "--json").stdout)
    assert found["overall"]["n"] == 3
    assert [one["prediction"] for one in found["worst"]] == ["blue "]
    one = json.loads(mmchat("evaluate", str(data), "--json", "--limit", "1").stdout)
    assert one["overall"]["n"] == 2


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("--html", "nowhere/worst.html"),
        ("--html", "file/worst.html"),
        ("--html", "folder"),
        ("--markdown", "nowhere/table.md"),
        ("--out", "file"),
        ("--out", "file/below"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_questions(
    mmchat: Run, data: Path, tmp_path: Path, option: str, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    asked = len(answers())
    done = mmchat("evaluate", str(data), option, place)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.startswith("mmchat: ") and place in done.stderr
    assert len(answers()) == asked


def test_two_adapters_and_the_control_side_by_side(mmchat: Run, data: Path) -> None:
    done = mmchat("evaluate", str(data), "--adapter", "birds", "--against", "none", "--blank")
    assert done.returncode == 0, done.stderr
    assert "birds" in done.stdout and "no adapter" in done.stdout and "grey pictures" in done.stdout
    options = ("--adapter", "birds", "--against", "none", "--blank", "--json", "--parallel", "1")
    found = json.loads(mmchat("evaluate", str(data), *options).stdout)
    row = found["against"]["rows"][0]
    assert (row["n"], row["first"], row["second"], row["p"]) == (3, 2 / 3, 2 / 3, 1)
    assert found["blank"]["rows"][0]["difference"] == 0
    assert (found["adapter"], found["against"]["second"]) == ("birds", "no adapter")


def test_the_report_folder(mmchat: Run, tmp_path: Path) -> None:
    questions = [
        line(
            str(n), f"say {'cat' if n % 3 else 'dog'}", "cat" if n % 2 else "dog", images=("a.png",)
        )
        for n in range(6)
    ]
    data = write(tmp_path / "data", questions)
    done = mmchat("evaluate", str(data), "--out", "report", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "report"
    assert {file.name for file in out.iterdir()} == {
        "report.json",
        "report.md",
        "worst.html",
        "confusion.png",
    }
    made = json.loads((out / "report.json").read_text())
    assert len(made["answers"]) == 6
    assert (out / "worst.html").read_text() == (tmp_path / "page.html").read_text()
    assert "macro" in (out / "report.md").read_text()


def test_data_of_any_form(mmchat: Run, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "say hi"}, {"role": "assistant", "content": "hi"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    found = json.loads(mmchat("evaluate", "chats.jsonl", "--json").stdout)
    assert (found["overall"]["n"], found["overall"]["exact_match"]) == (1, 1)
    assert list(found["types"]) == ["answers"]


def test_pictures_may_be_in_another_folder(mmchat: Run, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "1.png").write_bytes(png())
    turns = [{"role": "user", "content": "<image>say hi"}, {"role": "assistant", "content": "hi"}]
    chats = tmp_path / "chats" / "chats.jsonl"
    chats.parent.mkdir()
    chats.write_text(json.dumps({"messages": turns, "images": ["1.png"]}) + "\n")
    assert "1.png" in sentence(mmchat("evaluate", str(chats)))
    for part in ("auto", "all"):
        done = mmchat("evaluate", str(chats), "--images", "pictures", "--part", part, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["overall"]["exact_match"] == 1
    assert "is not a folder" in sentence(mmchat("evaluate", str(chats), "--images", str(chats)))


def test_questions_that_cannot_be_answered_are_reported(mmchat: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "data", [line("1", "too-long", "a"), line("2", "say b", "b")])
    done = mmchat("evaluate", str(data), "--json")
    told = "Not answered, and counted as wrong: 1 question. The first: 1: The last message"
    assert done.stderr.startswith(told)
    assert json.loads(done.stdout)["overall"]["exact_match"] == 0.5


def test_an_adapter_against_itself_is_a_usage_error(mmchat: Run, data: Path) -> None:
    for options in (("--against", "none"), ("--adapter", "birds", "--against", "birds")):
        done = mmchat("evaluate", str(data), *options)
        assert done.returncode == 2
        assert "with itself: give" in done.stderr


def test_a_terminal_shows_tables_and_foreign_markup_as_text(mmchat: Run, tmp_path: Path) -> None:
    hostile = "say [bold]x[/bold] \x1b]52;c;eA==\x07 [a](http://evil)"
    lines = [line("1", hostile, "y", kind="col[red]our"), line("2", "say b", "b")]
    data = write(tmp_path / "data", lines)
    mmchat("evaluate", str(data))  # starts the engine, which would keep the terminal open
    shown = on_terminal("evaluate", str(data))
    assert "━" in shown and "|" not in shown
    assert "The wrong answer" in shown and "50.0 %" in shown
    assert "col[red]our" in shown and "[bold]x" in shown
    assert "\x1b]" not in shown and not re.search(
        "\x1b\\[[34][0-9]", shown
    )  # NO_COLOR: bold at most


def on_terminal(*arguments: str) -> str:
    """What the command paints on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [MMCHAT, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    painted = bytearray()
    with contextlib.suppress(OSError):  # the process has closed the terminal
        while data := os.read(ours, 65_536):
            painted += data
    os.close(ours)
    assert process.wait(60) == 0
    return painted.decode()


def test_missing_data_is_one_sentence(mmchat: Run) -> None:
    assert "nowhere" in sentence(mmchat("evaluate", "nowhere"))


def test_a_file_that_cannot_be_written_is_one_sentence(mmchat: Run, data: Path) -> None:
    told = sentence(mmchat("evaluate", str(data), "--html", "no/such/folder.html"))
    assert "no/such/folder.html cannot be written" in told


def test_an_evaluation_that_was_killed_continues(mmchat: Run, tmp_path: Path) -> None:
    texts = ["say killed one", "gate killed", "say killed two"]
    folder = write(
        tmp_path / "data",
        [line(str(n), text, "x", images=("1.png",)) for n, text in enumerate(texts)],
    )
    kept = paths().cache / "evaluation"
    before = set(kept.glob("*"))  # of other tests in this home
    model = tmp_path / "model"  # with weights, so that answers are cached
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    options = ["--model", str(model), "--json", "--parallel", "1"]
    command = [MMCHAT, "evaluate", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ)) as going:
        deadline = time.monotonic() + 60
        while not any(
            file.read_bytes() for file in kept.glob("*/answers.jsonl") if file.parent not in before
        ):
            assert going.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        going.kill()
    open_gate("killed")
    found = json.loads(mmchat(*command[1:]).stdout)
    assert (found["overall"]["n"], found["reused"]) == (3, 1)
    assert [one["text"] for one in answers()].count("say killed one") == 1


def test_the_json_keys_do_not_change(mmchat: Run, data: Path) -> None:
    """Scripts read them, so a key that is removed or renamed belongs in the changelog."""
    options = ("--against", "birds", "--blank", "--json", "--parallel", "1")
    found = json.loads(mmchat("evaluate", str(data), *options).stdout)
    of_the_model = {"model", "weights_hash", "adapter", "adapter_hash", "quantization"}
    of_the_data = {"about", "data", "data_sha256", "device", "compute_dtype"}
    counted = {"overall", "types", "metrics", "worst", "against", "blank"}
    assert set(found) == of_the_model | of_the_data | counted | {"reused", "answers_file"}
    assert {"n", "exact_match", "interval"} <= set(found["overall"])
    assert set(found["metrics"]) == {
        "verbatim",
        "same_words",
        "classes",
        "yes_no",
        "texts",
    }
