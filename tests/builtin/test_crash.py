"""kill -9 in mid-answer, with the real model: what the person sees, and what is kept."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from mmchat.client.endpoint import engine_lives, lock_holder, log_file
from mmchat.history import History, Message
from mmchat.sanitize import clean
from tests.builtin.asking import LONG_SETTINGS, STARS, cpu_seconds, environment
from tests.cli.conftest import MMCHAT, Run, sentence
from tests.client.asking import until


class Asking:
    """`mmchat ask` in mid-answer: its first words are on the screen, many are to come."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [MMCHAT, "ask", "tell me all", "-a", str(STARS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**LONG_SETTINGS),
        )
        assert self.process.stdout is not None
        self.seen = b""
        while len(self.seen) < 60:
            piece = os.read(self.process.stdout.fileno(), 100_000)
            assert piece, "it ended too early"
            self.seen += piece
        engine = lock_holder()
        assert engine is not None and self.process.poll() is None
        self.engine = engine

    def end(self) -> tuple[str, str]:
        """(all of stdout, stderr)"""
        output, errors = self.process.communicate(timeout=120)
        return (self.seen + output).decode(), errors.decode()


@pytest.fixture
def asking(mmchat: Run) -> Iterator[Asking]:
    assert mmchat("ask", "hello", "--no-save").returncode == 0
    asking = Asking()
    yield asking
    asking.process.kill()
    asking.process.communicate()


def last_exchange() -> tuple[Message, Message]:
    with History.open() as history:
        latest = history.latest()
        assert latest is not None
        question, answer = history.branch(latest.id)
    assert (question.text, len(question.images)) == ("tell me all", 1)
    return question, answer


def works(mmchat: Run) -> None:
    done = mmchat("ask", "what is in the picture?", "-a", str(STARS), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "star" in json.loads(done.stdout)["text"]


def test_the_engine_dies_and_the_words_are_kept(mmchat: Run, asking: Asking) -> None:
    os.kill(asking.engine, signal.SIGKILL)
    output, errors = asking.end()
    done = subprocess.CompletedProcess([], asking.process.returncode, output, errors)
    said = sentence(done)
    assert said.startswith("The engine ended unexpectedly while answering")
    assert str(log_file()) in said and "Traceback" not in errors
    _, answer = last_exchange()
    assert (answer.state, answer.error) == ("failed", said)
    assert clean(answer.text) + "\n" == output
    shown = mmchat("history", "show", str(answer.conversation_id)).stdout
    assert said in shown and answer.text[:10] in shown
    works(mmchat)
    assert lock_holder() != asking.engine


def test_the_program_dies_and_the_engine_goes_on(mmchat: Run, asking: Asking) -> None:
    asking.process.kill()
    output, _ = asking.end()
    _, answer = last_exchange()
    assert answer.state == "interrupted"
    assert clean(answer.text).startswith(output) and output
    begin = cpu_seconds(asking.engine)
    works(mmchat)
    stopped_cost = cpu_seconds(asking.engine) - begin
    assert lock_holder() == asking.engine
    begin = cpu_seconds(asking.engine)
    assert mmchat("ask", "tell me all", "-a", str(STARS), "--no-save", **LONG_SETTINGS).stdout
    # Had the engine gone on with the answer that nobody reads, it would have come before ours.
    assert stopped_cost < (cpu_seconds(asking.engine) - begin) / 2


@pytest.mark.slow  # test_app_crash.py tries the same with the app
async def test_both_die_and_the_next_question_works(mmchat: Run, asking: Asking) -> None:
    asking.process.kill()
    os.kill(asking.engine, signal.SIGKILL)
    output, _ = asking.end()
    await until(lambda: not engine_lives())
    _, answer = last_exchange()
    assert answer.state == "interrupted"
    assert clean(answer.text).startswith(output) and output
    found = mmchat("history", "search", "tell me all")
    assert found.returncode == 0 and "tell me all" in found.stdout
    works(mmchat)
    assert lock_holder() != asking.engine
