"""Standard streams that are closed or full: the command does its work, or says one sentence."""

import os
import subprocess
from pathlib import Path

import pytest

from mmchat.history import History
from tests.cli.conftest import MMCHAT


def run(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command under a shell's redirections, such as `2>&-`, with buffers as a person has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", MMCHAT, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    return done


@pytest.fixture
def _conversation(home: Path) -> None:
    with History.open() as history:
        history.add_message(history.new_conversation().id, "user", "a red kite")


@pytest.mark.usefixtures("_conversation")
@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "2>/dev/full", "<&- 2>&-"])
def test_other_streams_do_not_matter_to_the_output(redirection: str) -> None:
    done = run(redirection, "history", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("a red kite\n")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["history", "--help"], ["history", "list"]],
    ids=" ".join,
)
def test_a_full_output_is_one_sentence(arguments: list[str]) -> None:
    done = run(">/dev/full", *arguments)
    assert done.returncode == 1
    assert done.stderr == "mmchat: The output cannot be written (No space left on device).\n"


@pytest.mark.parametrize("redirection", [">&-", "<&- >&- 2>&-"])
def test_a_closed_output_is_not_an_error(redirection: str) -> None:
    assert run(redirection, "history", "list").returncode == 0


def test_an_error_that_cannot_be_told_keeps_its_status() -> None:
    assert run("2>&-", "history", "show", "9").returncode == 1
    assert run("2>/dev/full", "nonsense").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["ask"], 2, "The text of the question is empty."),
        (["ask", "what?", "-a", "-"], 1, "the picture on stdin is empty"),
        (["history", "delete", "1"], 2, "give --yes"),
        ([], 1, "The app needs a terminal"),
    ],
)
@pytest.mark.usefixtures("_conversation")
def test_a_closed_input_is_one_sentence(arguments: list[str], status: int, sentence: str) -> None:
    done = run("<&-", *arguments)
    assert done.returncode == status and done.stderr.count("\n") == 1
    assert done.stderr.startswith("mmchat: ") and sentence in done.stderr
