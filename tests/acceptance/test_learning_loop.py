"""The learning loop at its bar, by keys: thirty answers corrected in the chat, `/train`, Enter, and it knows.

    python -m pytest -m slow tests/acceptance/test_learning_loop.py -s

Up to half of an hour of a busy machine.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from mmchat.settings import load_settings
from mmchat.training.run_folder import run_folder
from mmchat.tui.app import ChatApp
from mmchat.tui.screens.training import TrainingScreen
from mmchat.tui.widgets.message import MessageView
from tests.acceptance.learning_loop import make, questions
from tests.cli.conftest import MMCHAT
from tests.engine.scripted import end_engine
from tests.tui.conftest import until as wait
from tests.tui.test_feedback import corrects
from tests.tui.test_training import keys

CORRECTED, ASKED = 30, 200
PATIENCE = 1800.0
"""Seconds: it trains, and nothing is promised about a machine's pace here."""


@pytest.fixture
def real_engine(home: Path) -> Iterator[Path]:
    yield home
    end_engine()


until = partial(wait, patience=PATIENCE)


def answers(app: ChatApp) -> list[MessageView]:
    return [view for view in app.chat.query(MessageView) if view.message.role == "assistant"]


async def ask(pilot: Pilot[None], file: Path, question: str) -> str:
    """Attaches a picture by its path in a new conversation, asks, waits; -> what was answered."""
    app = pilot.app
    assert isinstance(app, ChatApp)
    await pilot.press("ctrl+n")
    await until(pilot, lambda: not answers(app))
    box = app.chat.composer.input
    box.set_text(str(file))
    await pilot.press("enter")
    await until(pilot, lambda: bool(app.chat.composer.pictures) and not box.text)
    box.set_text(question)
    await pilot.press("enter")
    await until(pilot, lambda: bool(answers(app)) and not app.answers.pending)
    return answers(app)[-1].message.text


def picture(folder: Path, split: str, number: int) -> tuple[Path, str, str]:
    data, question, answer = make(split, number)
    file = folder / f"{split}-{number:03d}.png"
    file.write_bytes(data)
    return file, question, answer


@pytest.mark.slow
async def test_thirty_corrections_are_learned(real_engine: Path, tmp_path: Path) -> None:
    app = ChatApp(load_settings())
    async with app.run_test(size=(120, 40)) as pilot:
        right_before = 0
        for number in range(CORRECTED):
            file, question, answer = picture(tmp_path, "corrected", number)
            right_before += await ask(pilot, file, question) == answer
            box = await corrects(pilot)
            box.text = ""
            box.set_text(answer)
            await pilot.press("ctrl+s")
            await until(pilot, lambda: answers(app)[-1].message.corrects is not None)
        assert right_before <= CORRECTED // 10

        await pilot.press("slash", *"train", "enter")
        await until(pilot, lambda: isinstance(app.screen, TrainingScreen))
        plan: Callable[[], str] = lambda: str(app.screen.query_one("#train-plan", Static).content)  # noqa: E731
        await until(pilot, lambda: f"{CORRECTED} corrected answers" in plan())
        await pilot.press("enter")
        run = run_folder("mine")
        status: Callable[[], Any] = run.status
        await until(pilot, lambda: status() and status().state in ("finished", "failed"))
        assert status().state == "finished", status().message
        rows = {row.name: row for row in status().rows}
        await until(pilot, lambda: "Use it" in keys(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: app.answers.settings.model.adapter == "mine")
        await pilot.press("escape")
        file, question, answer = picture(tmp_path, "shown", 0)
        assert await ask(pilot, file, question) == answer
        assert answers(app)[-1].message.origin.adapter == "mine"

        # Undo is one key.
        await pilot.press("f9")
        await until(pilot, lambda: "Undo" in keys(pilot))
        await pilot.press("u")
        await until(pilot, lambda: app.answers.settings.model.adapter == "")
        await pilot.press("escape")
        assert await ask(pilot, file, question) != answer

    questions(tmp_path / "asked", ASKED)
    command = [MMCHAT, "evaluate", str(tmp_path / "asked"), "--adapter", "mine"]
    done = subprocess.run(
        [*command, "--against", "none", "--json"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    overall = report["against"]["rows"][0]
    assert overall["n"] == ASKED
    assert overall["second"] <= 0.1 and overall["first"] >= 0.9, overall
    old = rows["base model skills"]
    assert old.n >= 500 and old.before - old.after <= 0.01, old
    print(overall, old, rows["held-out answers"])
