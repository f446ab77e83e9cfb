"""The command in a process of its own, with an engine that answers by script."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click import Command, Group

from mmchat.cli import main
from tests.client.conftest import scripted_engine, shared_engine, shared_home
from tests.forked import run_forked

__all__ = ["scripted_engine", "shared_engine", "shared_home"]

MMCHAT = str(Path(sys.executable).with_name("mmchat"))
Run = Callable[..., subprocess.CompletedProcess[str]]
_WITH_TORCH = {("train",), ("doctor",), ("adapters", "merge"), ("data", "inspect")}
"""Commands that import it themselves: forked where they can be, the installed command else."""
_READ_AT_THE_START = ("PYTHON", "OMP_", "GOMP_", "HF_")


@pytest.fixture
def mmchat() -> Run:
    """Runs the command to its end: `mmchat("ask", "hello", stdin=b"…", MMCHAT_MODEL_NAME="x")`."""

    def run(
        *arguments: str, stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        with_torch = arguments[:1] in _WITH_TORCH or arguments[:2] in _WITH_TORCH
        whole = {**os.environ, **environment}
        if with_torch and not any(name.startswith(_READ_AT_THE_START) for name in environment):
            done = run_forked(main, arguments, whole, stdin=stdin, patience=120)
        else:
            ran = subprocess.run(
                [MMCHAT, *arguments],
                input=stdin,
                capture_output=True,
                env=whole,
                timeout=120,
                check=False,
            )
            done = subprocess.CompletedProcess(
                ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode()
            )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def every_command(command: Command, *path: str) -> list[tuple[tuple[str, ...], Command]]:
    """A command and all below it, each with the words that call it."""
    found = [(path, command)]
    if isinstance(command, Group):
        from click import Context

        context = Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found += every_command(below, *path, name)
    return found


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that ended with 1."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmchat: "), done.stderr
    return lines[0].removeprefix("mmchat: ")
