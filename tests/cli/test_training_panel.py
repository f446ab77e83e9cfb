"""What `mmchat train` shows: the panel at many sizes, on a real terminal, and plain lines elsewhere."""

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mmchat.cli import training_panel
from mmchat.cli.training_panel import LogLines, draw, loss_curve, table_lines, watch
from mmchat.display.numbers import format_duration
from mmchat.training.curves import Curves
from mmchat.training.plot import HELD_OUT
from mmchat.training.run_folder import Measurement, SampleAnswer, Status

HOSTILE = "\x1b]52;c;aGFja2Vk\x07[bold red]A\u202eb\x9b31m\r\n[/bold]"
SAMPLES = (
    SampleAnswer("What is this?", "A red kite", "a red kite."),
    SampleAnswer("What bird is this, and what colour is its tail?", "a red kite", "a buzzard"),
)
ROWS = (
    Measurement("held-out answers", 12, 0.08, (0.002, 0.385), 0.92, (0.615, 0.998)),
    Measurement("base model skills", 500, 0.831, (0.796, 0.862), 0.829, (0.793, 0.86)),
)


def _status(**fields: Any) -> Status:
    given: dict[str, Any] = {
        "name": "birds",
        "model": "scenes",
        "state": "training",
        "stage": "adapter",
        "step": 104,
        "steps": 240,
        "loss": 0.412,
        "held_out_loss": 0.498,
        "learning_rate": 2.1e-4,
        "tokens_per_second": 812.3,
        "samples_per_second": 6.1,
        "memory_bytes": 1_230_000_000,
        "waiting": 0.02,
        "seconds_left": 190.0,
        "samples": SAMPLES,
    }
    return Status(**(given | fields))


def _metrics(steps: int = 104) -> list[dict[str, Any]]:
    lines = [{"stage": "adapter", "step": n, "of": 240, "loss": 3 / n} for n in range(1, steps + 1)]
    return [*lines, {"stage": "adapter", "step": steps, "of": 240, "held_out_loss": 0.5}]


def _drawn(status: Status, width: int = 79, height: int = 23) -> str:
    return "\n".join(line.plain for line in draw(status, _metrics(), width, height))


# The curve


def _curve(
    training: list[tuple[float, float]],
    held_out: list[tuple[float, float]],
    width: int,
    height: int,
) -> list[str]:
    losses = Curves(tuple(training), tuple(held_out))
    return [line.plain for line in loss_curve(losses, width, height)]


def test_a_falling_curve() -> None:
    assert _curve([(0.0, 4.0), (10.0, 0.0)], [(10.0, 2.0)], 21, 7) == [
        "4.00┤⠑⠤⡀             ",
        "    │  ⠈⠑⠢⣀          ",
        "2.00┤      ⠉⠢⢄      ●",
        "    │         ⠉⠒⢄⡀   ",
        "0.00┤            ⠈⠑⠤⣀",
        "    └┬──────────────┬",
        "     0       step 10 ",
    ]


def test_a_wide_range_is_drawn_on_a_logarithmic_axis() -> None:
    assert _curve([(float(n), 10.0 ** (3 - n)) for n in range(7)], [], 30, 9) == [
        "1000.00┤⠑⠤⣀                   ",
        "       │   ⠉⠢⣀                ",
        "       │      ⠑⠢⢄⡀            ",
        "   1.00┤         ⠈⠑⠢⡀         ",
        "       │            ⠈⠑⠤⡀      ",
        "       │               ⠈⠑⠢⢄   ",
        "  0.001┤                   ⠑⠢⣀",
        "       └┬────────────────────┬",
        "        0              step 6 ",
    ]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e30, 1e30)), max_size=30),
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e30, 1e30)), max_size=5),
    st.integers(0, 120),
    st.integers(0, 40),
)
def test_a_curve_fills_its_room_and_no_more(
    points: list[tuple[float, float]], held_out: list[tuple[float, float]], width: int, height: int
) -> None:
    lines = _curve(sorted(points), held_out, width, height)
    assert len(lines) in (0, height)
    assert all(cell_len(line) == width for line in lines)


# The panel as lines


def test_everything_stands_in_the_panel() -> None:
    shown = _drawn(_status())
    for part in (
        "birds  training on scenes",
        "43 %",
        "step 104 of 240",
        "about 3 minutes left",
        "loss 0.412",
        "held-out 0.498",
        "812 tokens/s",
        "6.1 samples/s",
        "1.2 GB",
        "rate 2.1e-4",
        "2 % waiting for data",
        HELD_OUT,
        "✓ What is this?   a red kite.",
        "✗ What bird is this, and what colour is its tail?",
        "wanted a red kite   said a buzzard",
        "Ctrl-C saves a checkpoint",
    ):
        assert part in shown, part


def test_the_table_stands_there_at_the_end() -> None:
    shown = _drawn(_status(state="finished", rows=ROWS, adapter="birds"))
    assert "held-out answers     12     8.0 % (0.2 to 38.5)     92.0 % (61.5 to 99.8)" in shown
    assert "The adapter birds is ready." in shown
    assert table_lines(ROWS, 40) == [
        "held-out answers (n = 12)",
        "  before   8.0 % (0.2 to 38.5)",
        "  after   92.0 % (61.5 to 99.8)",
        "base model skills (n = 500)",
        "  before  83.1 % (79.6 to 86.2)",
        "  after   82.9 % (79.3 to 86.0)",
    ]


@pytest.mark.parametrize("state", ["preparing", "training", "measuring", "paused", "failed"])
def test_each_state_has_words(state: Any) -> None:
    assert state[:6] in _drawn(_status(state=state))
    assert _drawn(_status(state=state, model="", name="", steps=0, samples=()))


def test_a_failure_is_said_whole_however_narrow() -> None:
    why = "adapter step 31: the loss is nan (its samples: a.json:3). Lower the learning rates."
    for width, height in ((79, 23), (40, 15), (24, 12)):
        shown = " ".join(_drawn(_status(state="failed", message=why), width, height).split())
        assert why in shown, (width, height)


@given(st.integers(10, 130), st.integers(1, 45), st.booleans(), st.text(max_size=80))
def test_the_panel_keeps_to_its_room(width: int, height: int, done: bool, text: str) -> None:
    status = _status(
        name=text,
        stage=text,
        message=text * 3,
        state="finished" if done else "training",
        samples=(*SAMPLES, SampleAnswer(text, text, text * 2)),
        rows=ROWS if done else (),
    )
    lines = draw(status, _metrics(), width, height)
    assert 1 <= len(lines) <= height
    assert all(line.cell_len <= width for line in lines)


def test_foreign_text_is_only_text() -> None:
    status = _status(
        name=HOSTILE,
        model=HOSTILE,
        stage=HOSTILE,
        message=HOSTILE,
        samples=(SampleAnswer(*[HOSTILE] * 3),),
    )
    shown = _drawn(status, 200, 40)
    assert "[bold red]Ab31m [/bold]" in shown
    assert not {c for c in shown if c in "\x1b\x07\x9b\r\u202e"}


def test_durations() -> None:
    said = {
        0.2: "1 second",
        40: "40 seconds",
        100: "2 minutes",
        3_700: "62 minutes",
        4_800: "80 minutes",
        9_000: "2 hours 30 minutes",
        7_200: "2 hours",
        400_000: "5 days",
    }
    assert {seconds: format_duration(seconds) for seconds in said} == said


# Which of the two


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_panel, "LINE_EVERY", 0.0)
    with watch() as log:
        assert isinstance(log, LogLines)
        log.say("[bold]reading[/bold] \x1b[31m")
        log.show(_status(state="preparing", message="reading 34 conversations"), [])
        log.show(_status(), _metrics(1))
        log.show(_status(), _metrics(1))
        log.show(_status(step=105), _metrics(2))
        log.show(_status(state="finished", rows=ROWS, adapter="birds"), _metrics(2))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[bold]reading[/bold] [31m",
        "preparing to train on scenes: reading 34 conversations",
        "training on scenes",
        *(
            f"adapter  step {step} of 240  about 3 minutes left  loss 0.412  held-out 0.498  "
            "812 tokens/s  6.1 samples/s  1.2 GB  rate 2.1e-4  2 % waiting for data"
            for step in (104, 105)
        ),
        "trained on scenes: The adapter birds is ready.",
        *table_lines(ROWS, 100),
    ]


SCRIPT = """
import sys, time
from tests.cli.test_training_panel import ROWS, _metrics, _status
from mmchat.cli.training_panel import watch
with watch("json" in sys.argv) as panel:
    panel.say("a remark")
    for step in range(1, 60):
        panel.show(_status(step=step), _metrics(step))
        if step == 30 and "wait" in sys.argv:
            print("data", flush=True)
            time.sleep(60)
    panel.show(_status(step=240, state="finished", rows=ROWS, adapter="birds"), _metrics(60))
"""


class _Terminal:
    """SCRIPT with stderr on a terminal of 80 columns and stdout in a pipe."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={
                **environment,
                "TERM": "xterm-256color",
                "PYTHONPATH": root,
                "PYTHONIOENCODING": "utf-8",
                **variables,
            },
        )
        os.close(theirs)
        self._painted = bytearray()
        # A terminal that nobody reads from stops whoever writes to it.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the program has closed it
            while data := os.read(self._ours, 65_536):
                self._painted += data

    def rest(self) -> tuple[str, str]:
        """(stdout, what the terminal got), when the program has ended."""
        out, _ = self.process.communicate(timeout=60)
        self._reader.join()
        os.close(self._ours)
        return out.decode(), self._painted.decode()


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_the_panel_on_a_terminal() -> None:
    out, painted = _Terminal().rest()
    assert out == ""
    assert painted.startswith("a remark\r\n")
    assert "━" in painted and "92.0 % (61.5 to 99.8)" in painted
    # Each drawing begins with going back over the last one, never with an empty screen.
    assert "\x1b[2J" not in painted
    assert painted.rindex(SHOW) > painted.rindex(HIDE)


def test_ctrl_c_gives_the_cursor_back() -> None:
    terminal = _Terminal("wait")
    assert terminal.process.stdout is not None
    assert terminal.process.stdout.readline() == b"data\n"  # stdout is not the panel's
    terminal.process.send_signal(signal.SIGINT)
    _, painted = terminal.rest()
    assert painted.rindex(SHOW) > painted.rindex(HIDE)
    assert "step 30 of 240" in painted
    assert "KeyboardInterrupt" in painted.rpartition(SHOW)[2]


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ((), {"NO_COLOR": "1"}),
        (("json",), {}),
        ((), {"TERM": "dumb"}),
        ((), {"PYTHONIOENCODING": "ascii:replace"}),
    ],
    ids=["NO_COLOR", "--json", "dumb", "ascii"],
)
def test_plain_lines_where_a_panel_is_not_wanted(
    arguments: tuple[str, ...], variables: dict[str, str]
) -> None:
    _, painted = _Terminal(*arguments, **variables).rest()
    assert "\x1b" not in painted and "━" not in painted
    assert "adapter  step 59 of 240" in painted
