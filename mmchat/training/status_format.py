"""A run's status as text, for the terminal and the app. Free of torch.

Text that comes from a model or a data set is cleaned here, so every line can be shown as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmchat.answer_match import exact_match
from mmchat.display.numbers import (
    format_duration,
    format_loss,
    format_percent,
    format_share,
    format_size,
)
from mmchat.display.text import one_line
from mmchat.training.run_folder import Measurement, SampleAnswer, State, Status

WORKING: tuple[State, ...] = ("preparing", "training", "measuring")

TableRow = tuple[str, str, str, str]
"""What was measured, n, before, after."""
TABLE_HEADER: TableRow = ("", "n", "before", "after")


def fraction(status: Status) -> float:
    """How much of the training is done, from 0 to 1."""
    if status.state in ("measuring", "finished"):
        return 1.0
    return min(max(status.step / status.steps, 0.0), 1.0) if status.steps > 0 else 0.0


def percent(status: Status) -> str:
    """`43 %`; 100 only when all is done."""
    return f"{int(fraction(status) * 100)} %"


def heading(status: Status) -> str:
    """`training on scenes`: what the run is doing."""
    doing = {
        "preparing": "preparing to train on",
        "training": "training on",
        "measuring": "measuring on",
        "paused": "paused, on",
        "finished": "trained on",
        "failed": "failed, on",
    }[status.state]
    return f"{doing} {one_line(status.model, 60)}" if status.model else doing.rpartition(" ")[0]


def where(status: Status) -> list[str]:
    """`adapter`, `step 104 of 240` and `about 3 minutes left`, as far as they are known."""
    if status.state == "preparing" or status.steps <= 0:
        return []
    stage = one_line(status.stage, 30)
    found = [*([stage] if stage else []), f"step {status.step:,} of {status.steps:,}"]
    if status.state == "training" and status.seconds_left is not None:
        found.append(f"about {format_duration(status.seconds_left)} left")
    return found


def figures(status: Status) -> list[str]:
    """The figures that are known, each with its unit, the most important first."""
    found = []
    if status.loss is not None:
        found.append(f"loss {format_loss(status.loss)}")
    if status.held_out_loss is not None:
        found.append(f"held-out {format_loss(status.held_out_loss)}")
    for value, unit in (
        (status.tokens_per_second, "tokens/s"),
        (status.samples_per_second, "samples/s"),
    ):
        if value is not None:
            found.append(f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}")
    if status.memory_bytes > 0:
        found.append(format_size(status.memory_bytes))
    if status.learning_rate is not None:
        found.append("rate " + f"{status.learning_rate:.1e}".replace("e-0", "e-"))
    if status.state == "training" and status.step:
        found.append(f"{format_percent(status.waiting)} waiting for data")
    return found


def table(rows: Sequence[Measurement]) -> list[TableRow]:
    """Before and after with their intervals, without a header."""
    return [
        (
            one_line(row.name, 40),
            f"{row.n:,}",
            _aligned(row.before, row.before_interval),
            _aligned(row.after, row.after_interval),
        )
        for row in rows
    ]


def _aligned(share: float, interval: tuple[float, float]) -> str:
    text = format_share(share, interval)
    return " " * (len("100.0") - text.index(" ")) + text


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """A sample answer that was compared with its reference; clean, each part one line."""

    right: bool
    question: str
    parts: tuple[str, ...]
    """The answer; if it is wrong, the reference and the answer."""


def check_answer(sample: SampleAnswer) -> CheckedAnswer:
    given = one_line(sample.given) or "nothing"
    right = exact_match(sample.given, sample.wanted)  # as `mmchat evaluate` compares them
    parts = (given,) if right else (f"wanted {one_line(sample.wanted)}", f"said {given}")
    return CheckedAnswer(right, one_line(sample.question), parts)


def sentence(status: Status) -> str:
    """What happened and what a person can do; never empty for a run that has stopped."""
    message = one_line(status.message, 600)
    if status.state == "paused":
        return message or "It is paused."
    if status.state == "failed":
        return message or "It failed and printed no reason."
    if status.state == "finished" and not message:
        return f"The adapter {one_line(status.adapter or status.name, 100)} is ready."
    return message
