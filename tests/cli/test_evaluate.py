"""`mmchat evaluate`, with an engine that answers by script."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, sentence
from tests.evaluation.folders import line, write

pytestmark = pytest.mark.usefixtures("shared_engine")


def test_the_figures_as_a_table_a_file_and_json(mmchat: Run, tmp_path: Path) -> None:
    questions = [
        line("1", "say red", "red", images=("pictures/1.png",)),
        line("2", "say blue", "green", images=("pictures/1.png",)),
        line("3", "say two", "two", kind="count", images=("pictures/2.png",)),
    ]
    data = write(tmp_path / "data", questions)
    done = mmchat("evaluate", str(data), "--markdown", "table.md")
    assert (done.returncode, done.stderr) == (0, "")
    assert "| colour" in done.stdout and "50.0 %" in done.stdout
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() == done.stdout.strip()
    found = json.loads(mmchat("evaluate", str(data), "--json").stdout)
    assert found["overall"]["n"] == 3
    one = json.loads(mmchat("evaluate", str(data), "--json", "--limit", "1").stdout)
    assert one["overall"]["n"] == 2


def test_data_that_is_not_there_is_one_sentence(mmchat: Run) -> None:
    assert "nowhere" in sentence(mmchat("evaluate", "nowhere"))
