"""Where the text of a question comes from, and what is said about it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import MMCHAT, Run
from tests.client.asking import png

pytestmark = pytest.mark.usefixtures("shared_engine")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "red kites.png"
    file.write_bytes(png(200))
    return file


def test_piped_text_goes_before_the_text_of_the_argument(mmchat: Run) -> None:
    done = mmchat("ask", "what is it?", stdin=b"echo-turns heron\n")
    assert (done.stdout, done.stderr) == ("user=echo-turns heron\n\nwhat is it?\n", "")
    assert mmchat("ask", "echo-turns", stdin=b" \n").stdout == "user=echo-turns\n"


def test_a_file_is_read_but_not_one_that_a_loop_reads(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("echo-turns one\ntwo\n", encoding="utf-8")
    whole, loop = (
        subprocess.run(["sh", "-c", script, MMCHAT], capture_output=True, text=True, check=True)
        for script in (
            '"$0" ask three < lines',
            'while read line; do "$0" ask "say $line"; done < lines',
        )
    )
    assert whole.stdout == "user=echo-turns one\ntwo\n\nthree\n"
    assert loop.stdout == "echo-turns one \ntwo \n"


def test_a_pipe_that_stays_silent_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [MMCHAT, "ask", "say on"],
            stdin=reader,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stdout) == (0, "on \n")
    assert "Nothing arrived on stdin" in done.stderr


def test_a_byte_order_mark_is_cut(mmchat: Run) -> None:
    for arguments, stdin in [((), b"\xef\xbb\xbfecho-turns\r\n"), (("\ufeffecho-turns",), b"")]:
        assert mmchat("ask", *arguments, stdin=stdin).stdout == "user=echo-turns\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "picture"])
@pytest.mark.parametrize("arguments", [(), ("what is this?",)], ids=["alone", "beside"])
def test_what_is_not_utf_8_is_refused(
    mmchat: Run, arguments: tuple[str, ...], encoding: str
) -> None:
    data = png(1) if encoding == "picture" else "how are you?".encode(encoding)
    done = mmchat("ask", *arguments, stdin=data)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not UTF-8 text" in done.stderr and "-a -" in done.stderr
    assert done.stderr.count("\n") == 1


def test_bytes_that_are_not_utf_8_are_told(mmchat: Run) -> None:
    done = mmchat("ask", stdin="say café".encode("latin-1"))
    assert done.stdout == "caf\ufffd \n"
    assert "not valid UTF-8" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "- what is this?"],
        ["ask", "-a cat is here"],
        ["ask", "--what is this?"],
        ["ask", "-5 + 3?", "--json"],
        ["history", "search", "-a cat"],
        ["- what is this?"],
    ],
    ids=" ".join,
)
def test_text_that_begins_with_a_dash(mmchat: Run, arguments: list[str]) -> None:
    done = mmchat(*arguments)
    text = next(one for one in arguments if one.startswith("-"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f" -- '{text}'" in done.stderr and done.stderr.count("\n") == 1


def test_text_after_two_dashes(mmchat: Run, picture: Path) -> None:
    done = mmchat("ask", "-a", str(picture), "--", "- echo-images")
    assert done.stdout == "I see 1 picture. You said: - echo-images \n"


def test_a_misspelled_option_is_not_taken_for_text(mmchat: Run) -> None:
    done = mmchat("ask", "x", "--temprature", "1")
    assert "--temperature" in done.stderr and " -- " not in done.stderr


def test_a_picture_that_is_only_named_is_told(mmchat: Run, picture: Path) -> None:
    options = f"-a '{picture}'"
    for text in (
        f"say {picture}",
        f"say what is in '{picture}', and why?",
        f"say {picture.as_uri()}",
        f'say ("{picture}")',
        "say compare red kites.png and none.png",
    ):
        done = mmchat("ask", text)
        assert done.returncode == 0
        assert "model does not see a picture" in done.stderr
        assert (options if str(picture.parent) in text else "-a 'red kites.png'") in done.stderr
    for arguments in (
        ("say red kites.png", "-a", str(picture)),
        ("say none.png",),
        ("say a.pngs",),
    ):
        assert mmchat("ask", *arguments).stderr == ""


def test_a_picture_on_the_web_is_not_fetched(mmchat: Run) -> None:
    done = mmchat("ask", "say https://example.org/a%20kite.jpg?")
    assert "not downloaded" in done.stderr and "curl -sL https://example.org" in done.stderr
    done = mmchat("ask", "say x", "-a", "https://example.org/kite.jpg")
    assert done.returncode == 1 and "curl -sL https://example.org/kite.jpg |" in done.stderr


def test_no_adapter_by_name(mmchat: Run) -> None:
    usual = {"MMCHAT_MODEL_ADAPTER": "birds"}
    assert '"adapter": "birds"' in mmchat("ask", "say a", "--json", **usual).stdout
    done = mmchat("ask", "say a", "--json", "--adapter", "none", **usual)
    assert '"adapter": ""' in done.stdout
    done = mmchat("ask", "say a", "--json", MMCHAT_MODEL_ADAPTER="none")
    assert '"adapter": ""' in done.stdout
