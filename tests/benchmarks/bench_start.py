"""How long a person waits: commands, the app's first paint, the first word of a first answer.

    python -m tests.benchmarks.bench_start [--rounds N]

Measures, never judges. The app's first paint is set beside that of a bare Textual app with one line
and one input, in turn, in pseudo-terminals: the time from starting the process until its words are on
the screen. Everything runs in a home of its own, which is empty.
"""

import argparse
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

BARE = """
from textual.app import App
from textual.widgets import Input, Static
class Bare(App):
    def compose(self):
        yield Static("a bare app")
        yield Input()
Bare().run()
"""
EXAMPLE = Path(__file__).parents[2] / "adapters" / "scenes" / "examples" / "stars.png"
MMCHAT = str(Path(sys.executable).with_name("mmchat"))


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a person waits")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    home = tempfile.mkdtemp(prefix="mmchat-bench-")
    os.environ["MMCHAT_HOME"] = home
    try:
        cases: dict[str, Callable[[], float]] = {
            "python -c pass": lambda: command(sys.executable, "-c", "pass"),
            "mmchat --version": lambda: command(MMCHAT, "--version"),
            "mmchat history list": lambda: command(MMCHAT, "history", "list"),
            "a bare Textual app, first paint": lambda: paint(
                "a bare app", sys.executable, "-c", BARE
            ),
            "mmchat, first paint": lambda: paint("Drop a file here", MMCHAT),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(rounds + 1):
            for name, measure in cases.items():
                seconds = measure()
                if turn:  # the first round warms the disk
                    times[name].append(seconds)
            subprocess.run([MMCHAT, "engine", "stop"], capture_output=True, check=False)
        print(f"{'seconds':34} median    min    max")
        for name, found in times.items():
            print(f"{name:34} {statistics.median(found):6.2f} {min(found):6.2f} {max(found):6.2f}")
        bare, ours = times["a bare Textual app, first paint"], times["mmchat, first paint"]
        ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
        print(f"{'first paint, mmchat / bare':34} {ratio:6.2f}")
        print_answers()
    finally:
        subprocess.run([MMCHAT, "engine", "stop"], capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def command(*words: str) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - start


def paint(words: str, *program: str) -> float:
    """Seconds until `words` stand on the screen of a program in a terminal of 100 x 30."""
    start = time.perf_counter()
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(program[0], program)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    seen = b""
    try:
        while words.encode() not in seen:
            if not select.select([terminal], [], [], 60)[0]:
                raise TimeoutError(f"{program[0]} never showed {words!r}")
            seen += os.read(terminal, 65536)
        return time.perf_counter() - start
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def print_answers() -> None:
    """The first answer of a first start, then one with everything warm."""
    for name in ("cold: no engine runs", "warm"):
        start = time.perf_counter()
        asked = subprocess.Popen(
            [MMCHAT, "ask", "what is in this picture?", "-a", str(EXAMPLE), "--no-save"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert asked.stdout is not None
        asked.stdout.read(1)
        first_word = time.perf_counter() - start
        asked.communicate()
        whole = time.perf_counter() - start
        print(f"ask, {name:29} {first_word:6.2f} first word, {whole:.2f} whole")
    answer = subprocess.run(
        [MMCHAT, "ask", "what is in this picture?", "-a", str(EXAMPLE), "--no-save", "--json"],
        capture_output=True,
        check=True,
    )
    print("timings of a warm answer:", json.loads(answer.stdout)["timings"])


if __name__ == "__main__":
    main()
